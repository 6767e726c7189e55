"""Encoded pictures, such as JPEG or PNG, decoded to bytes of one shape by their ids.

Where pictures are wanted as they are in their files, TensorFlow decodes them, several times as fast as Pillow in threads
of Python; where they are resized, turned or converted, and of other formats, Pillow. Which of them does it is a matter of
the picture and the arguments alone, never of the batch it is in.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from input_pipeline.bad_records import BadRecord, BadRecords
from input_pipeline.batches import DataError
from input_pipeline.cache import CACHE_MIB, Cache
from input_pipeline.headers import (
    DAMAGE,
    SIDEWAYS,
    TURNS,
    UPRIGHT,
    all_plain,
    orientation,
    plain,
)
from input_pipeline.sizes import height_and_width

MODES = {1: "L", 3: "RGB"}
"""Pillow's, by the channels that pictures may have."""
GREY = ("1", "L", "LA", "La")
"""Pillow's modes of one channel, beside "I;16" and its like; transparency is left out."""
UNSCALED = ("I", "F")
"""Those of 32 bits, of which no number is white."""
NATIVE = ("JPEG", "PNG")
"""What TensorFlow decodes as Pillow does."""
CHUNK = 32
"""Pictures decoded by one piece of a graph, so that a graph does not grow with the batch."""
FEW = 0.25
"""Share of a batch up to which what is not in the cache is decoded one by one."""

Size = int | Sequence[int] | None
Load = Callable[[int], tuple[str, bytes]]
Fetch = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Form:
    """What pictures are brought to, each on its own.

    Attributes:
      owner: the class that the other attributes are arguments of, for messages.
      size: height and width, or one number for both; None if all pictures have one size.
      fit: "crop", the middle of that form and of full height or width, resized; or "stretch", the whole, resized.
      channels: 1 for grey, 3 for colour; None if all pictures have as many.

    Raises:
      ValueError: if an argument has none of its values.
    """

    owner: str
    size: Size
    fit: str
    channels: int | None

    def __post_init__(self) -> None:
        if self.size is not None:
            height_and_width(f"{self.owner}.size", self.size, instead=", or None")
        if self.fit not in ("crop", "stretch"):
            raise ValueError(f'{self.owner}.fit is "{self.fit}": it must be "crop" or "stretch"')
        if self.channels not in (None, *MODES):
            raise ValueError(
                f"{self.owner}.channels is {self.channels}: it must be 1 for grey, 3 for colour, or None"
            )

    @property
    def pair(self) -> tuple[int, int] | None:
        """Height and width."""
        return None if self.size is None else height_and_width("size", self.size)

    def native(self, data: bytes) -> bool:
        """Whether a picture, and all like it, has this form already: nothing is resized or converted."""
        with Image.open(io.BytesIO(data)) as image:
            own = len(image.getbands())
            plain = image.format in NATIVE and image.mode == MODES.get(self.channels or own)
            return self.size is None and plain

    def decode(self, name: str, data: bytes) -> np.ndarray:
        """The picture, uint8 `[height, width, channels]`.

        Raises:
          BadRecord: if the data, called `name` in the message, are no picture, or damaged.
        """
        try:
            turn = orientation(data)
            with Image.open(io.BytesIO(data)) as image:
                if self.pair:
                    # JPEG files decode to a half, a quarter or an eighth, where that is at least twice what is wanted.
                    height, width = self.pair if turn < SIDEWAYS else self.pair[::-1]
                    image.draft(None, (2 * width, 2 * height))
                mode = image.mode
                picture = self._converted(image)
                if turn != UPRIGHT:
                    picture = picture.transpose(TURNS[turn])
        except Image.DecompressionBombError:
            raise BadRecord(
                f"{name} cannot be read (it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels): make it smaller"
            ) from None
        except DAMAGE:
            raise BadRecord(
                f"{name} cannot be read (it is no picture, or damaged): mend or replace it"
            ) from None
        if mode in UNSCALED:
            raise BadRecord(
                f"{name} cannot be read (its pixels are numbers of 32 bits, of which none is white): write it with 8 or "
                "16 bits"
            )
        if self.pair:
            height, width = self.pair
            if self.fit == "crop":
                picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
            else:
                picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(picture, np.uint8).reshape(picture.height, picture.width, -1)

    def check(self, name: str, found: tuple[int, ...], first: tuple[int, ...]) -> None:
        """Checks that a picture has the shape of the first.

        Raises:
          DataError: naming it, and what to set.
        """
        if found == first:
            return
        one, other = (f"{height}×{width}" for height, width, _ in (found, first))
        kind, of_first = ({1: "grey", 3: "coloured"}[channels] for *_, channels in (found, first))
        size, channels = f"{self.owner}.size", f"{self.owner}.channels to 1 or 3"
        if kind == of_first:
            said = f"{name} has {one} pixels, and the first picture {other}: set {size}"
        elif one == other:
            said = f"{name} is {kind}, and the first picture {of_first}: set {channels}"
        else:
            said = (
                f"{name} is {kind} and has {one} pixels, and the first picture is {of_first} and has {other}: set {size}, and "
                f"{channels}"
            )
        raise DataError(said)

    def _converted(self, image: Image.Image) -> Image.Image:
        sixteen_bits = image.mode.startswith("I;16")
        grey = sixteen_bits or image.mode in GREY
        if sixteen_bits:  # Pillow would cut off at 255.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        mode = MODES[self.channels or (1 if grey else 3)]
        if image.mode != mode:
            return image.convert(mode)
        image.load()  # Before its file is closed.
        return image


