"""Promise 2 over two worker processes on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.contract.families import EXPERIMENTS, FAULTS, FLIP_STEP, RUNS
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
    ports = ",".join(map(str, free_ports(2 * len(RUNS | FAULTS))))
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


def events(workdir, kind):
    """Of that kind in the ledger, without their times."""
    lines = map(json.loads, (workdir / "events.jsonl").open())
    return [{k: v for k, v in e.items() if k != "time"} for e in lines if e["event"] == kind]


def test_a_flip_on_one_worker_takes_both_back_and_changes_no_bit(workers):
    """All bits of the run in which nothing flipped; both workers saw it, or one would have waited for ever."""
    assert_equal(results(workers / "vae_flipped"), results(workers / "vae"))
    (rollback,) = events(workers / "vae_flipped", "rollback")
    # The best so far was saved at step 25.
    assert 25 < FLIP_STEP < 40 and (rollback["step"], rollback["to"]) == (40, 25)
    assert rollback["reason"].endswith(
        "between the 2 replicas, and no majority tells which is right"
    )
    for worker in range(2):
        line = f"step 40: {rollback['reason']}; back to step 25"
        assert line in (workers / f"worker{worker}.log").read_text().splitlines()


def test_a_bad_example_of_one_worker_is_skipped_by_both(workers, tmp_path):
    """As on one replica: the same updates are counted, and recorded when the host looked."""
    run = results(workers / "spoilt")
    one = train(EXPERIMENTS["spoilt"](), ONE, tmp_path)
    assert_close(run, one, losses=1e-9, weights=1e-8)
    skips = events(workers / "spoilt", "skip")
    # 96 examples: each of four epochs of 21 meets it once, and perhaps the fifth.
    assert skips == events(tmp_path, "skip") and sum(e["updates"] for e in skips) in (4, 5)
    assert run.rows[-1][2]["train/skipped_updates"] == sum(e["updates"] for e in skips)


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
