"""The launcher: a command line and gin files become an Experiment and Hardware, and these a Trainer.

This is the one module that knows every model and data set: it registers them, for configurations to name them.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trainer import backend, config, config_files, durable, flags, workdir
from trainer.exits import (
    ConfigError,
    DataProblem,
    PreemptedExit,
    UsageError,
    UserError,
    one_line,
)
from trainer.preemption import stop_signal

if TYPE_CHECKING:
    from trainer.trainer import Trainer

INTERRUPTED = 130  # as shells report SIGINT


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Runs a command line, without the program's name; returns the exit code."""
    try:
        line = flags.parse(arguments)
        with stop_signal(_stopped_early):
            {"train": train, "evaluate": evaluate, "sample": sample}[line.mode](line, arguments)
    except flags.Answer as answer:
        print(str(answer).rstrip())
    except UserError as error:
        print(f"lockstep: {one_line(error)}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print(
            "lockstep: interrupted; start again to go on from the last checkpoint", file=sys.stderr
        )
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return UserError.code
    return 0


def _stopped_early(*_: object) -> NoReturn:
    """Until the training takes the signal over; nothing was learnt, so there is nothing to save."""
    raise PreemptedExit("stopped before the training began: start the same command again")


# ---------------------------------------------------------------------- modes


def train(line: flags.CommandLine, arguments: Sequence[str]) -> None:
    """Trains, or with `--dry_run` says what it would do and writes nothing."""
    folder = None if line.workdir is None else Path(line.workdir)
    configs = line.configs or _config_of(folder)
    bindings = config_files.read(configs, line.gin_params)
    if folder is not None and not line.dry_run:
        workdir.prepare(folder)
    names = registry()
    resolved = names.resolve(bindings)
    if folder is not None and workdir.holds_run(folder):
        before = names.resolve(config_files.read([str(folder / "config.gin")]))
        config.compare(before, resolved, _may_differ(names.root), str(folder))
    if line.dry_run:
        print(resolved.text)
        trainer = _trainer(names, resolved, line, None)
        with _data_problems():
            print(trainer.describe())
        return

    from trainer.trainer import Outcome

    assert folder is not None  # flags.parse sees to it
    trainer = _trainer(names, resolved, line, folder)
    if trainer.cluster.chief:
        workdir.record_start(folder, resolved.text, arguments)
    start = {"command": workdir.command(arguments), **workdir.versions()}
    texts = {
        "config": f"```\n{resolved.text}```",
        "start": "\n".join(f"- {name}: `{value}`" for name, value in start.items()),
    }
    with _data_problems():
        outcome = trainer.train(texts)
    if outcome is Outcome.PREEMPTED:
        raise PreemptedExit(
            f"preempted and saved in {folder}: start the same command again to go on"
        )
    if trainer.cluster.chief:
        if outcome is Outcome.ALREADY_DONE:
            steps = f"{names.root}.steps"
            print(
                f"already done: {resolved.bindings[steps]} steps; more with --gin_param={steps}=…"
            )
        print(_results(folder))


def evaluate(line: flags.CommandLine, arguments: Sequence[str]) -> None:
    """Prints the metrics of a run on its held-out examples, as a table and as one line of JSON."""
    trainer, step = _restored(line)
    with _data_problems():
        metrics = trainer.evaluate()
    if not trainer.cluster.chief:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{line.workdir}, step {step}", title_justify="left")
    table.add_column("metric")
    table.add_column("mean", justify="right")
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.6g}")
    Console().print(table)
    print(json.dumps({"step": step, **dict(sorted(metrics.items()))}))


def sample(line: flags.CommandLine, arguments: Sequence[str]) -> None:
    """Draws samples into the workdir and prints the path of the picture, or the texts."""
    trainer, step = _restored(line)
    count = line.count or trainer.experiment.samples
    seed = trainer.experiment.seed if line.seed is None else line.seed
    with _data_problems():
        decoded = trainer.sample(count, seed)
    if not trainer.cluster.chief:
        return
    from trainer import pictures

    path = Path(line.workdir or "") / "samples" / f"step-{step:08d}-seed-{seed}"
    workdir.prepare(path.parent)
    if isinstance(decoded, list):
        text = pictures.page(decoded)
        path = path.with_suffix(".txt")
        durable.write(path, text.encode(errors="replace"))
        print(text)
    else:
        path = path.with_suffix(".png")
        durable.write(path, pictures.png(pictures.grid(decoded)))
    print(path)


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


