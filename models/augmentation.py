"""Differentiable augmentation of a discriminator's images, real and generated alike (Zhao et al. 2020).

Images are `[b, height, width, channels]` in [-1, 1], of the noise's dtype, and row i is changed by row i of the noise. Sizes are the
paper's. A change is linear in the image for given noise, so that it may be differentiated twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from models.objective import Noise

Change = Callable[[tf.Tensor, Noise], tf.Tensor]

LARGEST_SHIFT = 1 / 8
CUT_SIDE = 1 / 2
PIXEL = [1, 1, 1]
"""The shape of one number an example, for all of its pixels."""


def augment(images: tf.Tensor, changes: Sequence[str], noise: Noise) -> tf.Tensor:
    """The images after these changes in this order: names in `CHANGES`."""
    for name in changes:
        images = CHANGES[name](images, noise(name))
    return images


def colour(images: tf.Tensor, noise: Noise) -> tf.Tensor:
    """Adds a brightness in (-0.5, 0.5), then scales the saturation by (0, 2) and the contrast by (0.5, 1.5)."""
    images += noise("brightness").uniform(PIXEL) - 0.5
    grey = tf.reduce_mean(images, 3, keepdims=True)
    images = grey + (images - grey) * (2 * noise("saturation").uniform(PIXEL))
    level = tf.reduce_mean(images, [1, 2, 3], keepdims=True)
    return level + (images - level) * (0.5 + noise("contrast").uniform(PIXEL))


def translation(images: tf.Tensor, noise: Noise) -> tf.Tensor:
    """Moves by up to 1/8 of the side up or down and left or right, with zeros where nothing moves in."""
    for axis, name in ((1, "vertical"), (2, "horizontal")):
        most = int(images.shape[axis] * LARGEST_SHIFT + 0.5)
        images = _moved(images, axis, most - _whole(noise(name).uniform(), 2 * most + 1))
    return images


def cutout(images: tf.Tensor, noise: Noise) -> tf.Tensor:
    """Sets a square of half the side, around a pixel anywhere in the image, to zero."""
    cut = None
    for axis, name in ((1, "vertical"), (2, "horizontal")):
        length = images.shape[axis]
        side = int(length * CUT_SIDE + 0.5)
        # A side that is even has no middle pixel, and as many places as there are gaps between pixels and edges.
        middle = _whole(noise(name).uniform(PIXEL), length + 1 - side % 2)
        place = tf.range(length)
        place = tf.reshape(place, [1, -1, 1, 1] if axis == 1 else [1, 1, -1, 1])
        first = middle - side // 2
        within = (place >= first) & (place < first + side)
        cut = within if cut is None else cut & within
    return tf.where(cut, tf.zeros_like(images), images)


CHANGES: dict[str, Change] = {"colour": colour, "translation": translation, "cutout": cutout}


def _whole(uniform: tf.Tensor, count: int) -> tf.Tensor:
    """int32 in [0, count) from uniform numbers in (0, 1)."""
    return tf.minimum(tf.cast(uniform * count, tf.int32), count - 1)


def _moved(images: tf.Tensor, axis: int, steps: tf.Tensor) -> tf.Tensor:
    """Image i by `steps[i]` pixels along the axis, int32 `[b]`, with zeros where nothing moves in."""

    @tf.custom_gradient
    def move(images: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        length = images.shape[axis]
        places = tf.range(length) - steps[:, tf.newaxis]
        moved = tf.gather(images, tf.clip_by_value(places, 0, length - 1), axis=axis, batch_dims=1)
        within = tf.reshape(
            (places >= 0) & (places < length),
            [-1, *(length if a == axis else 1 for a in (1, 2)), 1],
        )
        # Back it is the opposite move: the gradient of a gather would add, in any order on some devices.
        return tf.where(within, moved, tf.zeros_like(moved)), lambda d: _moved(d, axis, -steps)

    return move(images)
