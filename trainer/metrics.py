"""The record of a run on disk: metrics.jsonl, and the same for TensorBoard, both rewound on resume.

Only the chief of a training with a workdir has a `MetricWriter`; others have a `NullWriter`. Nothing here imports
TensorFlow, as TensorBoard's `EventFileWriter` would, nor starts a thread: each event is one flushed write.
"""

from __future__ import annotations

import glob
import json
import math
import os
import pathlib
import re
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from trainer import durable, pictures
from trainer.exits import DataProblem

MOST_FRAMES = 50
"""Of an animation of a training."""


class MetricWriter:
    """Writes metrics, samples and texts of a run from a step on.

    Args:
      workdir: of the run; made if need be.
      resume_step: the step of the checkpoint from which the run goes on. What was written of
        later steps is dropped, for it will be written again. 0: from the start, nothing is kept.
    """

    def __init__(self, workdir: str | os.PathLike[str], resume_step: int = 0):
        self._workdir = pathlib.Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._kinds: set[str] = set()
        for path in self._workdir.glob("samples/step-*"):
            found = re.match(r"step-(\d{8,})[-.]", path.name)
            if found and int(found[1]) > resume_step:
                path.unlink()
        self._rows = _Rows(self._workdir / "metrics.jsonl", resume_step)
        self._events = _Events(self._workdir / "summaries", resume_step)

    def write(self, step: int, examples: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """The one row of a step, past every row before it. On return no kill can lose it."""
        self._rows.write(step, examples, seconds, metrics)
        self._events.scalars(step, metrics)

    def samples(
        self, step: int, decoded: np.ndarray | Sequence[str], classes: int | None = None
    ) -> pathlib.Path:
        """Samples of a step, to TensorBoard and to a file, which is returned.

        Args:
          step: after which they were drawn.
          decoded: uint8 pictures `[n, height, width, 1 or 3]`, or texts.
          classes: of pictures, see `pictures.grid`.
        """
        if isinstance(decoded, np.ndarray):
            return self._picture("samples", step, pictures.grid(decoded, classes), "")
        suffix, data = pictures.file(decoded)
        self._events.text("samples", step, pictures.markdown(decoded))
        return self._keep(f"step-{step:08d}{suffix}", data)

    def table(self, step: int, name: str, cells: np.ndarray) -> pathlib.Path:
        """A table of pictures, uint8 `[rows, columns, height, width, 1 or 3]`, to TensorBoard and to a file, which is returned."""
        return self._picture(name, step, pictures.table(cells), f"-{name}")

    def picture(self, step: int, name: str, picture: np.ndarray) -> pathlib.Path:
        """A picture, uint8 `[height, width, 3]`, to TensorBoard and to a file, which is returned."""
        return self._picture(name, step, picture, f"-{name}")

    def _picture(self, tag: str, step: int, picture: np.ndarray, ending: str) -> pathlib.Path:
        data = pictures.png(picture)
        self._events.picture(tag, step, picture.shape, data)
        self._kinds.add(ending)
        return self._keep(f"step-{step:08d}{ending}.png", data)

    def animate(self) -> None:
        """Writes `samples/training.gif` of the pictures of samples there are, if they are several; of tables and other pictures
        NAME likewise `samples/training-NAME.gif`. What others than a training have drawn there is none of them."""
        for ending in sorted(self._kinds):
            paths = sorted(self._workdir.glob(f"samples/step-????????{glob.escape(ending)}.png"))
            if len(paths) > 1:
                # The last is always among them.
                every = -(-len(paths) // MOST_FRAMES)
                frames = [path.read_bytes() for path in reversed(paths[::-1][::every])]
                self._keep(f"training{ending}.gif", pictures.animation(frames))

    def _keep(self, name: str, data: bytes) -> pathlib.Path:
        path = self._workdir / "samples" / name
        path.parent.mkdir(exist_ok=True)
        durable.write(path, data)
        return path

    def text(self, tag: str, markdown: str, step: int) -> None:
        """A text for TensorBoard, such as the configuration."""
        self._events.text(tag, step, markdown)

    def sync(self) -> None:
        """Returns when every row is on the disk, so that a checkpoint never is there before the rows up to its step."""
        self._rows.sync()

    def close(self) -> None:
        self._rows.close()
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def judged(
    workdir: pathlib.Path, step: int, found: Mapping[str, float], neighbours: np.ndarray
) -> None:
    """What was found of the samples of a step, to TensorBoard as a run of its own, `judged`, and their table to a file too.

    Beside the training's events, not among them: of a folder TensorBoard follows the newest file alone, and would miss what a
    training goes on to write.

    Args:
      workdir: of the run.
      step: whose weights drew the samples.
      found: name -> value.
      neighbours: samples beside their nearest training pictures, uint8 `[rows, columns, height, width, 1 or 3]`.
    """
    table = pictures.table(neighbours)
    data = pictures.png(table)
    durable.write(workdir / "samples" / f"step-{step:08d}-judged.png", data)
    events = _Events(workdir / "summaries" / "judged")
    events.scalars(step, found)
    events.picture("neighbours", step, table.shape, data)
    events.close()


class NullWriter:
    """A `MetricWriter` that writes nothing: where there is no workdir, and of every worker but the chief."""

    def write(self, step: int, examples: int, seconds: float, metrics: Mapping[str, float]) -> None:
        pass

    def samples(
        self, step: int, decoded: np.ndarray | Sequence[str], classes: int | None = None
    ) -> None:
        pass

    def table(self, step: int, name: str, cells: np.ndarray) -> None:
        pass

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        pass

    def animate(self) -> None:
        pass

    def text(self, tag: str, markdown: str, step: int) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class _Rows:
    """metrics.jsonl: one JSON object a line, its steps rising."""

    def __init__(self, path: pathlib.Path, resume_step: int):
        self._path = path
        self._last_step = rewind(path, resume_step)
        self._file = path.open("ab", buffering=0)
        durable.sync(path.parent)

    def write(self, step: int, examples: int, seconds: float, metrics: Mapping[str, float]) -> None:
        if step <= self._last_step:
            raise ValueError(
                f"a row of step {step} after one of step {self._last_step} in {self._path.name}: "
                "write all metrics of a step at once, and steps in order"
            )
        row = {
            "step": int(step),
            "examples": int(examples),
            "seconds": _finite(seconds),
            "metrics": {name: _finite(metrics[name]) for name in sorted(metrics)},
        }
        # A Python float's repr is the shortest text that reads back as the same bits.
        with durable.naming(self._path):
            durable.write_all(
                self._file.fileno(), json.dumps(row, allow_nan=False).encode() + b"\n"
            )
        self._last_step = step

    def sync(self) -> None:
        # By its name: it may be closed already while the last save is being made.
        durable.sync(self._path)

    def close(self) -> None:
        self._file.close()


def _finite(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None  # JSON has no NaN and no infinity.


def rewind(path: pathlib.Path, resume_step: int) -> int:
    """Drops rows past `resume_step` and what is torn at the end; returns the last step kept, or -1."""
    if not path.exists():
        return -1
    data = path.read_bytes()
    kept, end, last_step, torn = 0, 0, -1, None
    lines = data.split(b"\n")[:-1] if resume_step > 0 else []
    for number, line in enumerate(lines, 1):
        end += len(line) + 1
        try:
            step = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError):
            torn = torn or number  # Lost with the machine, if only rows to be dropped follow.
            continue
        if step > resume_step:
            break
        if torn:
            raise DataProblem(
                f"{path}, line {torn}, is not a row of metrics: "
                "mend the line, or move the file away"
            )
        kept, last_step = end, step
    if kept < len(data):
        durable.write(path, data[:kept])
    return last_step


class _Events:
    """One file of TensorBoard events for each start of a run.

    Of a run that rewinds, from `resume_step` on, the file begins with `SessionLog.START`, at which TensorBoard forgets the points of that step
    and later ones in older files. Without it curves zig-zag after a resume (TRAPS 22: tensorboard
    3732, 4840).
    """

    def __init__(self, folder: pathlib.Path, resume_step: int | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names. The usual name begins with the time
        # in seconds: two starts within one second, or a clock put back, must not change the order.
        starts = (
            re.match(r"events\.out\.tfevents\.(\d{10})\.", path.name) for path in folder.iterdir()
        )
        start = max([int(time.time()), *(int(match[1]) + 1 for match in starts if match)])
        self._file = (folder / f"events.out.tfevents.{start:010d}.{socket.gethostname()}").open(
            "xb"
        )
        self._records = RecordWriter(self._file)
        # Only from version 2 on does TensorBoard heed SessionLog.
        self._add(0, file_version="brain.Event:2")
        if resume_step is not None:
            log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(resume_step + 1 if resume_step > 0 else 0, session_log=log)

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [
            summary_pb2.Summary.Value(tag=tag, simple_value=float(metrics[tag]))
            for tag in sorted(metrics)
        ]
        self._add(step, summary=summary_pb2.Summary(value=values))

    def picture(self, tag: str, step: int, shape: tuple[int, ...], png: bytes) -> None:
        height, width, _ = shape
        metadata = image_metadata.create_summary_metadata(display_name=None, description=None)
        self._strings(tag, step, [b"%d" % width, b"%d" % height, png], [3], metadata)

    def text(self, tag: str, step: int, markdown: str) -> None:
        metadata = text_metadata.create_summary_metadata(display_name=None, description=None)
        self._strings(tag, step, [markdown.encode(errors="replace")], [], metadata)

    def close(self) -> None:
        self._file.close()

    def _strings(
        self, tag: str, step: int, strings: list[bytes], shape: list[int], metadata: Any
    ) -> None:
        sizes = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in shape]
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING,
            tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=sizes),
            string_val=strings,
        )
        value = summary_pb2.Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
        self._add(step, summary=summary_pb2.Summary(value=[value]))

    def _add(self, step: int, **what: Any) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step, **what)
        self._records.write(event.SerializeToString())
        self._file.flush()