def _restored(line: flags.CommandLine) -> tuple[Trainer, int]:
    """The trainer of the run in the workdir, at the checkpoint asked for."""
    folder = Path(line.workdir or "")
    bindings = config_files.read([str(workdir.config_file(folder))], line.gin_params)
    names = registry()
    trainer = _trainer(names, names.resolve(bindings), line, folder)
    step = trainer.restore(line.checkpoint)
    if step == 0:
        raise ConfigError(f"workdir {folder} holds no checkpoint yet: train for longer first")
    return trainer, step


def _trainer(
    names: config.Registry, resolved: config.Resolved, line: flags.CommandLine, folder: Path | None
) -> Trainer:
    from trainer.cluster import Hardware
    from trainer.trainer import Trainer

    with _data_problems():
        try:
            return Trainer(names.build(resolved), Hardware(**line.hardware), folder)
        except ValueError as error:
            if _is_data_error(error):
                raise
            # The constructors of models and data refuse what does not fit by a ValueError.
            raise ConfigError(one_line(error)) from error


@contextlib.contextmanager
def _data_problems() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if _is_data_error(error):
            raise DataProblem(one_line(error)) from error
        raise


def _is_data_error(error: Exception) -> bool:
    from input_pipeline.batches import DataError

    return isinstance(error, DataError)


def _may_differ(root: str) -> set[str]:
    from trainer.experiment import MAY_CHANGE

    return {f"{root}.{name}" for name in MAY_CHANGE}


def _results(folder: Path) -> str:
    lines = {
        "samples": _newest(folder / "samples", "step-*"),
        "checkpoint": _newest(folder / "checkpoints", "step-*"),
        "curves": f"tensorboard --logdir {folder / 'summaries'}",
    }
    return "\n".join(f"{name + ':':<12}{value}" for name, value in lines.items() if value)


def _newest(folder: Path, pattern: str) -> Path | None:
    return max(
        folder.glob(pattern), key=lambda path: (path.stat().st_mtime, path.name), default=None
    )


# ---------------------------------------------------------------------- what configurations may name


def registry() -> config.Registry:
    """Everything that a configuration may name. Imports TensorFlow, every model and data set; starts no device."""
    backend.start()
    import keras

    from input_pipeline.digits import Digits
    from input_pipeline.split import Split
    from input_pipeline.text import pydoc_topics
    from input_pipeline.transforms import Binarize, Dequantize, Flip, Shift
    from models.gan import GAN
    from models.image_networks import (
        ConvolutionalDecoder,
        ConvolutionalEncoder,
        MLPDecoder,
        MLPEncoder,
    )
    from models.language_model import LSTMLanguageModel
    from models.objective import Optimizer
    from models.vae import VAE
    from trainer.experiment import Experiment

    names = config.Registry()
    for plain in (
        Experiment,
        Optimizer,
        Digits,
        pydoc_topics,
        Split,
        Binarize,
        Dequantize,
        Flip,
        Shift,
    ):
        names.register(plain)
    for objective in (GAN, VAE, LSTMLanguageModel):
        names.register(objective, given={"element_spec"})
    for network in (ConvolutionalEncoder, MLPEncoder, ConvolutionalDecoder, MLPDecoder):
        names.register(network, given={"shape", "inputs", "outputs", "noise", "name"})
    for rule in OPTIMIZERS:
        names.register(getattr(keras.optimizers, rule), elsewhere=OF_OPTIMIZERS)
    for schedule in SCHEDULES:
        names.register(getattr(keras.optimizers.schedules, schedule), elsewhere=NAMELESS)
    return names


OPTIMIZERS: tuple[str, ...] = (
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "Adamax",
    "AdamW",
    "Ftrl",
)
OPTIMIZERS += ("Lamb", "Lion", "RMSprop", "SGD")
SCHEDULES: tuple[str, ...] = ("CosineDecay", "CosineDecayRestarts", "ExponentialDecay")
SCHEDULES += ("InverseTimeDecay", "PiecewiseConstantDecay", "PolynomialDecay")

NAMELESS = {"name": "names decide nothing, remove it"}
OF_OPTIMIZERS = {
    "learning_rate": "set Optimizer.learning_rate",
    **dict.fromkeys(("clipnorm", "clipvalue", "global_clipnorm"), "set Optimizer.clip_norm"),
    **dict.fromkeys(
        ("use_ema", "ema_momentum", "ema_overwrite_frequency"), "set the average of the model"
    ),
    "loss_scale_factor": "the loss is scaled where Experiment.precision asks for it",
    "gradient_accumulation_steps": "use the flag --microbatch",
    **NAMELESS,
}


if __name__ == "__main__":
    run()
