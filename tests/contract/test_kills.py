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

from tests.contract.families import EXPERIMENTS, OTHERS
from tests.contract.runs import Run, assert_close, assert_equal, results
from trainer import ledger
from trainer.checkpoint import read
from trainer.report import report
from trainer.workdir import checkpoint_steps

STEPS = {
    "steps": 60,
    "checkpoint_every": 15,
    "log_every": 10,
    "evaluate_every": 20,
    "keep_checkpoints": 2,
}
ONE = {"strategy": "one_device", "steps_per_loop": 7}
TWO = {"replicas": 2, "virtual_devices": 2, "steps_per_loop": 7}


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
    "gan": (TWO, 1, 150),
    "vae": ({"strategy": "one_device", "xla": "on", "steps_per_loop": 7}, 1, 250),
    "lstm": (ONE, 1, 600),
    "transformer": (ONE, 1, 100),
    "gpt2_lora": (ONE, 1, 100),
    "gpt2_full": (ONE, 0, 50),
    "class_gan": (ONE, 0, 50),
    "vq_vae": (ONE, 1, 50),
    "iwae": (ONE, 0, 50),
    "two_layers": (ONE, 0, 50),
}


def random_kills() -> list:
    """The families; those that are not killed in each test run take `--full`."""
    return [
        pytest.param(family, marks=[] if few else pytest.mark.full)
        for family, (_, few, _) in RANDOM_KILLS.items()
    ]


@pytest.mark.timeout(0)
@pytest.mark.parametrize("family", random_kills())
def test_kills_at_random_change_no_bit(family, nursery, undisturbed, tmp_path, full):
    hardware, few, many = RANDOM_KILLS[family]
    chance = random.Random(family)
    kills, runs = 0, 0
    wanted = many if full else few
    while kills < wanted:
        runs += 1
        workdir = tmp_path / str(runs)
        for _ in range(chance.randrange(1, 5)):
            if kills == wanted:
                break
            rows = chance.randrange(5)
            # Before the first row it may still be building, or saving nothing yet.
            moment = [rows, (0.05 if rows else 4.0) * chance.random()]
            kills += nursery.run(family, hardware, workdir, kill=moment) == -signal.SIGKILL
        assert nursery.run(family, hardware, workdir) == 0, _log(workdir)
        assert_equal(results(workdir), undisturbed(family, hardware))
        shutil.rmtree(workdir)
        print(f"{family}: {kills} kills in {runs} runs changed no bit", flush=True)


# family: (hardware, moment of a save, which saves)
SAVES = {
    "gan": (TWO, "before_fsync", [3]),
    # At an early one and, after the restart, at a later one.
    "vae": (ONE, "before_rename", [2, 3]),
    "lstm": (ONE, "after_rename", [2]),
    "gpt2_lora": (ONE, "before_prune", [2]),
}


@pytest.mark.parametrize("family", SAVES)
def test_kills_during_a_save_change_no_bit(family, nursery, undisturbed, tmp_path):
    """And at each of them the best checkpoint is there, which the newest names."""
    hardware, moment, calls = SAVES[family]
    workdir = tmp_path / "run"
    for call in calls:
        assert nursery.run(family, hardware, workdir, die=[moment, call]) == -9, _log(workdir)
        scratch = list((workdir / "checkpoints").glob(".step-*"))
        assert bool(scratch) == (moment in ("before_fsync", "before_rename"))
        _check_best(workdir, f"eval/{EXPERIMENTS[family]().best_metric}")
    assert nursery.run(family, hardware, workdir) == 0, _log(workdir)
    assert_equal(results(workdir), undisturbed(family, hardware))
    _check_goodput(workdir, 1 + len(calls))
    assert not list((workdir / "checkpoints").glob(".step-*"))


def _check_best(workdir: pathlib.Path, metric: str) -> None:
    """That the newest checkpoint names the best evaluation until then, whose checkpoint is kept."""
    steps = checkpoint_steps(workdir / "checkpoints")
    newest = read(workdir / "checkpoints" / f"step-{steps[-1]:08d}.safetensors")
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    values = {
        row["step"]: row["metrics"][metric]
        for row in rows
        if row["step"] <= steps[-1] and metric in row["metrics"]
    }
    best = min(values, key=values.__getitem__, default=None)
    assert newest.notes["best"] == ({"step": best, "value": values[best]} if values else {})
    assert best is None or best in steps


def _check_goodput(workdir: pathlib.Path, starts: int) -> None:
    """That the ledger accounts for all of the time of a run that was killed."""
    found = report(workdir)
    kinds, events = found.seconds, ledger.events(workdir / "events.jsonl")
    first, last = events[0], events[-1]
    assert (found.state, found.step, found.counts["start"]) == ("done", STEPS["steps"], starts)
    whole = last["time"] - first["time"] + first["building"] + first["waiting"]
    assert found.wall_seconds == pytest.approx(whole, abs=0.1)
    assert min(kinds.values()) >= 0 and kinds["steps"] > 0 and kinds["evaluation"] > 0
    # What was done again came after the last sign of life, and is downtime.
    assert kinds["compiling"] > 0 and kinds["down"] > 0


ACCUMULATING = ONE | {"microbatch": 4}
# family: (layout, and how it is killed there) …, the layout of the undisturbed run
RESTARTS = {
    "gan": ([(ONE, ["after_rename", 2]), (TWO | {"steps_per_loop": 5}, None)], TWO),
    "vae": (
        [(ONE, ["after_rename", 2]), (TWO, ["before_rename", 3]), (ACCUMULATING, None)],
        ONE,
    ),
    "lstm": ([(TWO, ["before_rename", 2]), (ACCUMULATING, None)], ONE),
}
# With --full: lazy penalties, codebooks, several samples and two stochastic layers, transformers and what they adapt.
MORE_RESTARTS = dict.fromkeys(
    OTHERS,
    ([(ONE, ["after_rename", 2]), (TWO, ["before_rename", 3]), (ACCUMULATING, None)], ONE),
)


@pytest.mark.parametrize(
    "family",
    [*RESTARTS, *(pytest.param(family, marks=pytest.mark.full) for family in MORE_RESTARTS)],
)
def test_a_restart_on_another_layout_goes_on_the_same(family, nursery, undisturbed, tmp_path):
    """Killed on one replica or two, finished on another number or with accumulation: equal up to the order of sums."""
    workdir = tmp_path / "run"
    lives, undisturbed_on = (RESTARTS | MORE_RESTARTS)[family]
    for hardware, die in lives:
        assert nursery.run(family, hardware, workdir, die=die) == (-9 if die else 0), _log(workdir)
    whole = undisturbed(family, undisturbed_on)
    assert_close(results(workdir), whole, losses=1e-9, weights=1e-8)
