"""A gang that loses a worker in the middle goes on by itself, and ends with the bits of one that did not."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.clusters.tiny import tiny
from tests.contract.runs import assert_equal, results
from trainer import lock

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 400
TINY = tiny(STEPS, checkpoint_every=40)


def start(workdir: pathlib.Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "clusters.launch", "--workers=2", "--max_restarts=1"]
    command += ["--grace=1", "--", "train", "vae/digits_mlp", f"--workdir={workdir}", *TINY]
    command += ["--heartbeat_seconds=5"]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch") / "undisturbed"
    process = start(folder)
    text, _ = process.communicate()
    assert process.returncode == 0, text
    return results(folder)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (
            signal.SIGKILL,
            ["launch: worker 1 was ended by SIGKILL: ending worker 0"],
        ),
        pytest.param(
            # Deaf to SIGTERM as well. Its parts are tested always: tests/contract/test_workers.py stops a worker, and in
            # tests/clusters/test_gang.py one is deaf.
            signal.SIGSTOP,
            [
                "did not beat for 5 seconds, stopped or cut off: see its log",
                "launch: worker 0 exited with 75: ending worker 1",
                "launch: worker 1 did not end in time: SIGKILL",
            ],
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_gang_that_lost_a_worker_ends_with_the_same_bits(number, said, undisturbed, tmp_path):
    process = start(tmp_path / "run")
    pid = re.findall(r"\d+", process.stdout.readline())[2]
    checkpoints = tmp_path / "run/checkpoints"
    while not list(checkpoints.glob("step-*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    os.kill(int(pid), number)
    text, _ = process.communicate()
    assert process.returncode == 0, text
    assert all(line in text for line in said), text
    assert "launch: restart 1 of 1 with 2 workers" in text
    (step,) = set(re.findall(r"going on from step (\d+) on .* on 2 workers", text))
    assert 40 <= int(step) < STEPS
    assert_equal(results(tmp_path / "run"), undisturbed)


def test_a_second_gang_in_a_workdir_is_refused_whole_and_not_started_again(tmp_path):
    """The first worker, before TensorFlow, tells the other, which would wait for it for ten minutes."""
    with lock.take(tmp_path, "lockstep train another") as held:
        process = start(tmp_path)
        text, _ = process.communicate(timeout=250)
        held.check()
    assert process.returncode == 73, text
    line = f"lockstep: workdir {tmp_path} is in use by process {os.getpid()} on {socket.gethostname()} since "
    said = [row for row in text.splitlines() if line in row]
    assert sorted(row[:4] for row in said) == ["[0] ", "[1] "], text
    assert "restart" not in text and "Traceback" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
