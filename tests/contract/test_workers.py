"""Promise 2 over two worker processes on loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.contract.families import EXPERIMENTS, RUNS
from tests.contract.runs import ONE, assert_close, assert_equal, results, train


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """The folder in which two workers have made the runs."""
    folder = tmp_path_factory.mktemp("workers")
    ports = ",".join(map(str, free_ports(2 * len(RUNS))))
    command = [sys.executable, "-m", "tests.contract.child", "worker"]
    gang = []
    for rank in range(2):
        with (folder / f"worker{rank}.log").open("w") as log:
            gang.append(
                subprocess.Popen([*command, str(rank), ports, str(folder)], stdout=log, stderr=log)
            )
    try:
        codes = [process.wait(timeout=300) for process in gang]
    finally:
        for process in gang:
            process.kill()
    assert codes == [0, 0], (folder / "worker0.log").read_text()[-3000:]
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_workers_learn_the_same(name, workers, tmp_path):
    """As on several replicas: float64 to the end, float32 for 5 steps, ids and noise to the bit."""
    experiment, fields = RUNS[name]
    run, one = results(workers / name), train(EXPERIMENTS[experiment](**fields), ONE, tmp_path)
    assert len(run.rows) == {"float32": 5, "fingerprint": 12}.get(name.split("_")[-1], 50)
    if name == "fingerprint":
        assert_equal(replace(run, weights={}), replace(one, weights={}))
    elif fields.get("precision") == "float32":
        assert_close(run, one, losses=1e-5)
    else:
        assert_close(run, one, losses=1e-9, weights=1e-8)
    pictures = [path.name for path in (workers / name).glob("samples/step-????????.*")]
    assert pictures == (["step-00000050.png"] if fields.get("samples") else [])


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """Of two gangs of which one worker was killed: the exit codes of the others, their logs and all ports."""
    folder, ports = tmp_path_factory.mktemp("lost"), free_ports(4)
    command = [sys.executable, "-m", "tests.contract.child", "launched"]
    command += [",".join(map(str, ports)), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=280)
    return done.stdout.split()[-2:], [(folder / f"{i}.log").read_text() for i in range(2)], ports


@pytest.mark.parametrize("killed", [0, 1])
def test_a_worker_that_is_killed_ends_the_other_with_a_line(killed, lost):
    """Named, and to be started again: exit code 75. The first worker hears of it otherwise than the others."""
    codes, logs, ports = lost
    assert codes == ["75", "75"], logs
    assert logs[killed].splitlines()[-1] == (
        f"lockstep: worker {killed} (127.0.0.1:{ports[3 * killed]}) is gone: see its log, and start all workers again; "
        "they go on from the last checkpoint"
    )
    assert "Traceback" not in logs[killed]
