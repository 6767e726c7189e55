"""Random changes of images, each a function of the example's own row of noise.

An image is floating `[h, w, channels]` in [0, 1]. All take the name of the feature they change.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from input_pipeline.batches import ElementSpec
from input_pipeline.noise import Noise


@dataclasses.dataclass(frozen=True)
class _ImageTransform:
    """A transform that keeps shape and dtype of one feature, an image."""

    feature: str = dataclasses.field(default="image", kw_only=True)

    def element_spec(self, spec: ElementSpec) -> ElementSpec:
        """The features, unchanged.

        Raises:
          ValueError: if there is no such image.
        """
        image = spec.get(self.feature)
        if image is None or len(image.shape) != 3 or not tf.as_dtype(image.dtype).is_floating:
            raise ValueError(
                f'{type(self).__name__} changes floating images [h, w, channels], and feature "{self.feature}" is '
                f"{image or 'missing'}: name one of {', '.join(sorted(spec))} that is an image"
            )
        return spec

    def __call__(self, batch: dict[str, tf.Tensor], noise: Noise) -> dict[str, tf.Tensor]:
        """The batch with its images `[noise.rows, h, w, channels]` changed."""
        return {**batch, self.feature: self.change(batch[self.feature], noise)}

    def change(self, images: tf.Tensor, noise: Noise) -> tf.Tensor:
        """Images `[b, h, w, channels]`, as many and of the same dtype."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Binarize(_ImageTransform):
    """Draws each pixel as 1 with its grey value as probability, else 0 (Salakhutdinov and Murray 2008)."""

    def change(self, images: tf.Tensor, noise: Noise) -> tf.Tensor:
        uniform = noise.uniform(images.shape[1:])
        return tf.cast(uniform < tf.cast(images, uniform.dtype), images.dtype)


@dataclasses.dataclass(frozen=True)
class Dequantize(_ImageTransform):
    """Spreads each grey level over an interval of its own, for densities (Theis et al. 2016).

    Level k of 0 … levels - 1, which is k / (levels - 1) before, becomes uniform in (k, k + 1) / levels.

    Attributes:
      levels: grey levels of the data: 256 for bytes.
    """

    levels: int

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"Dequantize.levels is {self.levels}: it must be at least 2")

    def change(self, images: tf.Tensor, noise: Noise) -> tf.Tensor:
        uniform = tf.cast(noise.uniform(images.shape[1:]), images.dtype)
        return (images * (self.levels - 1) + uniform) / self.levels


@dataclasses.dataclass(frozen=True)
class Shift(_ImageTransform):
    """Moves each image by up to `pixels` up or down and left or right, with zeros where nothing moves in."""

    pixels: int

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise ValueError(f"Shift.pixels is {self.pixels}: it must be at least 0")

    def change(self, images: tf.Tensor, noise: Noise) -> tf.Tensor:
        height, width = images.shape[1:3]
        margin = [self.pixels, self.pixels]
        padded = tf.pad(images, [[0, 0], margin, margin, [0, 0]])
        # From 0 to 2·pixels: the place of the window that is cut out of the padded image.
        origin = tf.cast(noise.uniform([2]) * (2 * self.pixels + 1), tf.int32)
        rows = tf.gather(padded, origin[:, :1] + tf.range(height), axis=1, batch_dims=1)
        return tf.gather(rows, origin[:, 1:] + tf.range(width), axis=2, batch_dims=1)


@dataclasses.dataclass(frozen=True)
class Flip(_ImageTransform):
    """Mirrors left and right in half of the images."""

    def change(self, images: tf.Tensor, noise: Noise) -> tf.Tensor:
        flipped = noise.uniform([1, 1, 1]) < 0.5
        return tf.where(flipped, tf.reverse(images, axis=[2]), images)
