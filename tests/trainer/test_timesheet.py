"""What a training tells of its time, on a clock that the tests move."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from trainer.exits import Diverged
from trainer.timesheet import Timesheet, program_start


class Clock:
    """Seconds since 1970 as they are set."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Told:
    """A ledger in memory."""

    def __init__(self):
        self.events = []

    def record(self, event, **fields):
        self.events.append({"event": event, **fields})


@pytest.fixture
def made():
    clock, told = Clock(), Told()
    return clock, told, Timesheet(told, began=990.0, clock=clock)


def loop(sheet, clock, step, steps, skipped=0):
    """A loop of steps from now on: (seconds, of which it waits) each."""
    seconds, waits = np.array(steps, float).T
    begins = clock.now + np.cumsum([0, *seconds[:-1]])
    clock.now += seconds.sum()
    sheet.loop(step, np.stack([begins, waits], 1), clock.now, lambda: skipped)


def test_seconds_by_hand(made):
    """A program of 10 seconds, 3 of them waiting, starts; its first step is done after 5 + 2 seconds, and counts as start-up."""
    clock, told, sheet = made
    with sheet.restoring():
        clock.now += 2
    sheet.start(40, "two devices", waited_seconds=3)
    clock.now += 5
    loop(sheet, clock, 43, [(2, 1), (1, 0), (1, 0.25)], skipped=1)
    with sheet.spent("evaluation"):
        clock.now += 4
    with sheet.spent("saves"), sheet.spent("samples"):
        clock.now += 0.5
    loop(sheet, clock, 44, [(1, 0)])
    loop(sheet, clock, 45, [(0.5, 0.25)], skipped=2)  # Soon after a sign of life, none.
    sheet.tell("done", 45, 2)
    began, restored, first, alive, done = told.events
    assert began == {
        "event": "start",
        "step": 40,
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "cluster": "two devices",
        "building": 9.0,
        "waiting": 3,
    }
    assert restored == {"event": "restore", "step": 40, "seconds": 2.0}
    seconds = {"compiling": 7.0, "steps": 1.75, "data": 0.25}
    assert first == {"event": "alive", "step": 43, "skipped": 1, "seconds": seconds}
    seconds |= {"steps": 2.75, "evaluation": 4.0, "samples": 0.5, "saves": 0.5}
    assert alive == {"event": "alive", "step": 44, "skipped": 0, "seconds": seconds}
    seconds |= {"steps": 3.0, "data": 0.5}
    assert done == {"event": "done", "step": 45, "skipped": 2, "seconds": seconds}


def test_signs_of_life_are_rare_in_a_long_run(made):
    """A step a second: one a second at first, then one in a twentieth of the time so far, and one in 30 seconds in the end."""
    clock, told, sheet = made
    sheet.start(0, "", 0)
    for step in range(1, 86_401):
        loop(sheet, clock, step, [(1, 0)])
    steps = [event["step"] for event in told.events if event["event"] == "alive"]
    assert steps[:21] == [*range(1, 21), 22]
    assert np.diff(steps).max() == 30
    assert len(steps) < 86_400 / 30 + 100


def test_a_step_that_takes_far_longer_than_others_is_a_stall(made):
    clock, told, sheet = made
    sheet.start(0, "", 0)
    loop(sheet, clock, 3, [(60, 50), (1, 0), (1, 0)])  # The first step compiles.
    loop(sheet, clock, 6, [(1, 0), (10.1, 9), (1, 0)])
    loop(sheet, clock, 8, [(9.9, 9), (1, 0)])  # Not 10 times the median.
    stalls = [event for event in told.events if event["event"] == "stall"]
    assert stalls == [{"event": "stall", "step": 5, "seconds": 10.1, "data": 9.0}]


def test_short_steps_stall_only_when_it_matters(made):
    clock, told, sheet = made
    sheet.start(0, "", 0)
    loop(sheet, clock, 5, [(0.1, 0), (0.1, 0), (4.9, 0), (0.1, 0), (0.1, 0)])
    assert [event["event"] for event in told.events] == ["start", "alive"]


@pytest.mark.parametrize(
    ("error", "event"), [(Diverged("x"), "diverged"), (RuntimeError("secret"), "failed")]
)
def test_a_failure_is_told_by_its_type_alone(made, error, event):
    clock, told, sheet = made
    with pytest.raises(type(error)), sheet.telling_failure():
        sheet.start(7, "", 0)
        clock.now += 4  # Compiling.
        raise error
    assert told.events[-1] == {
        "event": event,
        "step": 7,
        "skipped": 0,
        "seconds": {"compiling": 4.0},
        "error": type(error).__name__,
    }


def test_the_start_of_this_program():
    """Within a tick of the clock that Linux keeps it by, and a correction of the wall clock since."""
    assert time.time() - 7 * 86400 < program_start() <= time.time()
    assert program_start() == pytest.approx(program_start(), abs=0.1)
