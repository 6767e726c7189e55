"""Tokens a second of LSTM training on the CPU beside Keras and PyTorch, and their share of the peak of matrix products.

The language model of the configuration lstm/shakespeare with longer windows, trained on random characters: 2 layers of 512
units, 64 streams of 100 characters, the state carried, gradients clipped, AdamW. Ours is the trainer's own loop, Keras' is
`fit`, PyTorch's a plain loop in a process of its own. Short rounds of each in turn; the peak is measured in the same rounds, in
each precision that of the best of TensorFlow's and PyTorch's products of large square matrices. Shares compare the best rounds
of both.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf
from measuring import flops, pytorch, recurrences
from measuring.configuration import (
    CHARACTERS,
    WITHOUT_END,
    Configuration,
    alone,
    stepping,
    write_random_text,
)
from measuring.rounds import (
    Cost,
    Costs,
    Stopwatch,
    best,
    compare,
    compared,
    median,
    processor,
    show,
    take_turns,
    timed,
)

from input_pipeline.noise import Noise
from models.lstm import LSTM
from trainer.precision import PRECISIONS

CONFIGURATION = "lstm/shakespeare"
WINDOW = "WINDOW=100"
SIDES = (2048, 4096)
FRAMEWORKS = ("lockstep", "Keras", "PyTorch")
RECURRENCES = {
    "block": recurrences.block,
    "chunks": recurrences.chunks,
    "loop": recurrences.loop,
    "unrolled": recurrences.unrolled,
}
"""Other ways to compute what our layer does, in float32."""
COLUMNS = ("", "tokens/s, median", "best", "GFLOP/s, best", "of the peak", "processor, µs/token")
Settings = Mapping
"""streams, window, vocabulary, embedding, widths, dropout, learning_rate, weight_decay."""


# ---------------------------------------------------------------------- language models


def lockstep_training(
    parameters: Sequence[str], precision: str, xla: bool
) -> Callable[[int], None]:
    """The whole trainer."""
    parameters = [*parameters, f'Experiment.precision="{precision}"']
    experiment = Configuration(CONFIGURATION, parameters).experiment()
    return stepping(alone(experiment, xla="on" if xla else "auto"))


class KerasTraining:
    """`fit`, as many steps an execution as a round has; what it does before the first and after the last is not counted."""

    def __init__(self, settings: Settings, precision: str, xla: bool, steps: int) -> None:
        streams, window, widths = settings["streams"], settings["window"], settings["widths"]
        with PRECISIONS[precision].building():
            layers = [keras.layers.Embedding(settings["vocabulary"], settings["embedding"])]
            # The cuDNN kernel and XLA exclude each other.
            options = {"return_sequences": True, "stateful": True, "use_cudnn": False}
            for units in widths:
                layers += [
                    keras.layers.Dropout(settings["dropout"]),
                    keras.layers.LSTM(units, **options),
                ]
            layers += [
                keras.layers.Dropout(settings["dropout"]),
                keras.layers.Dense(settings["vocabulary"]),
                keras.layers.Activation("linear", dtype="float32"),
            ]
            inputs = keras.Input(batch_shape=(streams, window), dtype="int32")
            self._model = keras.Sequential([inputs, *layers])
        self._model.compile(
            keras.optimizers.AdamW(
                settings["learning_rate"],
                weight_decay=settings["weight_decay"],
                global_clipnorm=1.0,
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            steps_per_execution=steps,
            jit_compile=xla,
        )
        tokens = tf.random.uniform([streams, window + 1], 0, settings["vocabulary"], tf.int32)
        self._data = tf.data.Dataset.from_tensors((tokens[:, :-1], tokens[:, 1:])).repeat(steps)

    def __call__(self) -> Cost:
        execution = Execution()
        self._model.fit(self._data, shuffle=False, callbacks=[execution], verbose=0)
        return execution.cost


class Execution(keras.callbacks.Callback):
    """What the steps of `fit` cost that are one execution."""

    def on_train_batch_begin(self, batch: int, logs: Mapping | None = None) -> None:
        self._stopwatch = Stopwatch()

    def on_train_batch_end(self, batch: int, logs: Mapping | None = None) -> None:
        self.cost = self._stopwatch.read()


# ---------------------------------------------------------------------- the layers alone


def layers_step(
    framework: str, settings: Settings, precision: str, xla: bool
) -> Callable[[], tf.Tensor]:
    """Forward and backward of the recurrent layers, Keras', or ours or another way; returns the gradient of their inputs."""
    layers: list[keras.layers.Layer] = []
    width = settings["embedding"]
    with PRECISIONS[precision].building():
        for i, units in enumerate(settings["widths"]):
            if framework == "Keras":
                layer = keras.layers.LSTM(units, return_sequences=True, use_cudnn=False)
            else:
                layer = LSTM(units, Noise(0, f"lstm_{i}", rows=1), f"lstm_{i}")
            layer.build((settings["streams"], settings["window"], width))
            layers.append(layer)
            width = units
    weights = [variable.value for layer in layers for variable in layer.trainable_variables]
    shape = settings["streams"], settings["window"]
    x = tf.random.normal([*shape, settings["embedding"]])
    d_y = tf.random.normal([*shape, width])

    @tf.function(jit_compile=xla)
    def gradients(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for layer in layers:
                if framework in RECURRENCES:
                    weights_of = (layer.kernel, layer.recurrent_kernel, layer.bias)
                    y = RECURRENCES[framework](y, *(weight.value for weight in weights_of))
                else:
                    y = layer(y)[0] if framework == "lockstep" else layer(y)
        return tape.gradient(y, [x, *weights], output_gradients=tf.cast(d_y, y.dtype))

    return lambda: gradients(x)[0]


# ---------------------------------------------------------------------- the peak


def product(precision: str, side: int) -> Callable[[], tf.Tensor]:
    """A product of square matrices."""
    matrix = tf.cast(tf.random.normal([side, side]), precision)
    return tf.function(lambda: tf.matmul(matrix, matrix))


def peak(costs: Costs, sides: Mapping[str, int]) -> float:
    """Operations a second of the fastest of products.

    Args:
      costs: of them, one a round.
      sides: of their matrices, by the same names.
    """
    return max(flops.square_product(side) / best(costs[name]) for name, side in sides.items())


# ---------------------------------------------------------------------- all in turn


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--layer",
        action="store_true",
        help="forward and backward of the recurrent layers only: no embedding, logits or optimiser",
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="both if not given")
    parser.add_argument(
        "--only",
        choices=(*FRAMEWORKS, *RECURRENCES),
        action="append",
        help="may be repeated; the frameworks if not given. With --layer --precision=float32 also TensorFlow's kernel of a whole "
        "layer, block, operations in a loop that XLA does not compile, loop, in one of ten times an iteration, chunks, and without a "
        "loop, unrolled",
    )
    parser.add_argument("--xla", action="store_true", help="compile ours and Keras'")
    parser.add_argument("--steps", type=int, default=2, help="steps a round")
    parser.add_argument("--rounds", type=int, default=9, help="of each")
    parser.add_argument("--side", type=int, action="append", help="of the matrices: 2048 and 4096")
    parser.add_argument(
        "--gin_param", action="append", default=[], help="changes the configuration"
    )
    line = parser.parse_args(arguments)
    others = sorted({*(line.only or ())} & RECURRENCES.keys())
    if others and not (line.layer and line.precision == "float32"):
        parser.error(f"--only={others[0]} is a layer in float32: add --layer --precision=float32")
    with tempfile.TemporaryDirectory() as folder:
        text = pathlib.Path(folder) / "text.txt"
        write_random_text(text)
        measure(line, [f'DATA="{text}"', WITHOUT_END, WINDOW, *line.gin_param])


