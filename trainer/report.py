"""Goodput: the productive share of a run's wall-clock time, and where the rest went, from the events of its ledger."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.exits import ConfigError
from trainer.ledger import events
from trainer.lock import holder

KINDS = {
    "steps": "productive: steps whose result was kept",
    "building": "start-up: imports, building, reading data",
    "waiting": "start-up: waiting for other workers",
    "compiling": "start-up: to the end of the first step",
    "evaluation": "evaluation",
    "samples": "samples",
    "saves": "waiting for saves",
    "data": "waiting for data",
    "again": "steps that a kill or a rollback undid",
    "down": "down: from a last sign of life to the next start",
    "other": "between steps: metrics, summaries, logs",
}
"""What wall-clock time goes into -> what a person reads."""

COUNTED = tuple("start restore save rollback stall retry bad_record damaged lost takeover".split())
ENDS = ("preempted", "interrupted", "diverged", "failed", "done")
SIGNS = ("alive", *ENDS)
"""Events that tell the step and the seconds so far."""
SILENT_SECONDS = 120
"""Without a sign of life for so long, a run without an end is not known to be running."""


@dataclasses.dataclass(frozen=True)
class Goodput:
    """What became of a run's time.

    Attributes:
      seconds: by kind, see `KINDS`; their sum is the wall-clock time from the first start to the last sign of life, without
        the time between the end of a run and a start that gave it more steps.
      state: "done", "preempted", "interrupted", "diverged", "failed", "running", "killed", or "silent": killed on another
        machine, hung, or in a long evaluation.
      step: the last that is known of, of a save or a sign of life.
      silent_seconds: since the last sign of life.
      steps_again: that a kill or a rollback undid, as far as is known.
      skipped: updates that were not made, since they were not finite.
      counts: events by name, of `COUNTED`.
    """

    seconds: dict[str, float]
    state: str
    step: int
    silent_seconds: float
    steps_again: int
    skipped: int
    counts: dict[str, int]

    @property
    def wall_seconds(self) -> float:
        return math.fsum(self.seconds.values())

    @property
    def shares(self) -> dict[str, float]:
        """Of the wall-clock time by kind; their sum is 1, or 0 if no time has passed."""
        total = self.wall_seconds or 1.0
        return {kind: seconds / total for kind, seconds in self.seconds.items()}

    def print(self, title: str) -> None:
        """A table, what was counted, and a line of JSON."""
        from rich.table import Table

        from trainer.tables import show

        table = Table()
        table.add_column("where the time went")
        table.add_column("seconds", justify="right")
        table.add_column("share", justify="right")
        for kind, share in self.shares.items():
            table.add_row(KINDS[kind], f"{self.seconds[kind]:,.1f}", f"{100 * share:.2f} %")
        table.add_section()
        table.add_row("wall-clock", f"{self.wall_seconds:,.1f}", "")
        print(f"{title}: {self.state} at step {self.step}")
        show(table)
        counted = {"skipped updates": self.skipped, "steps again": self.steps_again, **self.counts}
        print(", ".join(f"{name} {count}" for name, count in counted.items()))
        facts = {
            "goodput": round(self.shares["steps"], 6),
            "wall_seconds": round(self.wall_seconds, 3),
            **{k: v for k, v in dataclasses.asdict(self).items() if k not in ("seconds", "counts")},
            "seconds": {kind: round(seconds, 3) for kind, seconds in self.seconds.items()},
            "shares": {kind: round(share, 6) for kind, share in self.shares.items()},
            "events": self.counts,
        }
        print(json.dumps(facts))


def report(workdir: Path, now: float | None = None) -> Goodput:
    """What became of the time of the run in a folder.

    Args:
      workdir: of a run, which may be training, killed or done.
      now: seconds since 1970.

    Raises:
      ConfigError: if nothing was started there.
    """
    path = workdir / "events.jsonl"
    found = events(path)
    if not any(event["event"] == "start" for event in found):
        raise ConfigError(
            f"workdir {workdir} holds no start of a training ({path} is missing or empty): train one, or choose another"
        )
    owner = holder(workdir)
    return goodput(
        found,
        time.time() if now is None else now,
        done=(workdir / "DONE").exists(),
        gone=owner is not None and owner.alive() is False,
    )


def goodput(
    found: Sequence[dict[str, Any]], now: float, done: bool = False, gone: bool = False
) -> Goodput:
    """What became of the time of a run with these events, of which one at least is a start.

    Args:
      found: events in their order.
      now: seconds since 1970.
      done: whether it is known otherwise that all steps are done.
      gone: whether it is known otherwise that the process is gone.
    """
    seconds = dict.fromkeys(KINDS, 0.0)
    mark: dict[str, Any] | None = None
    path: list[_Stretch] = []
    step = again = skipped = saved = 0
    for event, floor in zip(found, _floors(found), strict=True):
        name = event["event"]
        if name == "start":
            starting = {kind: float(event[kind]) for kind in ("building", "waiting")}
            if mark and mark["event"] != "done":
                seconds["down"] += max(event["time"] - sum(starting.values()) - mark["time"], 0)
            for kind, spent in starting.items():
                seconds[kind] += spent
            mark, path, step = {**event, "seconds": {}}, [], event["step"]
            saved = step
        elif name == "save":
            saved = event["step"]
        elif name == "rollback":
            path.append(_Stretch(step, event["step"], floor))
            step = saved = event["to"]
        elif mark and name in SIGNS:
            path.append(_Stretch(step, event["step"], floor))
            taken, kept = sum(one.taken for one in path), sum(one.kept for one in path)
            _spend(seconds, mark, event, kept / taken if taken else 1.0)
            again += taken - kept
            mark, path, step, skipped = event, [], event["step"], event["skipped"]
    assert mark is not None
    silent = max(now - mark["time"], 0)
    state = mark["event"] if mark["event"] in ENDS else "running"
    if state == "running" and (gone or silent > SILENT_SECONDS):
        state = "killed" if gone else "silent"
    counts = {name: sum(event["event"] == name for event in found) for name in COUNTED}
    return Goodput(
        seconds,
        "done" if done else state,
        max(step, saved),
        round(silent, 3),
        again,
        skipped,
        counts,
    )


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """Steps that a process made one after another.

    Attributes:
      first, last: the step before them, and that which they reached.
      floor: the lowest step to which the run went back later; what is past it was made again.
    """

    first: int
    last: int
    floor: float

    @property
    def taken(self) -> int:
        return max(self.last - self.first, 0)

    @property
    def kept(self) -> int:
        return min(max(int(min(self.last, self.floor)) - self.first, 0), self.taken)


def _floors(found: Sequence[dict[str, Any]]) -> list[float]:
    """For each event the lowest step to which it or a later one went back, infinite if none does."""
    back = {"start": "step", "rollback": "to"}
    steps = [event[back[event["event"]]] if event["event"] in back else math.inf for event in found]
    return list(itertools.accumulate(reversed(steps), min))[::-1]


def _spend(
    seconds: dict[str, float], mark: dict[str, Any], event: dict[str, Any], kept: float
) -> None:
    """Adds the time between two signs of life of a process; `kept` is the share of its steps that stayed."""
    spent = {k: v - mark["seconds"].get(k, 0.0) for k, v in event["seconds"].items()}
    seconds["other"] += max(event["time"] - mark["time"] - sum(spent.values()), 0)
    steps = spent.pop("steps", 0.0)
    seconds["steps"] += kept * steps
    seconds["again"] += (1 - kept) * steps
    for kind, value in spent.items():
        seconds[kind] += value
