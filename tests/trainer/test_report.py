"""Goodput from ledgers made by hand, whose answers are worked out by hand."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from trainer import main
from trainer.report import COUNTED, KINDS, goodput

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(time: float, step: int, building: float = 0, waiting: float = 0) -> dict[str, Any]:
    return {"time": time, "event": "start", "step": step, "building": building, "waiting": waiting}


def sign(time: float, step: int, event: str = "alive", skipped: int = 0, **seconds: float) -> dict:
    return {"time": time, "event": event, "step": step, "skipped": skipped, "seconds": seconds}


def spent(**seconds: float) -> dict[str, float]:
    return dict.fromkeys(KINDS, 0.0) | seconds


UNDISTURBED = [
    start(1010, 0, building=7, waiting=3),
    sign(1015, 20, compiling=4),
    sign(1050, 60, compiling=4, steps=30, data=2, evaluation=3),
    sign(
        1100, 100, "done", 5, compiling=4, steps=62, data=4, evaluation=9, samples=2, saves=6
    ),  # 50 seconds, 48 of them told
]

KILLED = [
    # From 1000 on; a step is a second but for the first of a start, and the checkpoint is of step 30.
    start(1010, 0, building=10),
    sign(1020, 10, compiling=10),
    {"time": 1041, "event": "save", "step": 30},
    sign(1060, 50, compiling=10, steps=40),
    {"time": 1095, "event": "takeover", "owner": "a"},
    start(1100, 30, building=15, waiting=5),
    {"time": 1100, "event": "restore", "step": 30, "seconds": 1},
    sign(1110, 40, compiling=10),
    sign(1170, 100, "done", compiling=10, steps=60),
]


def test_an_undisturbed_run():
    found = goodput(UNDISTURBED, now=5000)
    start_up = {"building": 7, "waiting": 3, "compiling": 4}
    between = {"data": 4, "evaluation": 9, "samples": 2, "saves": 6, "other": 1 + 0 + 2}
    assert found.seconds == spent(steps=62, **start_up, **between)
    assert found.wall_seconds == 100
    assert found.shares["steps"] == 0.62
    assert (found.state, found.step, found.skipped, found.steps_again) == ("done", 100, 5, 0)
    assert found.counts == dict.fromkeys(COUNTED, 0) | {"start": 1}


def test_steps_after_the_checkpoint_are_lost_with_a_kill():
    """Of the steps 11 … 50, 40 seconds, those from 31 on; it begins again 20 seconds after the last sign of life."""
    found = goodput(KILLED, now=5000)
    assert found.seconds == spent(
        building=25, waiting=5, compiling=20, steps=20 + 60, again=20, down=1080 - 1060
    )
    assert found.wall_seconds == 170
    assert (found.state, found.steps_again) == ("done", 20)
    counts = {"start": 2, "restore": 1, "save": 1, "takeover": 1}
    assert found.counts == dict.fromkeys(COUNTED, 0) | counts


def test_a_later_start_can_go_back_further():
    """A third start from step 20: what the second did is lost too, and 10 steps more of the first."""
    found = goodput([*KILLED[:-1], sign(1170, 100, steps=60, compiling=10), start(1170, 20)], 1171)
    assert found.seconds["steps"] == 10
    assert found.seconds["again"] == 30 + 60
    assert found.steps_again == 30 + (100 - 30)
    assert found.state == "running"


def test_what_a_rollback_undid():
    """Steps 11 … 30, back to 20, and to 25: of 25 steps in 35 seconds 10 are lost."""
    events = [
        start(10, 0),
        sign(20, 10, compiling=10),
        {"time": 45, "event": "rollback", "step": 30, "to": 20},
        sign(55, 25, compiling=10, steps=35),
    ]
    found = goodput(events, now=56)
    assert found.seconds == spent(compiling=10, steps=35 * 15 / 25, again=35 * 10 / 25)
    assert (found.steps_again, found.step, found.counts["rollback"]) == (10, 25, 1)


@pytest.mark.parametrize(
    ("events", "now", "state", "wall"),
    [
        ([start(10, 0, building=4)], 20, "running", 4),
        ([start(10, 0, building=4)], 200, "silent", 4),
        ([start(10, 0), sign(15, 9, "failed", compiling=5)], 200, "failed", 5),
        # Down is the time before a program begins that goes on: its own 3 seconds are not, nor is what follows the last sign.
        ([start(10, 0), sign(15, 9, "preempted", compiling=5), start(25, 9, 3)], 200, "silent", 15),
        # More steps for a run that was done: the time between is nobody's.
        ([*UNDISTURBED, start(9000, 100, 3), sign(9001, 101, compiling=1)], 9001, "running", 104),
        # Clocks of two machines that differ.
        ([start(10, 0), sign(15, 9, compiling=5), start(12, 0)], 12, "running", 5),
    ],
)
def test_runs_that_are_not_done(events, now, state, wall):
    found = goodput(events, now)
    assert (found.state, found.wall_seconds) == (state, wall)
    assert sum(found.shares.values()) == pytest.approx(1, abs=1e-12)


def test_the_command_needs_no_tensorflow_and_no_whole_last_line(tmp_path):
    lines = "".join(json.dumps(event) + "\n" for event in KILLED)
    (tmp_path / "events.jsonl").write_text(lines + '{"time": 1171, "ev')
    program = (
        "import sys; from trainer import main; code = main.main(sys.argv[1:]); "
        "sys.exit(99 if {'tensorflow', 'keras', 'numpy'} & set(sys.modules) else code)"
    )
    command = [sys.executable, "-c", program, "report", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    *table, counts, last = done.stdout.splitlines()
    assert table[0] == f"{tmp_path}: done at step 100"
    (productive,) = (line for line in table if "productive" in line)
    assert "80.0" in productive and "47.06 %" in productive
    assert counts.startswith("skipped updates 0, steps again 20, start 2, restore 1, save 1,")
    facts = json.loads(last)
    assert facts["goodput"] == round(80 / 170, 6)
    assert facts["seconds"]["again"] == 20 and facts["events"]["takeover"] == 1
    assert sum(facts["shares"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("text", [None, "", '{"time": 1, "event": "sta', "[1]\nnull\n"])
def test_a_workdir_without_a_start(text, tmp_path, capsys):
    if text is not None:
        (tmp_path / "events.jsonl").write_text(text)
    assert main.main(["report", f"--workdir={tmp_path}"]) == 78
    assert capsys.readouterr() == (
        "",
        f"lockstep: workdir {tmp_path} holds no start of a training ({tmp_path}/events.jsonl is missing or empty): train "
        "one, or choose another\n",
    )