def measure(line: argparse.Namespace, parameters: Sequence[str]) -> None:
    configuration = Configuration(CONFIGURATION, parameters)
    settings = {
        "streams": configuration["Experiment.global_batch"],
        "window": configuration["train/TextStreams.window"],
        "vocabulary": CHARACTERS,
        "embedding": configuration["LSTMNetwork.embedding"],
        "widths": configuration["LSTMNetwork.widths"],
        "dropout": configuration["LSTMNetwork.dropout"],
        "learning_rate": configuration["CosineDecay.warmup_target"],
        "weight_decay": configuration["AdamW.weight_decay"],
    }
    frameworks = line.only or FRAMEWORKS
    if "PyTorch" in frameworks and len(set(settings["widths"])) > 1:
        sys.exit(
            f"LSTMNetwork.widths is {settings['widths']}: layers of PyTorch's have one width, give equal ones, or leave it out by "
            "--only=lockstep --only=Keras"
        )
    torch = pytorch.start("pytorch_lstm.py", **settings) if "PyTorch" in frameworks else None
    precisions = [line.precision] if line.precision else ["float32", "bfloat16"]
    contestants: dict[str, Callable[[], Cost]] = {}
    products: dict[str, dict[str, int]] = {}
    for precision in precisions:
        theirs = torch if torch and torch.ask(do="try", precision=precision) else None
        if torch and not theirs:
            print(
                f"PyTorch has no LSTM of {precision} on this processor: left out, and its products, which take minutes",
                file=sys.stderr,
            )
        for framework in frameworks:
            if framework != "PyTorch":
                contestants[f"{framework} {precision}"] = contestant(
                    line, framework, settings, precision, parameters
                )
            elif theirs:
                contestants[f"PyTorch {precision}"] = functools.partial(
                    theirs.cost,
                    do="layers" if line.layer else "train",
                    precision=precision,
                    steps=line.steps,
                )
        products[precision] = {}
        for side in line.side or SIDES:
            name = f"product of {side}, {precision}"
            contestants[name] = timed(product(precision, side))
            products[precision][name] = side
            if theirs:
                contestants[f"PyTorch's {name}"] = functools.partial(
                    theirs.cost, do="product", precision=precision, side=side
                )
                products[precision][f"PyTorch's {name}"] = side
    for run in contestants.values():
        run()  # Traces and compiles.
    costs = take_turns(contestants, line.rounds)
    if torch:
        torch.close()
    report(line, settings, costs, products)


