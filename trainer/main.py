"""The launcher: a command line and gin files become an Experiment and Hardware, and these a Trainer."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trainer import backend, config, config_files, durable, flags, lock, peers, workdir
from trainer.catalogue import registry
from trainer.exits import (
    INTERRUPTED,
    ConfigError,
    PreemptedExit,
    UsageError,
    UserError,
    file_problem,
    is_check,
    one_line,
)
from trainer.hardware import Hardware, workers
from trainer.output import discard, say
from trainer.preemption import Asked, ignore_stop_signals, stop_signal

if TYPE_CHECKING:
    from trainer.judge import Judge
    from trainer.trainer import Trainer

NEIGHBOURED = 8
"""Samples that are shown beside their nearest training pictures."""


def run() -> None:
    """The console script."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        # It is closed: else a file would get its number, and what C prints.
        if getattr(sys, name) is None:
            discard(number)
            setattr(sys, name, os.fdopen(number, "w"))
    # Question marks for what its encoding has not.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    backend.end(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Runs a command line, without the program's name; returns the exit code."""
    line = None
    try:
        try:
            line = _line(arguments)
            if line:
                _run(line, arguments)
            sys.stdout.flush()
        except OSError as error:
            if error.errno is None or isinstance(error, BrokenPipeError):
                raise
            raise _file_problem(error, line) from error
    except UserError as error:
        _say(f"lockstep: {one_line(error)}")
        return error.code
    except BrokenPipeError:
        # What reads our output wants no more of it, as head does; nothing must be written at exit either.
        discard(sys.stdout.fileno())
    except KeyboardInterrupt:
        _say(f"lockstep: interrupted; {_again(line)}")
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return UserError.code
    return 0


def _line(arguments: Sequence[str]) -> flags.CommandLine | None:
    """What the command line asks for, None if it is a text, which is printed."""
    try:
        return flags.parse(arguments)
    except flags.Answer as answer:
        print(answer)
        return None


def _run(line: flags.CommandLine, arguments: Sequence[str]) -> None:
    modes = (train, evaluate, sample, report, verify, doctor)
    mode = {function.__name__: function for function in modes}[line.mode]
    try:
        mode(line, arguments)
    except Exception as error:
        problem = _peer_problem(error, line) or _memory_problem(error)
        if problem is None:
            raise
        raise problem from error


def _peer_problem(error: Exception, line: flags.CommandLine) -> UserError | None:
    """What TensorFlow's error says of other workers, None if it says nothing of them."""
    if isinstance(error, UserError) or line.mode not in ("train", "evaluate", "sample"):
        return None
    found = workers(line.hardware, os.environ)
    return peers.lost(error, found.hosts, found.worker)


def _memory_problem(error: Exception) -> UserError | None:
    """What to do if memory was used up, of the machine or of a device; None if it was not."""
    resource_exhausted = (
        getattr(error, "error_code", None) == 8
    )  # Of TensorFlow, also of disks and queues.
    said = re.search("OOM|out of memory|allocat", str(error), re.IGNORECASE)
    if not isinstance(error, MemoryError) and not (resource_exhausted and said):
        return None
    return UserError(
        "out of memory: give a --microbatch with fewer examples, which changes nothing that is learnt, more devices, or a "
        f"smaller model ({one_line(error)[:200]})"
    )


def _say(text: str) -> None:
    """To stderr: stdout is for results alone."""
    say(text, sys.stderr)


def _file_problem(error: OSError, line: flags.CommandLine | None) -> UserError:
    path = Path(str(error.filename or "")).absolute()
    of_run = line and line.workdir and path.is_relative_to(Path(line.workdir).absolute())
    instead = "choose another --workdir" if of_run or not error.filename else None
    return file_problem(error, "a file of the run", _again(line), instead)


def _again(line: flags.CommandLine | None) -> str:
    """What to do after a stop."""
    if line and line.mode != "train":
        return "give the same command again"
    return "start again to go on from the last checkpoint"


# ---------------------------------------------------------------------- modes


def train(line: flags.CommandLine, arguments: Sequence[str]) -> None:
    """Trains, or with `--dry_run` says what it would do and writes nothing."""
    with contextlib.ExitStack() as held:
        _train(line, arguments, held)