class Decoder:
    """Decodes pictures of one shape, that of the first.

    Args:
      form: that all are brought to.
      name: of the first, for messages.
      data: its bytes.

    Raises:
      BadRecord: if the first cannot be read.
    """

    def __init__(self, form: Form, name: str, data: bytes) -> None:
        # Without TensorFlow, whose devices may not be set up yet.
        self.shape: tuple[int, ...] = form.decode(name, data).shape
        self.native = form.native(data)
        self._form = form

    def one(self, name: str, data: bytes) -> np.ndarray:
        """A picture, uint8 `shape`.

        Raises:
          BadRecord: if it cannot be read.
          DataError: if it has another shape.
        """
        if self.native and plain(data):
            try:
                found = _decoded(tf.constant(data)).numpy()
            except tf.errors.InvalidArgumentError:
                pass  # Pillow reads more than TensorFlow does, and says what is wrong with the rest.
            else:
                if found.shape == self.shape:
                    return found
        found = self._form.decode(name, data)
        self._form.check(name, found.shape, self.shape)
        return found

    def several(
        self, items: tf.Tensor, fetch: Callable[[tf.Tensor], tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Pictures, uint8 `[n, *shape]`, by TensorFlow alone, which must be `native`.

        Args:
          items: `[n]`.
          fetch: the bytes of some items, strings `[k]`; may fail.

        Returns:
          The pictures, and whether all could be read, are `plain` and have the shape; else some are missing.
        """
        chunk = _divisor(items.shape[0])
        chunks = tf.size(items, tf.int64) // chunk
        missing = (tf.zeros([chunk, *self.shape], tf.uint8), False)

        def decode(items: tf.Tensor) -> tuple[tf.Tensor, bool]:
            encoded = fetch(items)

            def decoded() -> tuple[tf.Tensor, bool]:
                each = [_decoded(one) for one in tf.unstack(encoded, num=chunk)]
                return tf.stack([tf.ensure_shape(one, self.shape) for one in each]), True

            return tf.cond(all_plain(encoded), decoded, lambda: missing)

        # A dataset is what can catch an error inside of a graph.
        data = tf.data.Dataset.from_tensor_slices(tf.reshape(items, [-1, chunk]))
        data = data.map(tf.autograph.experimental.do_not_convert(decode)).ignore_errors()
        data = data.concatenate(tf.data.Dataset.from_tensors(missing).repeat())
        pictures, there = data.take(chunks).batch(chunks).get_single_element()
        return tf.reshape(pictures, [-1, *self.shape]), tf.reduce_all(there)


class EncodedPictures:
    """Pictures by id, wherever their bytes are.

    Args:
      count: how many there are.
      load: the name, for messages, and the bytes of one picture; raises BadRecord.
      fetch: the same bytes in a graph, ids int64 `[k]` -> strings `[k]`; may fail for what `load` cannot read.
      form: that all are brought to.
      on_bad_record: "fail", one that cannot be read is an error; or "skip", the next by id that can be read takes its
        place (after the last, the first).
      bad_budget: of "skip": how many may be bad. Each worker counts those that it meets.
      cache_mib: decoded pictures are kept in memory if all together take no more; 0 for never.

    Attributes:
      shape: `(height, width, channels)`, of the first picture that can be read.
      bad: those that cannot.

    Raises:
      ValueError: if an argument has none of its values.
      DataError: if the first picture, or with "skip" more than the budget, cannot be read.
    """

    def __init__(
        self,
        count: int,
        load: Load,
        fetch: Fetch,
        form: Form,
        on_bad_record: str = "fail",
        bad_budget: int = 0,
        cache_mib: int = CACHE_MIB,
    ) -> None:
        if cache_mib < 0:
            raise ValueError(
                f"{form.owner}.cache_mib is {cache_mib}: it must be at least 0, which keeps nothing"
            )
        self.bad = BadRecords(form.owner, on_bad_record, bad_budget)
        self._count, self._load, self._fetch, self._form = count, load, fetch, form
        self._decoder: Decoder | None = None
        _, at = self._readable(0)
        self._decoder = Decoder(form, *load(at))
        self.shape = self._decoder.shape
        fits = count * math.prod(self.shape) <= cache_mib * 2**20
        self._cache = Cache(count, self.shape) if fits else None

    def read(self, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Pictures, uint8 `[n, *shape]`, and the ids of those that were read, for `ids` (int64 `[n]`)."""
        assert self._decoder is not None
        if not self._decoder.native:
            found = self._one_by_one(ids)
        elif self._cache is None:
            found = self._several(ids)
        else:
            missing = self._mostly_missing(ids, self._cache)
            found = tf.cond(missing, lambda: self._several(ids), lambda: self._one_by_one(ids))
        return tf.ensure_shape(found[0], (*ids.shape, *self.shape)), tf.ensure_shape(
            found[1], ids.shape
        )

    def _mostly_missing(self, ids: tf.Tensor, cache: Cache) -> tf.Tensor:
        """Whether more than a few pictures are not in the cache, bool `[]`."""

        def look(ids: np.ndarray) -> np.bool_:
            return cache.missing(ids).mean() > FEW

        return tf.ensure_shape(tf.numpy_function(look, [ids], tf.bool, stateful=False), [])

    def _several(self, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """All of them by TensorFlow, if it can read them all."""
        assert self._decoder is not None
        pictures, complete = self._decoder.several(ids, self._fetch)
        return tf.cond(complete, lambda: self._kept(pictures, ids), lambda: self._one_by_one(ids))

    def _kept(self, pictures: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Both, and kept in the cache: what comes out goes through it, since a graph does nothing that is not asked for."""
        cache = self._cache
        if cache is None:
            return pictures, ids

        def keep(pictures: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            cache.put(ids, pictures, ids)
            return pictures, ids

        return tuple(tf.numpy_function(keep, [pictures, ids], [tf.uint8, tf.int64], stateful=False))

    def _one_by_one(self, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        cache = self._cache

        def read(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if cache is None:
                return self._each(ids)
            new = ids[cache.missing(ids)]
            if new.size:
                cache.put(new, *self._each(new))
            return cache.take(ids)

        return tuple(tf.numpy_function(read, [ids], [tf.uint8, tf.int64], stateful=False))

    def _each(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = [self._readable(int(i)) for i in ids]
        return np.stack([one for one, _ in found]), np.array([at for _, at in found], np.int64)

    def _readable(self, at: int) -> tuple[np.ndarray, int]:
        """The picture `at`, or with "skip" the next that can be read, and its id."""
        for candidate in range(at, at + self._count):
            candidate %= self._count
            try:
                return self._picture(candidate), candidate
            except BadRecord as error:
                self.bad.skip(error)
        raise DataError(f"none of the {self._count:,} pictures can be read: mend them")

    def _picture(self, at: int) -> np.ndarray:
        name, data = self._load(at)
        if self._decoder is None:
            return self._form.decode(name, data)
        return self._decoder.one(name, data)


def _decoded(encoded: tf.Tensor) -> tf.Tensor:
    """A picture as it is in a JPEG or PNG file, by the exact method, which Pillow uses too."""
    return tf.io.decode_jpeg(encoded, dct_method="INTEGER_ACCURATE")


def _divisor(count: int | None) -> int:
    """The largest divisor up to `CHUNK`; 1 if the number is not known."""
    return max(k for k in range(1, CHUNK + 1) if (count or 1) % k == 0)