def contestant(
    line: argparse.Namespace,
    framework: str,
    settings: Settings,
    precision: str,
    parameters: Sequence[str],
) -> Callable[[], Cost]:
    """A round of ours or Keras'."""
    if line.layer:
        step = layers_step(framework, settings, precision, line.xla)
        return timed(lambda: [step() for _ in range(line.steps)])
    if framework == "Keras":
        return KerasTraining(settings, precision, line.xla, line.steps)
    train = lockstep_training(parameters, precision, line.xla)
    return timed(lambda: train(line.steps))


def report(
    line: argparse.Namespace,
    settings: Settings,
    costs: Costs,
    products: Mapping[str, Mapping[str, int]],
) -> None:
    """A table, ratios, and everything as a line of JSON.

    Args:
      line: what was asked for.
      settings: of the models.
      costs: of each round.
      products: for each precision those of the contestants that were products of matrices, and their sides.
    """
    tokens = line.steps * settings["streams"] * settings["window"]
    sizes = settings["embedding"], settings["widths"]
    operations = (
        flops.lstm_layers(*sizes)
        if line.layer
        else flops.lstm_language_model(*sizes, settings["vocabulary"])
    )
    rows, found = [], {}
    for precision, sides in products.items():
        most = peak(costs, sides)
        for framework in (*FRAMEWORKS, *RECURRENCES):
            name = f"{framework} {precision}"
            if name not in costs:
                continue
            rate = tokens / best(costs[name])
            found[name] = {
                "tokens_per_second": tokens / median(costs[name]),
                "best_tokens_per_second": rate,
                "flops_per_second": rate * operations,
                "share_of_peak": rate * operations / most,
                "processor_seconds_per_token": processor(costs[name]) / tokens,
            }
            rows.append([name, *formatted(found[name])])
        found[f"peak {precision}"] = {"flops_per_second": most}
        rows.append([f"peak {precision}", "", "", f"{most / 1e9:,.0f}", "", ""])
    what = "recurrent layers only" if line.layer else "training"
    title = f"LSTM {sizes[0]}, {', '.join(map(str, sizes[1]))}; {what}"
    show(
        f"{title}; {settings['streams']} × {settings['window']} characters; {line.rounds} rounds of {line.steps} steps; "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}",
        COLUMNS,
        rows,
    )
    for precision in products:
        for other in (*FRAMEWORKS[1:], *RECURRENCES):
            pair = f"lockstep {precision}", f"{other} {precision}"
            if costs.keys() >= set(pair):
                ratios = found[f"lockstep / {other} {precision}"] = compare(costs, *pair)
                print(f"lockstep / {other}, {precision}: {compared(ratios)}")
    print(json.dumps(found))


def formatted(found: Mapping[str, float]) -> list[str]:
    """A row of the table."""
    return [
        f"{found['tokens_per_second']:,.0f}",
        f"{found['best_tokens_per_second']:,.0f}",
        f"{found['flops_per_second'] / 1e9:,.0f}",
        f"{found['share_of_peak']:.0%}",
        f"{1e6 * found['processor_seconds_per_token']:.1f}",
    ]


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    main()
