"""Trains a configuration with several seeds, evaluates each, and prints their mean beside the published number.

What it did before in its folder it does not do again, and a training that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from trainer.preemption import stop_signal

CLASSIFIER = "classifier/mnist"
ONE_THREAD = "--intra_op_threads=1"
"""An operation, for a CPU: small networks train faster so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table.

    Attributes:
      metrics: what `lockstep evaluate` calls the numbers that are reproduced, with the name of the evaluation before; the first is
        that of `reference`.
      reference: the published number, and whose it is.
      train: flags of the training.
      evaluate: flags of each evaluation by its name.
      judged: by a training of `CLASSIFIER` on the same data.
    """

    metrics: Sequence[str]
    reference: str
    train: Sequence[str] = ()
    evaluate: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=lambda: {"": ()})
    judged: bool = False


NATS = {
    "metrics": ["negative_log_likelihood"],
    "train": [ONE_THREAD],
    "evaluate": {"": ["--gin_param=VAE.evaluation_samples=5000"]},
}
GAN = {
    "train": [ONE_THREAD, "--microbatch=32"],
    "evaluate": {"": [ONE_THREAD, "--microbatch=32"]},
    "judged": True,
}
ONE_STREAM = "--gin_param=validation/TextStreams.streams=1"
BURDA = "after 3,280 epochs (Burda et al. 2016)"
TUTORIAL = "151.4 (the DCGAN of TensorFlow's tutorial in 20 minutes on 2 CPU cores)"

ROWS = {
    "vae/mnist": Row(reference=f"86.76 {BURDA}", **NATS),
    "vae/mnist_iwae": Row(reference=f"85.54 {BURDA}", **NATS),
    "vae/mnist_iwae_50": Row(reference=f"84.78 {BURDA}", **NATS),
    "vae/mnist_two_layers": Row(reference=f"85.33 {BURDA}", **NATS),
    "vae/mnist_long": Row(reference=f"86.76 {BURDA}", **NATS),
    "gan/fashion": Row(
        metrics=["samples/frechet_distance", "real/frechet_distance"], reference=TUTORIAL, **GAN
    ),
    "gan/fashion_sn_resnet": Row(
        metrics=["samples/frechet_distance", "real/frechet_distance", "samples/recognised"],
        reference=TUTORIAL,
        **GAN,
    ),
    "lstm/shakespeare": Row(
        metrics=["loss"], reference="1.432 (a plain PyTorch loop of this size)"
    ),
    "lstm/words_small": Row(
        metrics=["validation/perplexity", "test/perplexity"],
        reference="120.7 and 114.5 of the Penn Treebank (Zaremba et al. 2014); of another text say its STEPS_PER_EPOCH and STEPS",
        evaluate={
            "validation/": [ONE_STREAM],
            "test/": [ONE_STREAM, '--gin_param=validation/TextStreams.part="test"'],
        },
    ),
    "transformer/shakespeare": Row(
        metrics=["loss"],
        reference="1.88 (nanoGPT's recipe for a CPU)",
        train=[ONE_THREAD, "--microbatch=6"],
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("row", choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument(
        "--data", required=True, help="folder of MNIST's or Fashion-MNIST's files, or a text"
    )
    parser.add_argument("--seeds", default="0,1,2", help="0,1,2 if not given")
    parser.add_argument("--workdir", default="runs/reproduced", help="runs/reproduced if not given")
    parser.add_argument(
        "--gin_param", action="append", default=[], help="changes the configuration"
    )
    line = parser.parse_args(arguments)
    if not all(seed.isdecimal() for seed in line.seeds.split(",")):
        parser.error(f"--seeds is {line.seeds}: give whole numbers with commas between, as 0,1,2")
    reproduce(line.row, line)


def reproduce(name: str, line: argparse.Namespace) -> None:
    row, folder = ROWS[name], pathlib.Path(line.workdir)
    data = f"--gin_param=DATA={json.dumps(str(pathlib.Path(line.data).absolute()))}"
    features = []
    if row.judged:
        classifier = folder / CLASSIFIER.replace("/", "-")
        lockstep("train", CLASSIFIER, data, workdir=classifier)
        features.append(f"--features={classifier}")
    changes = [f"--gin_param={change}" for change in line.gin_param]
    found = {}
    for seed in line.seeds.split(","):
        run = folder / "-".join([name.replace("/", "-"), *map(_in_a_name, line.gin_param), seed])
        seeded = f"--gin_param=Experiment.seed={seed}"
        lockstep("train", name, data, seeded, *row.train, *changes, workdir=run)
        results = {
            part + metric: value
            for part, flags in row.evaluate.items()
            for metric, value in lockstep("evaluate", *flags, *features, workdir=run).items()
        }
        seconds = lockstep("report", workdir=run)["wall_seconds"]
        found[seed] = {metric: results[metric] for metric in row.metrics}
        found[seed]["minutes"] = seconds / 60
    print_table(name, row, found)


def _in_a_name(change: str) -> str:
    """A change of the configuration as a part of a folder's name: another configuration has another folder."""
    return re.sub(r"[^\w.=]+", "_", change)[:60]


def lockstep(mode: str, *arguments: str, workdir: pathlib.Path) -> Any:
    """What the launcher prints last on stdout, if that is JSON.

    Raises:
      SystemExit: with its exit code, if it fails; it has said why.
    """
    words = [mode, *arguments, f"--workdir={workdir}"]
    print("lockstep", *words, file=sys.stderr, flush=True)
    # -P: else a folder of the user's that is called as one of ours would come first.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "trainer.main", *words],
        stdout=None if mode == "train" else subprocess.PIPE,
        text=True,
    )
    # A terminal sends Ctrl-C to both; what is sent to this process alone is passed on. The child saves, and says so.
    with (
        stop_signal(lambda number, _: process.send_signal(number)),
        stop_signal(lambda *_: None, [signal.SIGINT]),
    ):
        said, _ = process.communicate()
    if process.returncode:
        sys.exit(process.returncode if process.returncode > 0 else 128 - process.returncode)
    return None if mode == "train" else json.loads(said.splitlines()[-1])


def print_table(name: str, row: Row, found: Mapping[str, Mapping[str, float]]) -> None:
    """Metrics by seed, their mean and standard deviation, and a line of JSON."""
    table = rich.table.Table()
    for column in ("", *(f"seed {seed}" for seed in found), "mean", "deviation"):
        table.add_column(column, justify="right" if column else "left")
    means = {}
    for metric in next(iter(found.values())):
        values = [results[metric] for results in found.values()]
        mean = statistics.fmean(values)
        deviation = statistics.stdev(values) if len(values) > 1 else None
        means[metric] = {"mean": mean, "deviation": deviation}
        cells = [f"{number:.4g}" for number in (*values, mean)]
        table.add_row(metric, *cells, "" if deviation is None else f"{deviation:.2g}")
    print(f"{name}; reference: {row.reference}")
    rich.console.Console().print(table)
    print(json.dumps({"row": name, "seeds": found, "over seeds": means}))


if __name__ == "__main__":
    main()
