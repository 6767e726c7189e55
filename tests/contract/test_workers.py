"""Promise 2 over two worker processes on loopback."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.contract.families import EXPERIMENTS, FAULTS, FLIP_STEP, LOST_STEP, RUNS
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


SIGNALS = ["KILL:0", "STOP:1", "TERM:1", "DATA:1"]
MORE_SIGNALS = ["KILL:1", "STOP:0", "TERM:0", "USR2:1", "EARLY:0", "EARLY:1", "DATA:0"]
SILENT = "did not beat for 5 seconds, stopped or cut off"


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
        codes = [process.wait(timeout=590) for process in gang]
    finally:
        for process in gang:
            process.kill()
    assert codes == [0, 0], (folder / "worker0.log").read_text()[-3000:]
    return folder


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", RUNS)
def test_two_workers_learn_the_same(name, workers, tmp_path):
    """As on several replicas: float64 to the end, float32 for 5 steps, ids and noise to the bit."""
    experiment, fields = RUNS[name]
    run, one = results(workers / name), train(EXPERIMENTS[experiment](**fields), ONE, tmp_path)
    assert len(run.rows) == {"fingerprint": 12}.get(name, fields.get("steps", 50))
    if name == "fingerprint":
        assert_equal(replace(run, weights={}), replace(one, weights={}))
    elif fields.get("precision") == "float32":
        assert_close(run, one, losses=1e-5)
    else:
        assert_close(run, one, losses=1e-9, weights=1e-8)
    pictures = [path.name for path in (workers / name).glob("samples/step-????????.*")]
    assert pictures == (["step-00000050.png"] if fields.get("samples") else [])


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is Linux's")
def test_the_servers_of_tensorflow_are_closed_but_to_the_gang(workers):
    """By themselves they listen at every address of a machine."""
    assert "no answer at 127.0.0.2" in (workers / "worker1.log").read_text().splitlines()


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
        line = f"going back from step 40 to step 25: {rollback['reason']}"
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
def lost(tmp_path_factory, full):
    """The folder of gangs that a fault was injected into, what `launched` says of them, and the ports of their first lives."""
    folder = tmp_path_factory.mktemp("lost")
    faults = ["none:0", *SIGNALS, *(MORE_SIGNALS if full else [])]
    ports = free_ports(4 * len(faults))
    command = [sys.executable, "-m", "tests.contract.child", "launched", ",".join(faults)]
    command += [",".join(map(str, ports)), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=590)
    # An undisturbed gang takes two of them.
    first = {fault: ports[2 + 4 * i : 4 + 4 * i] for i, fault in enumerate(faults[1:])}
    return folder, json.loads(done.stdout.splitlines()[-1]), first


def cases(*names: str) -> list:
    marked = [pytest.param(fault, marks=pytest.mark.full) for fault in MORE_SIGNALS]
    return [
        c for c in (*SIGNALS, *marked) if (c if isinstance(c, str) else c.values[0])[:-2] in names
    ]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", cases("KILL", "STOP", "EARLY"))
def test_a_worker_that_is_missing_ends_the_other_and_nothing_is_lost(fault, lost):
    """Named, within the seconds of `--heartbeat_seconds` and 5 to end in; then it goes on with the same bits."""
    folder, answers, ports = lost
    worker = int(fault[-1])
    log = (folder / f"{fault}-0-{1 - worker}.log").read_text()
    codes, seconds, again = answers[fault]
    assert (codes[0], again) == (75, [0, 0]), log
    said = [line for line in log.splitlines() if line.startswith("lockstep:")]
    how = SILENT if fault.startswith("STOP") else "is gone"
    assert said == [
        f"lockstep: worker {worker} (127.0.0.1:{ports[fault][worker]}) {how}: see its log, and start all workers again; "
        "they go on from the last checkpoint"
    ]
    assert "Traceback" not in log
    # Registering has 5 seconds and TensorFlow adds 5 on all but the first worker.
    least, most = {"KILL": (0, 5), "STOP": (3.5, 10), "EARLY": (0, 30)}[fault[:-2]]
    assert least < seconds < most
    step = re.findall(r"going on from step (\d+) on", (folder / f"{fault}-1-0.log").read_text())
    assert len(step) == (not fault.startswith("EARLY"))
    assert all(40 <= int(one) < 1200 for one in step)
    assert_equal(results(folder / fault), results(folder / "none:0"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", cases("TERM", "USR2"))
def test_a_worker_that_is_asked_to_stop_saves_with_all_others_once(fault, lost):
    """Twice: the second time while it is about to save, or after."""
    folder, answers, _ = lost
    codes, seconds, again = answers[fault]
    assert (codes, again) == ([75, 75], [0, 0]), (folder / f"{fault}-0-0.log").read_text()
    assert seconds < 20
    (name,) = (folder / f"{fault}.txt").read_text().split()
    events = [
        json.loads(line) for line in (folder / fault / "events.jsonl").read_text().splitlines()
    ]
    (event,) = [event for event in events if event["event"] == "preempted"]
    assert name == f"step-{event['step']:08d}.safetensors" and 0 < event["step"] < 1200
    for worker in range(2):
        said = (folder / f"{fault}-0-{worker}.log").read_text()
        assert said.count("lockstep:") == said.count("lockstep: preempted and saved") == 1
        again = (folder / f"{fault}-1-{worker}.log").read_text()
        assert f"going on from step {event['step']} on" in again
    assert_equal(results(folder / fault), results(folder / "none:0"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", cases("DATA"))
def test_data_that_fail_on_one_worker_end_all_and_what_came_before_is_saved(fault, lost):
    """In the middle of a loop of steps, between two checkpoints; put back, no bit is another."""
    folder, answers, ports = lost
    codes, _, again = answers[fault]
    assert (codes, again) == ([65, 65], [0, 0]), (folder / f"{fault}-0-0.log").read_text()
    host = f"127.0.0.1:{ports[fault][int(fault[-1])]}"
    for worker in range(2):
        log = (folder / f"{fault}-0-{worker}.log").read_text()
        assert [line for line in log.splitlines() if line.startswith("lockstep:")] == [
            f"lockstep: worker {fault[-1]} ({host}): shard-7 cannot be read (Input/output error): mend it"
        ]
        assert "Traceback (most recent call last)" not in log
        said = (folder / f"{fault}-1-{worker}.log").read_text()
        assert f"going on from step {LOST_STEP} on" in said
    saved = (folder / f"{fault}.txt").read_text().split()
    assert saved[-1] == f"step-{LOST_STEP:08d}.safetensors" and LOST_STEP % 40
    assert_equal(results(folder / fault), results(folder / "none:0"))
