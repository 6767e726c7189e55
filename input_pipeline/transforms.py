"""Changes of images; what is random in one is a function of the example's own row of noise.

An image is floating `[h, w, channels]` in [0, 1]. All take the name of the feature they change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from input_pipeline.batches import ElementSpec
from input_pipeline.noise import Noise
from input_pipeline.sizes import height_and_width


@dataclasses.dataclass(frozen=True)
class _ImageTransform:
    """A transform of one feature, an image, whose dtype it keeps."""

    feature: str = dataclasses.field(default="image", kw_only=True)

    def element_spec(self, spec: ElementSpec) -> ElementSpec:
        """The features, with the image's new shape.

        Raises:
          ValueError: if there is no such image, or it is too small.
        """
        image = spec.get(self.feature)
        if image is None or len(image.shape) != 3 or not tf.as_dtype(image.dtype).is_floating:
            raise ValueError(
                f'{type(self).__name__} changes floating images [h, w, channels], and feature "{self.feature}" is '
                f"{image or 'missing'}: name one of {', '.join(sorted(spec))} that is an image"
            )
        height, width = self.size_of(*image.shape[:2])
        changed = dataclasses.replace(image, shape=(height, width, image.shape[2]))
        return {**spec, self.feature: changed}

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the changed image."""
        return height, width

    def __call__(self, batch: dict[str, tf.Tensor], noise: Noise) -> dict[str, tf.Tensor]:
        """The batch with its images `[noise.rows, h, w, channels]` changed."""
        return {**batch, self.feature: self.change(batch[self.feature], noise)}

    def change(self, images: tf.Tensor, noise: Noise) -> tf.Tensor:
        """Images of `size_of(h, w)`, as many as in `[b, h, w, channels]` and of the same dtype."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _SizedTransform(_ImageTransform):
    """A transform to images of one size.

    Attributes:
      size: height and width in pixels, or one number for both.
    """

    size: int | Sequence[int]

    def __post_init__(self) -> None:
        height_and_width(f"{type(self).__name__}.size", self.size)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        return height_and_width("size", self.size)


@dataclasses.dataclass(frozen=True)
class Resize(_SizedTransform):
    """Resizes images to `size`, whatever their proportions: crop first to keep them.

    Attributes:
      method: "area", each new pixel the mean of the area it covers, the way to make images smaller; or "bilinear" with a
        triangular filter as wide as the new pixel, which also makes them larger smoothly.
    """

    method: str = "area"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("area", "bilinear"):
            raise ValueError(f'Resize.method is "{self.method}": it must be "area" or "bilinear"')

    def change(self, images: tf.Tensor, noise: Noise) -> tf.Tensor:
        size = self.size_of(*images.shape[1:3])
        resized = tf.image.resize(images, size, self.method, antialias=self.method == "bilinear")
        # Weights that add up to 1 but for rounding can leave the interval by that much.
        return tf.clip_by_value(tf.cast(resized, images.dtype), 0, 1)


@dataclasses.dataclass(frozen=True)
class _Crop(_SizedTransform):
    """Cuts a window of `size` out of each image."""

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        size = super().size_of(height, width)
        if size[0] > height or size[1] > width:
            raise ValueError(
                f'{type(self).__name__}.size is {size[0]}×{size[1]}, and feature "{self.feature}" is {height}×{width}: '
                "take a smaller size, or Resize before"
            )
        return size


@dataclasses.dataclass(frozen=True)
class CentreCrop(_Crop):
    """Cuts out the middle; what is left over by an odd margin is at the bottom and the right."""

    def change(self, images: tf.Tensor, noise: Noise) -> tf.Tensor:
        height, width = images.shape[1:3]
        new_height, new_width = self.size_of(height, width)
        top, left = (height - new_height) // 2, (width - new_width) // 2
        return images[:, top : top + new_height, left : left + new_width]


@dataclasses.dataclass(frozen=True)
class RandomCrop(_Crop):
    """Cuts out a window anywhere in the image, each place as likely."""

    def change(self, images: tf.Tensor, noise: Noise) -> tf.Tensor:
        height, width = images.shape[1:3]
        new_height, new_width = self.size_of(height, width)
        places = tf.constant([height - new_height + 1, width - new_width + 1], tf.float32)
        origin = tf.cast(tf.cast(noise.uniform([2]), tf.float32) * places, tf.int32)
        return _windows(images, origin, new_height, new_width)


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
class Normalize(_ImageTransform):
    """Subtracts a mean and divides by a standard deviation, as classifiers of pictures are often given them.

    It belongs last: the other transforms, and models that draw pictures, want [0, 1].

    Attributes:
      mean: of each channel, or one number for all, in [0, 1] as the pictures.
      standard_deviation: likewise.
    """

    mean: float | Sequence[float]
    standard_deviation: float | Sequence[float]

    def __post_init__(self) -> None:
        if np.any(np.asarray(self.standard_deviation) <= 0):
            raise ValueError(
                f"Normalize.standard_deviation is {self.standard_deviation}: it must be above 0"
            )

    def element_spec(self, spec: ElementSpec) -> ElementSpec:
        changed = super().element_spec(spec)
        channels = changed[self.feature].shape[2]
        for name in ("mean", "standard_deviation"):
            value = getattr(self, name)
            if np.shape(value) not in ((), (channels,)):
                raise ValueError(
                    f'Normalize.{name} is {value}, and feature "{self.feature}" has {channels} channels: give one number, '
                    "or one for each channel"
                )
        return changed

    def change(self, images: tf.Tensor, noise: Noise) -> tf.Tensor:
        mean, deviation = (
            tf.constant(value, images.dtype) for value in (self.mean, self.standard_deviation)
        )
        return (images - mean) / deviation


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
        return _windows(padded, origin, height, width)


@dataclasses.dataclass(frozen=True)
class Flip(_ImageTransform):
    """Mirrors left and right in half of the images."""

    def change(self, images: tf.Tensor, noise: Noise) -> tf.Tensor:
        flipped = noise.bernoulli(0.5, [1, 1, 1])
        return tf.where(flipped, tf.reverse(images, axis=[2]), images)


def _windows(images: tf.Tensor, origin: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Of each of `[b, h, w, c]` the window that begins at row and column `origin` (int32 `[b, 2]`)."""
    rows = tf.gather(images, origin[:, :1] + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(rows, origin[:, 1:] + tf.range(width), axis=2, batch_dims=1)
