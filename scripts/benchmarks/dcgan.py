"""Our GAN beside the DCGAN of TensorFlow's tutorial, written for Keras' `fit`, after equal time on the same pictures.

    scripts/benchmark dcgan --workdir=RUN --features=CLASSIFIER

RUN is a finished `lockstep train gan/fashion`, CLASSIFIER one of `lockstep train classifier/mnist` on the same data. The
tutorial's model (28×28 pictures, batches of 256) is trained here for as many seconds as RUN took, by its metrics.jsonl, and
both are judged by `lockstep evaluate --features`. RUN's seconds count its evaluations and samples too, the tutorial's not.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from trainer import pictures
from trainer.exits import UserError, one_line
from trainer.features import ClassifierNet
from trainer.hardware import Hardware
from trainer.judge import Judge
from trainer.main import restored

LATENT, BATCH = 100, 256


def generator() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((LATENT,)),
            layers.Dense(7 * 7 * 256, use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Reshape((7, 7, 256)),
            layers.Conv2DTranspose(128, 5, strides=1, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Conv2DTranspose(64, 5, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Conv2DTranspose(
                1, 5, strides=2, padding="same", use_bias=False, activation="tanh"
            ),
        ]
    )


def discriminator() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(64, 5, strides=2, padding="same"),
            layers.LeakyReLU(),
            layers.Dropout(0.3),
            layers.Conv2D(128, 5, strides=2, padding="same"),
            layers.LeakyReLU(),
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )


class DCGAN(keras.Model):
    """Both networks, with the tutorial's losses and Adam(1e-4) for each."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = generator(), discriminator()
        self.generator_adam = keras.optimizers.Adam(1e-4)
        self.discriminator_adam = keras.optimizers.Adam(1e-4)
        self.cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)

    def train_step(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        latent = tf.random.normal([BATCH, LATENT])
        with tf.GradientTape() as generator_tape, tf.GradientTape() as discriminator_tape:
            fakes = self.generator(latent, training=True)
            real, fake = (self.discriminator(x, training=True) for x in (images, fakes))
            generator_loss = self.cross_entropy(tf.ones_like(fake), fake)
            discriminator_loss = self.cross_entropy(tf.ones_like(real), real)
            discriminator_loss += self.cross_entropy(tf.zeros_like(fake), fake)
        for network, adam, tape, loss in (
            (self.generator, self.generator_adam, generator_tape, generator_loss),
            (self.discriminator, self.discriminator_adam, discriminator_tape, discriminator_loss),
        ):
            gradients = tape.gradient(loss, network.trainable_variables)
            adam.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
        return {"generator_loss": generator_loss, "discriminator_loss": discriminator_loss}


class StopAfter(keras.callbacks.Callback):
    """Ends `fit` after so many seconds from its first batch on."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.started, self.steps = seconds, 0.0, 0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.started = self.started or time.perf_counter()  # The first traces.
        self.steps += 1
        if time.perf_counter() - self.started > self.seconds:
            self.model.stop_training = True


def tutorial(images: np.ndarray, seconds: float) -> tuple[DCGAN, int]:
    """The tutorial's model after so many seconds of training on uint8 images `[n, 28, 28, 1]`, and how many steps it took."""
    data = tf.data.Dataset.from_tensor_slices((images.astype(np.float32) - 127.5) / 127.5)
    data = data.shuffle(len(images)).batch(BATCH, drop_remainder=True).repeat()
    model, stop = DCGAN(), StopAfter(seconds)
    model.compile()
    options = {"steps_per_epoch": len(images) // BATCH, "epochs": 10**6, "verbose": 0}
    model.fit(data.prefetch(tf.data.AUTOTUNE), callbacks=[stop], **options)
    return model, stop.steps


def main(line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="our finished run")
    parser.add_argument("--features", type=pathlib.Path, required=True, help="the classifier's run")
    parser.add_argument(
        "--seconds", type=float, help="for the tutorial; as long as ours if not given"
    )
    parser.add_argument("--picture", type=pathlib.Path, help="where 100 samples of it are shown")
    try:
        compare(parser.parse_args(line))
    except UserError as error:
        print(f"lockstep: {one_line(error)}", file=sys.stderr)
        sys.exit(error.code)


def compare(arguments: argparse.Namespace) -> None:
    """Trains the tutorial's model for as long as ours, and prints what the classifier says of both."""
    one = Hardware(strategy="one_device")
    ours, _ = restored(arguments.workdir, one)
    source = ours.experiment.source
    images = source.decode(source.read(tf.range(len(source), dtype=tf.int64))["image"])
    if images.shape[1:] != (28, 28, 1):
        sys.exit(f"the pictures are {list(images.shape[1:])}: the tutorial's model makes 28×28×1")
    last = (arguments.workdir / "metrics.jsonl").read_text().splitlines()[-1]
    seconds = arguments.seconds or json.loads(last)["seconds"]
    model, steps = tutorial(images, seconds)

    judge = Judge(ClassifierNet(restored(arguments.features, one)[0]), ours)
    latent = np.random.default_rng(0).normal(size=[judge.count, LATENT]).astype(np.float32)
    drawn = model.generator.predict(latent, batch_size=500, verbose=0)
    drawn = np.rint((drawn + 1) * 127.5).astype(np.uint8)
    if arguments.picture:
        arguments.picture.write_bytes(pictures.png(pictures.grid(drawn[:100])))
    found = {
        "ours": judge(ours.sample(judge.count, ours.experiment.seed)),
        "tutorial": judge(drawn),
        "real": judge.floor,
    }
    print(f"{seconds:.0f} seconds each, the tutorial's {steps} steps of {BATCH} pictures")
    for name, metrics in found.items():
        print(f"{name:>8}: " + ", ".join(f"{n} {v:.4g}" for n, v in metrics.items()))
    ratio = found["ours"]["frechet_distance"] / found["tutorial"]["frechet_distance"]
    print(f"Fréchet distance, ours / tutorial: {ratio:.3f}")


if __name__ == "__main__":
    main()
