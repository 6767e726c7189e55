"""What the trainer costs: time per step beside bare loops and beside Keras `fit`, images a second beside the usual recipe.

Everything is measured in turn in one process, several rounds of each, and compared by the medians: a ratio says more than
a time on a machine that others use too. All train one model, a convolutional VAE of 28×28 images, with Adam on the same
number of examples a step, without XLA unless --xla is given.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from input_pipeline.batches import Batches, Slice
from input_pipeline.images import Images
from input_pipeline.noise import Noise
from models.image_networks import ConvolutionalDecoder, ConvolutionalEncoder
from models.vae import VAE
from trainer.experiment import Experiment
from trainer.hardware import Hardware
from trainer.trainer import Trainer

SHAPE, LATENT, IMAGES = (28, 28, 1), 32, 60_000


PIXELS = np.random.default_rng(0).integers(0, 256, (IMAGES, *SHAPE), np.uint8)
"""Random bytes, as many as MNIST has."""


def objective(width: int) -> Callable:
    return functools.partial(
        VAE,
        encoder=functools.partial(ConvolutionalEncoder, width=width),
        decoder=functools.partial(ConvolutionalDecoder, width=width),
        latent=LATENT,
    )


def lockstep_loop(
    source: Images, batch: int, width: int, xla: bool, log_every: int
) -> Callable[[int], None]:
    """The whole trainer, with metrics read every `log_every` steps; each call goes on for some steps."""
    experiment = Experiment(
        objective=objective(width),
        source=source,
        global_batch=batch,
        steps=10**9,
        log_every=log_every,
        samples=0,
    )
    trainer = Trainer(experiment, Hardware(strategy="one_device", xla="on" if xla else "off"))
    data = trainer.data(0)
    done = 0

    def run(steps: int) -> None:
        nonlocal done
        trainer.run(data, done, until=done + steps)
        done += steps

    return run


def bare_loop(
    source: Images, batch: int, width: int, xla: bool, checked: bool
) -> Callable[[int], None]:
    """What one writes by hand: loss, gradients and Keras' Adam in a tf.function loop, on the same data and noise.

    `checked`: whether it too skips an update whose gradients are not finite, which has to wait for all of them.
    """
    model = objective(width)(source.element_spec)
    model.build(Noise(0, "weights", rows=1))
    phase = model.phases[0]
    adam = keras.optimizers.Adam(1e-3)
    adam.build(phase.variables)
    data = iter(Batches(source, batch).training(Slice()))

    @tf.function(jit_compile=xla)
    def gradients(images: tf.Tensor, step: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            noise = Noise(0, "elbo", rows=batch, step=step)
            loss = tf.reduce_mean(phase.loss({"image": images}, noise, step)[0])
        return tape.gradient(loss, [variable.value for variable in phase.variables])

    @tf.function
    def loop(steps: tf.Tensor) -> None:
        for _ in tf.range(steps):
            images = next(data)["image"][0]
            new = gradients(images, tf.cast(adam.iterations.value, tf.int64))
            if not checked or tf.math.is_finite(tf.linalg.global_norm(new)):
                adam.apply(new, phase.variables)

    return lambda steps: loop(tf.constant(steps))


class KerasVAE(keras.Model):
    """The same networks and loss as a Keras model, as its guides write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        noise = Noise(0, "weights", rows=1)
        self.encoder = ConvolutionalEncoder(
            SHAPE, 2 * LATENT, noise=noise("encoder"), name="encoder", width=width
        )
        self.decoder = ConvolutionalDecoder(
            SHAPE, LATENT, noise=noise("decoder"), name="decoder", width=width
        )
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        mean, log_variance = tf.split(self.encoder(images, training=training), 2, axis=1)
        latent = mean + tf.exp(log_variance / 2) * keras.random.normal(
            tf.shape(mean), seed=self.seeds
        )
        kl = 0.5 * tf.reduce_sum(mean**2 + tf.exp(log_variance) - 1 - log_variance, axis=1)
        self.add_loss(tf.reduce_mean(kl))
        return self.decoder(latent, training=training)