def _train(line: flags.CommandLine, arguments: Sequence[str], held: contextlib.ExitStack) -> None:
    folder = None if line.workdir is None else Path(line.workdir)
    statements = config_files.read(line.configs or _config_of(folder), line.gin_params)
    with _stoppable():
        names = registry()
        resolved = names.resolve(statements, line.allow_imports)

        def check_same_run() -> None:
            if folder is not None and workdir.holds_run(folder):
                file = config_files.read([str(folder / "config.gin")])
                before = names.resolve(file, line.allow_imports)
                names.compare(before, resolved, _may_differ(names.root, resolved), str(folder))

        check_same_run()
        if folder is None or line.dry_run:
            print(resolved.text)
            trainer = _trainer(names, resolved, line.hardware, None)
            with _data_problems():
                print(trainer.describe())
            return
        workdir.prepare(folder)
        found, command = workers(line.hardware, os.environ), workdir.command(arguments)
        fence = held.enter_context(lock.held(folder, command, found, _say))
        check_same_run()  # Another may have trained here until it gave the lock back.
        trainer = _trainer(names, resolved, line.hardware, folder, fence)
        # What does not fit must not show after an hour.
        judge = None if line.features is None else _judge(line, trainer)

        from trainer.timesheet import program_start
        from trainer.trainer import Outcome

        trainer.timesheet.began = program_start()
        start = {"command": workdir.command(arguments), **workdir.versions()}
        texts = {
            "config": f"```\n{resolved.text}```",
            "start": "\n".join(f"- {name}: `{value}`" for name, value in start.items()),
        }
    stop = Asked()
    # Also before and after the training takes the signal over.
    with _data_problems(), stop_signal(stop.ask):
        outcome = trainer.train(
            texts, lambda: workdir.record_start(folder, resolved.text, arguments, _say), stop
        )
        if outcome is Outcome.PREEMPTED:
            ignore_stop_signals()
    if outcome is Outcome.PREEMPTED:
        raise PreemptedExit(
            f"preempted and saved in {folder}: start the same command again to go on"
        )
    if trainer.cluster.chief:
        if outcome is Outcome.ALREADY_DONE:
            steps = int(trainer.step.number.numpy())
            print(f"already done: {steps} steps; more with --gin_param={names.root}.steps=…")
        if judge:
            compared = _compared(line, trainer, judge)
            _print_table(f"samples in the eyes of {judge.name}", compared)
        print(_results(folder))


def evaluate(line: flags.CommandLine, arguments: Sequence[str]) -> None:
    """Prints metrics as tables and as one line of JSON: of held-out examples, and with `--features` of samples."""
    trainer, step = _run_of(line)
    judge = None if line.features is None else _judge(line, trainer)
    metrics: dict[str, float] = {}
    baseline: Mapping[str, float] = {}
    compared: dict[str, dict[str, float]] = {}
    with _data_problems():
        if judge is None or trainer.experiment.validation is not None:
            baseline = trainer.baseline()
            metrics = trainer.evaluate()
        if judge:
            compared = _compared(line, trainer, judge)
    if not trainer.cluster.chief:
        return
    title = ", ".join([str(line.workdir), f"step {step}", *line.gin_params])
    if metrics:
        # It says of how much text it is, once it is computed.
        beside = {str(trainer.experiment.baseline): baseline} if baseline else {}
        _print_table(title, {"mean": metrics} | beside)
    if judge:
        _print_table(f"{title}, {judge.count:,} pictures in the eyes of {judge.name}", compared)
    space = {"features": judge.name, "pictures": judge.count} if judge else {}
    metrics |= {f"baseline/{name}": value for name, value in baseline.items()}
    metrics |= _of_kinds(compared)
    # JSON has no NaN and no infinity.
    finite = {k: value if math.isfinite(value) else None for k, value in sorted(metrics.items())}
    print(json.dumps({"step": step, **space, **finite}, allow_nan=False))


def _judge(line: flags.CommandLine, trainer: Trainer) -> Judge:
    """The judge of `--features`, see `trainer.judge`."""
    from trainer.features import WEIGHTS, ClassifierNet, FeatureNet, InceptionNet
    from trainer.judge import Judge

    path = Path(line.features or "")
    with _data_problems():
        net: FeatureNet
        if path.is_file() or path.suffix in WEIGHTS:
            net = InceptionNet(path, Path(line.workdir or ""), trainer.devices)
        else:
            hardware = Hardware(strategy="one_device")
            with config.kept():
                classifier, _ = restored(
                    path, hardware, allow_imports=line.allow_imports, named="--features="
                )
            net = ClassifierNet(classifier, trainer.devices)
        return Judge(net, trainer, line.count)


def _compared(
    line: flags.CommandLine, trainer: Trainer, judge: Judge
) -> dict[str, dict[str, float]]:
    """Samples and real pictures; shows samples beside their nearest training pictures in the workdir."""
    from trainer.metrics import judged
    from trainer.real_pictures import nearest

    with _data_problems():
        samples = trainer.sample(judge.count, _seed(line, trainer))
        neighbours = nearest(trainer.batches, samples[:NEIGHBOURED])
    compared = {"samples": judge(samples, trainer.classes), "real": judge.floor}
    folder, step = Path(line.workdir or ""), int(trainer.step.number.numpy())
    try:
        workdir.prepare(folder / "samples")
        judged(folder, step, _of_kinds(compared), neighbours)
    except (OSError, UserError) as error:
        _say(f"the samples' nearest neighbours are not kept: {one_line(error)}")
    return compared


