"""Trainings on a real Slurm cluster, by scripts/test_slurm: stopped and queued again, they end with the same bits."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.clusters.tiny import tiny
from tests.contract.runs import Run, assert_equal, results

pytestmark = [
    pytest.mark.skipif("LOCKSTEP_SLURM" not in os.environ, reason="by scripts/test_slurm"),
    pytest.mark.timeout(900),
]

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 2000
TINY = tiny(STEPS, checkpoint_every=100)


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def start(name: str, folder: pathlib.Path) -> str:
    """Submits a training on two nodes; returns the number of the job."""
    command = [sys.executable, "-m", "clusters.submit", "slurm", f"--name={name}", "--submit"]
    command += [f"--workdir={folder}/{name}", f"--folder={folder}", f"--directory={ROOT}"]
    command += ["--queue=low", "--nodes=2", "--minutes=30", "--grace=30"]
    command += [f"--env=PYTHONPATH={ROOT}", "--env=CUDA_VISIBLE_DEVICES="]
    (number,) = re.findall(
        r"Submitted batch job (\d+)", slurm(*command, "--", "vae/digits_mlp", *TINY)
    )
    return number


def log(folder: pathlib.Path) -> str:
    return "".join(path.read_text() for path in folder.glob("slurm-*.out"))


def wait_for(happened: Callable[[], bool], number: str, folder: pathlib.Path) -> None:
    """Waits, and takes a job that was queued again from its two minutes of waiting."""
    for _ in range(600):
        if happened():
            return
        if slurm("squeue", "--noheader", "--jobs", number, "--format=%T %r").strip() == (
            "PENDING BeginTime"
        ):
            slurm("scontrol", "update", f"JobId={number}", "StartTime=now")
        time.sleep(0.5)
    raise AssertionError(log(folder))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    number = start("whole", folder)
    wait_for((folder / "whole/DONE").exists, number, folder / "whole")
    return results(folder / "whole")


def requeue(number: str) -> None:
    slurm("scontrol", "requeue", number)


def preempt(number: str) -> None:
    """Another job comes first, on all nodes."""
    slurm("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")  # fmt: skip


@pytest.mark.parametrize("stop", [requeue, preempt])
def test_a_job_that_was_stopped_ends_with_the_same_bits(stop, whole, tmp_path):
    run = tmp_path / "stopped"
    number = start("stopped", tmp_path)
    wait_for(lambda: bool(list(run.glob("checkpoints/step-*"))), number, run)
    stop(number)
    wait_for((run / "DONE").exists, number, run)
    text = log(run)
    # Both workers have saved at one step, and gone on from there.
    assert text.count("preempted and saved") == 2, text
    (step,) = set(re.findall(r"going on from step (\d+) on .* on 2 workers", text))
    assert 100 <= int(step) < STEPS
    assert_equal(results(run), whole)
    assert "Restarts=1 " in slurm("scontrol", "show", "job", number)


def test_a_job_that_was_cancelled_is_not_queued_again(tmp_path):
    run = tmp_path / "cancelled"
    number = start("cancelled", tmp_path)
    wait_for(lambda: bool(list(run.glob("checkpoints/step-*"))), number, run)
    slurm("scancel", number)
    wait_for(lambda: "COMPLETING" not in slurm("squeue", "--noheader", "--format=%T"), number, run)
    time.sleep(2)
    assert "JobState=CANCELLED" in slurm("scontrol", "show", "job", number)
