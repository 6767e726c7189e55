"""Promise 3: killed at any moment and started again, a run ends with the bits of one that was never killed."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import pytest

from tests.contract.runs import Run, assert_close, assert_equal, results
from trainer import ledger
from trainer.report import report

STEPS = {
    "steps": 120,
    "checkpoint_every": 15,
    "log_every": 10,
    "evaluate_every": 20,
    "keep_checkpoints": 2,
}
ONE = {"strategy": "one_device", "steps_per_loop": 7}


class Nursery:
    """Starts runs, and kills them: see tests/contract/child.py."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.contract.child", "nursery"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self,
        family: str,
        hardware: dict,
        workdir: pathlib.Path,
        die: list | None = None,
        kill: list | None = None,
    ) -> int:
        """Runs until the end, or until it dies or is killed; returns the exit status, negative for a signal."""
        workdir.parent.mkdir(parents=True, exist_ok=True)
        task = {"family": family, "fields": STEPS, "hardware": hardware, "workdir": str(workdir)}
        self._process.stdin.write(json.dumps(task | {"die": die, "kill": kill}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="module")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory):
    """Runs that were never killed, made once."""
    made: dict[tuple, Run] = {}

    def get(family: str, hardware: dict) -> Run:
        key = (family, *sorted(hardware.items()))
        if key not in made:
            workdir = tmp_path_factory.mktemp("undisturbed") / "run"
            assert nursery.run(family, hardware, workdir) == 0, _log(workdir)
            made[key] = results(workdir)
        return made[key]

    return get


def _log(workdir: pathlib.Path) -> str:
    return pathlib.Path(f"{workdir}.log").read_text()[-3000:]


# family: (hardware, kills in each test run, kills with --full)
RANDOM_KILLS = {
    "gan": ({"replicas": 2, "virtual_devices": 2, "steps_per_loop": 7}, 1, 150),
    "vae": ({"strategy": "one_device", "xla": "on", "steps_per_loop": 7}, 1, 250),
    "lstm": ({"strategy": "one_device", "microbatch": 8, "steps_per_loop": 7}, 1, 600),
    "transformer": ({"strategy": "one_device", "steps_per_loop": 7}, 1, 100),
    "gpt2_lora": ({"strategy": "one_device", "steps_per_loop": 7}, 1, 100),
}


@pytest.mark.timeout(0)
@pytest.mark.parametrize("family", RANDOM_KILLS)
def test_kills_at_random_change_no_bit(family, nursery, undisturbed, tmp_path, full):
    hardware, few, many = RANDOM_KILLS[family]
    chance = random.Random(family)
    kills, runs = 0, 0
    while kills < (many if full else few):
        runs += 1
        workdir = tmp_path / str(runs)
        for _ in range(chance.randrange(1, 5)):
            rows = chance.randrange(5)
            # Before the first row it may still be building, or saving nothing yet.
            moment = [rows, (0.05 if rows else 4.0) * chance.random()]
            kills += nursery.run(family, hardware, workdir, kill=moment) == -signal.SIGKILL
        assert nursery.run(family, hardware, workdir) == 0, _log(workdir)
        assert_equal(results(workdir), undisturbed(family, hardware))
        shutil.rmtree(workdir)
        print(f"{family}: {kills} kills in {runs} runs changed no bit", flush=True)


@pytest.mark.parametrize(
    ("family", "moment"),
    [
        ("gan", "before_fsync"),
        ("vae", "before_rename"),
        ("vae", "before_prune"),
        ("lstm", "after_rename"),
        ("gpt2_lora", "before_prune"),
    ],
)
def test_kills_during_a_save_change_no_bit(family, moment, nursery, undisturbed, tmp_path):
    """Once, or twice in one run: at an early save and, after the restart, at a later one."""
    workdir = tmp_path / "run"
    for call in (2, 3) if moment == "before_rename" else (3,):
        assert nursery.run(family, ONE, workdir, die=[moment, call]) == -9, _log(workdir)
        scratch = list((workdir / "checkpoints").glob(".step-*"))
        assert bool(scratch) == (moment in ("before_fsync", "before_rename"))
    assert nursery.run(family, ONE, workdir) == 0, _log(workdir)
    assert_equal(results(workdir), undisturbed(family, ONE))
    _check_goodput(workdir, 3 if moment == "before_rename" else 2)
    assert not list((workdir / "checkpoints").glob(".step-*"))


def _check_goodput(workdir: pathlib.Path, starts: int) -> None:
    """That the ledger accounts for all of the time of a run that was killed."""
    found = report(workdir)
    kinds, events = found.seconds, ledger.events(workdir / "events.jsonl")
    first, last = events[0], events[-1]
    assert (found.state, found.step, found.counts["start"]) == ("done", 120, starts)
    whole = last["time"] - first["time"] + first["building"] + first["waiting"]
    assert found.wall_seconds == pytest.approx(whole, abs=0.1)
    assert min(kinds.values()) >= 0 and kinds["steps"] > 0 and kinds["evaluation"] > 0
    # What was done again came after the last sign of life, and is downtime.
    assert kinds["compiling"] > 0 and kinds["down"] > 0


def test_the_best_checkpoint_survives_a_kill_between_saving_and_naming_it(nursery, tmp_path):
    """Saving names it: whatever the newest checkpoint names as the best is there after a kill at any moment of a save."""
    from trainer.checkpoint import read
    from trainer.workdir import checkpoint_steps

    workdir = tmp_path / "run"
    for moment, call in (("after_rename", 2), ("before_prune", 2)):
        assert nursery.run("vae", ONE, workdir, die=[moment, call]) == -9, _log(workdir)
        steps = checkpoint_steps(workdir / "checkpoints")
        newest = read(workdir / "checkpoints" / f"step-{steps[-1]:08d}.safetensors")
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        values = {
            r["step"]: r["metrics"].get("eval/negative_elbo")
            for r in rows
            if r["step"] <= steps[-1]
        }
        values = {step: value for step, value in values.items() if value is not None}
        assert newest.notes["best"] == {
            "step": min(values, key=values.get),
            "value": min(values.values()),
        }
        assert newest.notes["best"]["step"] in steps


@pytest.mark.parametrize("family", ["gan", "vae", "lstm"])
def test_a_restart_on_another_layout_goes_on_the_same(family, nursery, undisturbed, tmp_path):
    """Killed on one replica, killed again on two, finished on one with accumulation: equal up to the order of sums."""
    workdir = tmp_path / "run"
    assert nursery.run(family, ONE, workdir, die=["after_rename", 2]) == -9, _log(workdir)
    two = {"replicas": 2, "virtual_devices": 2, "steps_per_loop": 5}
    assert nursery.run(family, two, workdir, die=["before_rename", 3]) == -9, _log(workdir)
    assert nursery.run(family, ONE | {"microbatch": 4}, workdir) == 0, _log(workdir)
    assert_close(results(workdir), undisturbed(family, ONE), losses=1e-9, weights=1e-8)