def keras_fit(
    batch: int, width: int, xla: bool, steps: int, rounds: int, between: Callable
) -> list[float]:
    """Seconds a step of `fit` in each of its rounds: one long call, for its data begin once, with `between()` after each."""

    def cross_entropy(images: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=images, logits=logits)
        return tf.reduce_sum(losses, axis=[1, 2, 3])

    class Rounds(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            seconds.append((time.perf_counter() - self.start) / steps)
            if epoch:  # The first traces.
                between()

    seconds: list[float] = []
    model = KerasVAE(width)
    # As many steps an execution as the trainer has in a loop.
    model.compile("adam", cross_entropy, steps_per_execution=20, jit_compile=xla)
    data = recipe(batch).map(lambda images: (images, images))
    options = {"steps_per_epoch": steps, "epochs": rounds + 1, "verbose": 0}
    model.fit(data, callbacks=[Rounds()], **options)
    return seconds[1:]


def recipe(batch: int) -> tf.data.Dataset:
    """The input pipeline of most tutorials."""
    data = tf.data.Dataset.from_tensor_slices(PIXELS).shuffle(IMAGES).repeat()
    data = data.map(
        lambda image: tf.cast(image, tf.float32) / 255, num_parallel_calls=tf.data.AUTOTUNE
    )
    return data.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def seconds_a_step(run: Callable[[int], None], steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return (time.perf_counter() - start) / steps


def images_a_second(dataset: tf.data.Dataset, batches: int, batch: int) -> float:
    data = iter(dataset)
    next(data)
    start = time.perf_counter()
    for _ in range(batches):
        next(data)
    return batches * batch / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256, help="examples a step")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--steps", type=int, default=20, help="steps a round")
    parser.add_argument("--rounds", type=int, default=25, help="rounds of each")
    parser.add_argument("--xla", action="store_true", help="compile all of them")
    arguments = parser.parse_args()

    source = Images(PIXELS)
    common = (source, arguments.batch, arguments.width, arguments.xla)
    runs = {
        "lockstep": lockstep_loop(*common, log_every=20),
        "bare loop": bare_loop(*common, checked=True),
        "bare loop, unchecked": bare_loop(*common, checked=False),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(arguments.steps)  # Traces and compiles.

    def others() -> None:
        # In turn from either end, since whichever follows fit has the colder caches.
        for name in sorted(runs, reverse=len(times["lockstep"]) % 2 == 1):
            times[name].append(seconds_a_step(runs[name], arguments.steps))

    times["Keras fit"] = keras_fit(*common[1:], arguments.steps, arguments.rounds, others)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"{arguments.rounds} rounds of {arguments.steps} steps of {arguments.batch} images, TensorFlow {tf.__version__}, Keras {keras.__version__}"
    )
    for name, values in times.items():
        print(
            f"{name:>20}: {1000 * median[name]:6.2f} ms a step (from {1000 * min(values):.2f} to {1000 * max(values):.2f})"
        )
    for name in ("bare loop", "bare loop, unchecked", "Keras fit"):
        ratio = statistics.median(
            a / b for a, b in zip(times["lockstep"], times[name], strict=True)
        )
        print(f"lockstep / {name}: {ratio:.3f} (median of the rounds)")

    rates: dict[str, list[float]] = {"ours": [], "recipe": []}
    for _ in range(5):
        rates["ours"].append(
            images_a_second(
                Batches(source, arguments.batch).training(Slice()), 2000, arguments.batch
            )
        )
        rates["recipe"].append(images_a_second(recipe(arguments.batch), 300, arguments.batch))
    for name, values in rates.items():
        print(f"input, {name}: {statistics.median(values):,.0f} images/s")
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["recipe"], strict=True))
    print(f"input, ours / recipe: {ratio:.1f} (median of the rounds)")


if __name__ == "__main__":
    main()
