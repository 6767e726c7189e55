"""Tokens a second of LSTM training beside Keras and PyTorch, and their share of this machine's peak of matrix products.

Two layers of 512 units, 64 streams of 100 characters. Short rounds of each in turn, PyTorch's in a process of its own; the
peak is measured in the same rounds, the best of TensorFlow's and PyTorch's product of large square matrices in each precision.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from measuring import flops
from measuring.pytorch import MISSING, PyTorch, installed
from measuring.rounds import ratio, show, take_turns

from input_pipeline.noise import Noise
from models.lstm import LSTM
from trainer.precision import PRECISIONS

EMBEDDING, WIDTHS = 128, (512, 512)
STREAMS, WINDOW = 64, 100
SIDES = (2048, 4096)


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def layers(name: str, precision: str, xla: bool, steps: int) -> Callable[[], float]:
    """Forward and backward of the recurrent layers alone, ours or Keras'."""
    with PRECISIONS[precision].building():
        made: list[keras.layers.Layer] = []
        for i, units in enumerate(WIDTHS):
            if name == "lockstep":
                made.append(LSTM(units, Noise(0, f"lstm_{i}", rows=1), f"lstm_{i}"))
            else:
                made.append(keras.layers.LSTM(units, return_sequences=True))
    width = EMBEDDING
    for layer, units in zip(made, WIDTHS, strict=True):
        layer.build((STREAMS, WINDOW, width))
        width = units
    weights = [variable.value for layer in made for variable in layer.trainable_variables]
    x = tf.random.normal([STREAMS, WINDOW, EMBEDDING])
    d_y = tf.random.normal([STREAMS, WINDOW, width])

    @tf.function(jit_compile=xla)
    def step(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for layer in made:
                y = layer(y)[0] if name == "lockstep" else layer(y)
        return tape.gradient(y, [x, *weights], output_gradients=tf.cast(d_y, y.dtype))

    return lambda: timed(lambda: [step(x)[0].numpy() for _ in range(steps)])


def product(precision: str, side: int) -> Callable[[], float]:
    """One product of square matrices."""
    a = tf.cast(tf.random.normal([side, side]), precision)
    multiply = tf.function(lambda: tf.reduce_max(tf.matmul(a, a)[:1]))
    return lambda: timed(lambda: multiply().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--layer", action="store_true", help="the recurrent layers only: no embedding, no optimiser"
    )
    parser.add_argument(
        "--precision", action="append", choices=("float32", "bfloat16"), help="both, if not given"
    )
    parser.add_argument("--xla", action="store_true", help="compile ours and Keras'")
    parser.add_argument("--steps", type=int, default=2, help="steps a round")
    parser.add_argument("--rounds", type=int, default=9, help="of each")
    line = parser.parse_args()
    precisions = line.precision or ["float32", "bfloat16"]

    contestants: dict[str, Callable[[], float]] = {}
    peaks: dict[str, tuple[str, int]] = {}
    pytorch = None
    if installed():
        pytorch = PyTorch(
            "pytorch_lstm.py", streams=STREAMS, window=WINDOW, embedding=EMBEDDING, widths=WIDTHS
        )
    else:
        print(MISSING, file=sys.stderr)
    for precision in precisions:
        for name in ("lockstep", "Keras"):
            contestants[f"{name} {precision}"] = layers(name, precision, line.xla, line.steps)
        if pytorch:
            contestants[f"PyTorch {precision}"] = functools.partial(
                pytorch, do="layers", precision=precision, steps=line.steps
            )
        for side in SIDES:
            name = f"product of {side} {precision}"
            contestants[name] = product(precision, side)
            peaks[name] = precision, side
            if pytorch:
                contestants[f"PyTorch's {name}"] = functools.partial(
                    pytorch, do="product", precision=precision, side=side
                )
                peaks[f"PyTorch's {name}"] = precision, side
    for run in contestants.values():
        run()  # Traces and compiles.
    seconds = take_turns(contestants, line.rounds)
    if pytorch:
        pytorch.close()

    tokens = line.steps * STREAMS * WINDOW
    operations = flops.lstm_layers(EMBEDDING, WIDTHS)
    peak = {
        precision: max(
            flops.square_product(side) / min(seconds[name])
            for name, (of, side) in peaks.items()
            if of == precision
        )
        for precision in precisions
    }
    rows, result = [], {}
    for name, values in seconds.items():
        if name in peaks:
            continue
        precision = name.split()[1]
        best, median = tokens / min(values), tokens / statistics.median(values)
        share = best * operations / peak[precision]
        result[name] = {"median": median, "best": best, "share_of_peak": share}
        rows.append(
            [
                name,
                f"{median:,.0f}",
                f"{best:,.0f}",
                f"{best * operations / 1e9:,.0f}",
                f"{share:.0%}",
            ]
        )
    for precision, rate in peak.items():
        rows.append([f"peak {precision}", "", "", f"{rate / 1e9:,.0f}", ""])
        result[f"peak {precision}"] = {"flops": rate}
    show(
        f"Layers {EMBEDDING} → {WIDTHS}, {STREAMS} × {WINDOW}, {line.rounds} rounds of {line.steps} steps",
        ["", "tokens/s, median", "best", "GFLOP/s", "of peak"],
        rows,
    )
    for precision in precisions:
        for other in ("Keras", "PyTorch"):
            if f"{other} {precision}" in seconds:
                times = ratio(seconds, f"lockstep {precision}", f"{other} {precision}")
                result[f"lockstep / {other} {precision}"] = {"ratio": times}
                print(f"lockstep / {other}, {precision}: {times:.2f} (median of the rounds)")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