def _of_kinds(compared: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {
        f"{kind}/{name}": value for kind, row in compared.items() for name, value in row.items()
    }


def _seed(line: flags.CommandLine, trainer: Trainer) -> int:
    return trainer.experiment.seed if line.seed is None else line.seed


def _print_table(title: str, columns: Mapping[str, Mapping[str, float]]) -> None:
    from rich.table import Table

    from trainer.tables import show

    table = Table()
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    names = {name for column in columns.values() for name in column}
    # loss_at_16 comes after loss_at_2.
    for name in sorted(names, key=lambda name: re.sub(r"\d+", lambda n: n[0].zfill(9), name)):
        cells = (f"{column[name]:.6g}" if name in column else "" for column in columns.values())
        table.add_row(name, *cells)
    print(title)
    show(table)


def sample(line: flags.CommandLine, arguments: Sequence[str]) -> None:
    """Draws samples into the workdir and prints the paths of the pictures, or the texts: on a terminal the first while it is drawn."""
    trainer, step = _run_of(line, _decoding(line))
    count = line.count or trainer.experiment.samples
    if not count:
        raise UsageError("the configuration has samples = 0: give --count")
    if line.array and "image" not in trainer.batches.element_spec:
        raise UsageError(
            f"--array is for pictures, which {type(trainer.objective).__name__} draws none of: remove it"
        )
    seed = _seed(line, trainer)
    with _data_problems():
        shown = sys.stdout.isatty() and trainer.cluster.chief
        watched = shown and trainer.streams and line.label is None
        first = [_print_growing(trainer.stream(seed, line.prompt), count)] if watched else []
        if watched and count == 1:
            decoded = first
        else:
            decoded = trainer.sample(count, seed, line.prompt, line.label)
        tables = trainer.pictures()
    if not trainer.cluster.chief:
        return
    import numpy as np

    from trainer import pictures

    of_class = "" if line.label is None else f"-class-{line.label}"
    suffix, data = pictures.file(decoded, None if of_class else trainer.classes)
    if suffix == ".txt" and len(first) < count:
        print(pictures.page(decoded, skip=len(first)), flush=True)
    folder = Path(line.workdir or "") / "samples"
    workdir.prepare(folder)
    path = _written(folder / f"step-{step:08d}-seed-{seed}{of_class}{suffix}", data)
    print(path)
    if line.array:
        array = io.BytesIO()
        np.save(array, decoded)
        print(_written(path.with_suffix(".npy"), array.getvalue()))
    for name, cells in tables.items():
        table = pictures.png(pictures.table(cells))
        print(_written(folder / f"step-{step:08d}-{name}.png", table))


def _written(path: Path, data: bytes) -> Path:
    """Writes a file and returns its path: with a number in its name if another was there, drawn in another way."""
    stem, number = path.stem, 1
    while path.exists() and path.read_bytes() != data:
        number += 1
        path = path.with_stem(f"{stem}-{number}")
    durable.write(path, data)
    return path


def report(line: flags.CommandLine, arguments: Sequence[str]) -> None:
    """Prints where the time of a run went as a table and as one line of JSON."""
    from trainer.report import report

    report(Path(line.workdir or "")).print(line.workdir or "")


def verify(line: flags.CommandLine, arguments: Sequence[str]) -> None:
    """Prints which files of a run are whole as a table and as one line of JSON, and ends with 65 if one is not."""
    from trainer.verify import verify

    verified = verify(Path(line.workdir or ""))
    verified.print()
    if verified.problem:
        raise verified.problem


def doctor(line: flags.CommandLine, arguments: Sequence[str]) -> None:
    """Prints what is here as a table and as one line of JSON, and ends as the first problem would end a training."""
    from trainer.doctor import examine

    report = examine(
        line.hardware, os.environ, None if line.workdir is None else Path(line.workdir)
    )
    report.print()
    if report.problem:
        raise report.problem


def _decoding(line: flags.CommandLine) -> list[str]:
    """The flags that say how texts are drawn, as parameters of Decoding wherever the run's configuration has it."""
    if not line.decoding:
        return []
    file = workdir.config_file(Path(line.workdir or ""))
    bindings = config_files.read([str(file)], line.gin_params).bindings
    places = sorted({b.key.rpartition(".")[0] for b in bindings if b.name == "Decoding"})
    if not places:
        raise UsageError(
            f"--{next(name for name in flags.DECODING if name in line.decoding)} is for models that draw texts, and the "
            f"configuration of {line.workdir} has no @Decoding(): remove it"
        )
    values = line.decoding.items()
    return [f"{place}.{name}={value!r}" for place in places for name, value in values]


def _print_growing(texts: Iterator[str], count: int) -> str:
    """Prints the first of several texts while it grows, and an empty line; returns it."""
    from trainer import pictures
    from trainer.growing_text import pieces

    text = ""
    if count > 1:
        print(pictures.heading(1, count))
    for piece in pieces(texts):
        print(piece, end="", flush=True)
        text += piece
    print("\n")
    return text


# ---------------------------------------------------------------------- steps of the modes


def _config_of(folder: Path | None) -> list[str]:
    """A run goes on without naming its configuration again."""
    if folder is not None and (folder / "config.gin").is_file():
        return [str(folder / "config.gin")]
    names = config_files.shipped()
    there = f" (there are: {', '.join(names)})" if names else ""
    raise UsageError(
        f"no configuration: name one, such as lockstep train {names[0] if names else 'FILE.gin'}{there}"
    )


def _run_of(line: flags.CommandLine, gin_params: Sequence[str] = ()) -> tuple[Trainer, int]:
    """The trainer of the run in the workdir, at the checkpoint asked for; more parameters win over those of the line."""
    folder = Path(line.workdir or "")
    params = [*line.gin_params, *gin_params]
    return restored(folder, line.hardware, line.checkpoint, params, line.allow_imports)


def restored(
    folder: Path,
    hardware: Hardware,
    which: str = "last",
    gin_params: Sequence[str] = (),
    allow_imports: bool = False,
    named: str = "workdir ",
) -> tuple[Trainer, int]:
    """The trainer of the run in a folder at a checkpoint, and its step; `named` is what an error calls the folder."""
    statements = config_files.read([str(workdir.config_file(folder, named))], gin_params)
    names = registry()
    trainer = _trainer(names, names.resolve(statements, allow_imports), hardware, folder)
    step = trainer.restore(which)
    if step == 0:
        raise ConfigError(f"{named}{folder} holds no checkpoint yet: train for longer first")
    return trainer, step


def _trainer(
    names: config.Registry,
    resolved: config.Resolved,
    hardware: Hardware,
    folder: Path | None,
    fence: Callable[[], None] = lambda: None,
) -> Trainer:
    from trainer.trainer import Trainer

    with _data_problems():
        try:
            return Trainer(names.build(resolved), hardware, folder, note=_say, fence=fence)
        except (ValueError, TypeError) as error:
            # The constructors of models and data refuse what does not fit so.
            if _is_data_error(error) or not is_check(error, resolved.modules):
                raise
            raise ConfigError(one_line(error)) from error


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Ends the run on SIGTERM before the training takes the signal over: nothing was learnt that must be saved."""
    stopped = PreemptedExit("stopped before the training began: start the same command again")
    asked = False

    def stop(*_: object) -> NoReturn:
        nonlocal asked
        asked = True
        raise stopped

    try:
        with stop_signal(stop):
            yield
    except Exception:
        if not asked:
            raise
    if asked:  # Even where an import or a library has swallowed the error.
        raise stopped


@contextlib.contextmanager
def _data_problems() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        from trainer.data_errors import data_problem

        problem = data_problem(error)
        if problem is None:
            raise
        raise problem from error


def _is_data_error(error: Exception) -> bool:
    from input_pipeline.batches import DataError

    return isinstance(error, DataError)


def _may_differ(root: str, resolved: config.Resolved) -> set[str]:
    from trainer.experiment import MAY_CHANGE, MAY_CHANGE_ANYWHERE, MAY_MOVE
    from trainer.rollback import DECIDE

    decide = DECIDE if resolved.bindings.get(f"{root}.rollback", "None") != "None" else ()
    anywhere = {key for key in resolved.bindings if key.rpartition(".")[2] in MAY_CHANGE_ANYWHERE}
    anywhere |= {key for key in resolved.bindings if key.rpartition("/")[2] in MAY_MOVE}
    return anywhere | {f"{root}.{name}" for name in set(MAY_CHANGE).difference(decide)}


def _results(folder: Path) -> str:
    lines = {
        "samples": _newest(folder / "samples", "step-????????.*"),
        "checkpoint": _newest(folder / "checkpoints", "step-*"),
        "curves": f"tensorboard --logdir {shlex.quote(str(folder / 'summaries'))}",
    }
    return "\n".join(f"{name + ':':<12}{value}" for name, value in lines.items() if value)


def _newest(folder: Path, pattern: str) -> Path | None:
    return max(
        folder.glob(pattern), key=lambda path: (path.stat().st_mtime, path.name), default=None
    )


if __name__ == "__main__":
    run()
