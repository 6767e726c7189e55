"""Milliseconds a step of a small transformer on the CPU, beside the same recipe in plain PyTorch.

nanoGPT's recipe for a CPU, the configuration transformer/shakespeare: 4 layers of width 128, 4 heads, 12 windows of 64
characters a step, AdamW. Ours is the trainer's own loop with a microbatch on each core (--intra_op_threads=1 --microbatch=6 of
12 on 2 cores), PyTorch's a plain one with its fused attention and optimiser, in a process of its own. Short rounds of each in
turn. With --full both are trained to the end, a round of each in turn, and judged by the whole last tenth of the text in
windows of 64.

    scripts/benchmark transformer
    scripts/benchmark transformer --full --data=input.txt
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from measuring import pytorch
from measuring.configuration import (
    WITHOUT_END,
    Configuration,
    alone,
    side_by_side,
    stepping,
    write_random_text,
)
from measuring.rounds import (
    Cost,
    Costs,
    best,
    compare,
    compared,
    median,
    processor,
    show,
    take_turns,
    timed,
)

from trainer.trainer import Trainer

CONFIGURATION = "transformer/shakespeare"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="train both to the end")
    parser.add_argument("--data", type=pathlib.Path, help="the text; random if not given")
    parser.add_argument("--xla", action="store_true", help="compile ours")
    parser.add_argument("--steps", type=int, default=20, help="steps a round")
    parser.add_argument("--rounds", type=int, default=25, help="of each, without --full")
    parser.add_argument(
        "--gin_param", action="append", default=[], help="changes the configuration"
    )
    line = parser.parse_args(arguments)
    if line.full and line.data is None:
        parser.error("--full needs --data: what is learnt of random characters says nothing")
    with tempfile.TemporaryDirectory() as scratch:
        measure(line, pathlib.Path(scratch))


def measure(line: argparse.Namespace, scratch: pathlib.Path) -> None:
    text = line.data or scratch / "text.txt"
    if line.data is None:
        write_random_text(text)
    end = [] if line.full else [WITHOUT_END]
    configuration = Configuration(CONFIGURATION, [f'DATA="{text}"', *end, *line.gin_param])
    # A program of XLA uses all cores by itself.
    batch = configuration["Experiment.global_batch"]
    hardware: dict[str, Any] = {"xla": "on"} if line.xla else side_by_side(batch)
    trainer = alone(configuration.experiment(), **hardware)
    rounds, rest = divmod(configuration["Experiment.steps"], line.steps)
    if line.full and rest:
        sys.exit(
            f"--steps={line.steps} does not divide {rounds * line.steps + rest} steps: choose another"
        )
    train = stepping(trainer)
    contestants: dict[str, Callable[[], Cost]] = {"lockstep": timed(lambda: train(line.steps))}
    torch = pytorch.start("pytorch_transformer.py", **settings(configuration, trainer, scratch))
    if torch:
        contestants["PyTorch"] = functools.partial(torch.cost, do="train", steps=line.steps)
    if not line.full:
        for run in contestants.values():
            run()  # Traces and compiles, which count where all of a training does.
    costs = take_turns(contestants, rounds if line.full else line.rounds)
    losses = {}
    if line.full:
        losses["lockstep"] = trainer.evaluate()["loss"]
        if torch:
            losses["PyTorch"] = torch.ask(do="evaluate")
    if torch:
        torch.close()
    report(line, costs, losses)


def settings(configuration: Configuration, trainer: Trainer, scratch: pathlib.Path) -> dict:
    """Of PyTorch's program, with the tokens in files."""
    corpus = trainer.experiment.source.corpus
    for part, tokens in corpus.parts.items():
        np.save(scratch / part, tokens)
    network = ("layers", "heads", "width")
    return {
        **{name: configuration[f"TransformerNetwork.{name}"] for name in network},
        **{part: str(scratch / f"{part}.npy") for part in corpus.parts},
        "vocabulary": corpus.tokenizer.size,
        "context": configuration["TextWindows.window"],
        "batch": configuration["Experiment.global_batch"],
        "steps": configuration["Experiment.steps"],
        "warmup": configuration["CosineDecay.warmup_steps"],
        "learning_rate": configuration["CosineDecay.warmup_target"],
        "final_share": configuration["CosineDecay.alpha"],
        "beta_2": configuration["AdamW.beta_2"],
        "weight_decay": configuration["AdamW.weight_decay"],
    }


def report(line: argparse.Namespace, costs: Costs, losses: dict[str, float]) -> None:
    """A table, the ratio, and everything as a line of JSON.

    Args:
      line: what was asked for.
      costs: of each round.
      losses: in nats a character, of trainings to the end.
    """
    rows, found = [], {}
    for name, rounds in costs.items():
        found[name] = {
            "milliseconds_per_step": 1e3 * median(rounds) / line.steps,
            "best_milliseconds_per_step": 1e3 * best(rounds) / line.steps,
            "processor_milliseconds_per_step": 1e3 * processor(rounds) / line.steps,
        }
        rows.append([name, *(f"{value:.2f}" for value in found[name].values())])
        if line.full:
            minutes = sum(cost.seconds for cost in rounds) / 60
            found[name] |= {"minutes": minutes, "nats": losses[name]}
            rows[-1] += [f"{minutes:.2f}", f"{losses[name]:.4f}"]
    columns = ["", "ms a step, median", "best", "processor"]
    if line.full:
        columns += ["minutes", "nats, last tenth"]
    count = len(costs["lockstep"])
    title = f"{CONFIGURATION}; {count} rounds of {line.steps} steps; TensorFlow {tf.__version__}"
    show(title, columns, rows)
    if "PyTorch" in costs:
        ratios = found["lockstep / PyTorch"] = compare(costs, "lockstep", "PyTorch")
        print(f"lockstep / PyTorch: {compared(ratios)}")
    print(json.dumps(found))


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    main()
