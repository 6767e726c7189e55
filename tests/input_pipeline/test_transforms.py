"""The transforms of images: values by hand, distributions, and independence from the way examples are dealt out."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from PIL import Image

from input_pipeline.batches import Feature
from input_pipeline.noise import Noise
from input_pipeline.transforms import (
    Binarize,
    CentreCrop,
    Dequantize,
    Flip,
    Normalize,
    RandomCrop,
    Resize,
    Shift,
)

TRANSFORMS = [Binarize(), Dequantize(levels=17), Shift(pixels=2), Flip(), RandomCrop((5, 4))]
SIZED = [Resize((2, 3)), Resize((9, 3), "bilinear"), CentreCrop((3, 4)), RandomCrop(2)]


def pictures(rows, height=5, width=7, channels=2, levels=17):
    noise = Noise(0, "pictures", rows=rows).uniform([height, width, channels])
    return tf.floor(noise * levels) / (levels - 1)


def apply(transform, images, *, first=0, seed=0, feature="image"):
    noise = Noise(seed, "transform", rows=images.shape[0], first=first)
    return transform({feature: images}, noise)[feature]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_slices_of_a_batch_equal_the_batch(transform):
    images = pictures(12)
    whole = apply(transform, images)
    spec = transform.element_spec({"image": Feature((5, 7, 2), "float32")})["image"]
    assert whole.shape == (12, *spec.shape) and whole.dtype == spec.dtype == images.dtype
    assert not np.array_equal(whole, apply(transform, images, seed=1))
    for first, rows in [(0, 6), (6, 6), (5, 1), (9, 3)]:
        part = apply(transform, images[first : first + rows], first=tf.constant(first, tf.int64))
        np.testing.assert_array_equal(part, whole[first : first + rows])


@pytest.mark.parametrize("transform", SIZED, ids=lambda t: type(t).__name__)
def test_the_spec_has_the_new_size(transform):
    spec = {"image": Feature((5, 7, 2), "float32"), "label": Feature((), "int32", 3)}
    changed = transform.element_spec(spec)
    assert changed["label"] == spec["label"] and changed["image"].dtype == "float32"
    whole = apply(transform, pictures(6))
    assert whole.shape == (6, *changed["image"].shape)
    part = apply(transform, pictures(6)[2:5], first=2)
    np.testing.assert_array_equal(part, whole[2:5])


@pytest.mark.parametrize("transform", TRANSFORMS[:4], ids=lambda t: type(t).__name__)
def test_the_other_features_and_the_spec_stay(transform):
    spec = {"image": Feature((5, 7, 2), "float32"), "label": Feature((), "int32", 3)}
    assert transform.element_spec(spec) == spec
    batch = {"image": pictures(3), "label": tf.constant([2, 0, 1])}
    changed = transform(batch, Noise(0, "transform", rows=3))
    assert changed.keys() == batch.keys()
    assert changed["label"] is batch["label"]


def test_another_feature():
    transform = Flip(feature="scan")
    spec = {"scan": Feature((5, 7, 2), "float32")}
    assert transform.element_spec(spec) == spec
    images = pictures(8)
    np.testing.assert_array_equal(apply(transform, images, feature="scan"), apply(Flip(), images))


@pytest.mark.parametrize(
    "feature", [Feature((), "int32", 10), Feature((8, 8), "float32"), Feature((8, 8, 1), "uint8")]
)
def test_a_feature_that_is_no_image_is_an_error(feature):
    with pytest.raises(ValueError, match='feature "image" is Feature'):
        Flip().element_spec({"image": feature})
    with pytest.raises(ValueError, match='feature "image" is missing: name one of scan'):
        Flip().element_spec({"scan": feature})


def test_binarize_draws_ones_with_the_grey_value_as_probability():
    images = tf.tile(tf.reshape([0.0, 0.25, 0.9, 1.0], [1, 2, 2, 1]), [20_000, 1, 1, 1])
    drawn = apply(Binarize(), images).numpy().reshape(-1, 4)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    ones = drawn.sum(0)
    assert ones[0] == 0 and ones[3] == 20_000
    for number, probability in [(ones[1], 0.25), (ones[2], 0.9)]:
        assert scipy.stats.binomtest(int(number), 20_000, probability).pvalue > 0.01
    correlation = np.corrcoef(drawn[:, 1], drawn[:, 2])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(20_000)


def test_dequantize_fills_the_interval_of_each_level():
    images = tf.tile(tf.reshape(tf.range(4.0) / 3, [1, 2, 2, 1]), [5000, 1, 1, 1])
    spread = apply(Dequantize(levels=4), images).numpy().reshape(-1, 4)
    for level, values in enumerate(spread.T):
        assert level / 4 < values.min() and values.max() < (level + 1) / 4
        assert scipy.stats.kstest(values * 4 - level, "uniform").pvalue > 0.01


def test_normalize_by_channel():
    images = pictures(3)
    changed = apply(Normalize((0.5, 0.25), (0.5, 2.0)), images)
    assert changed.dtype == images.dtype
    np.testing.assert_allclose(changed[..., 0], images[..., 0] * 2 - 1, atol=1e-6)
    np.testing.assert_allclose(changed[..., 1], images[..., 1] / 2 - 0.125, atol=1e-6)
    np.testing.assert_allclose(apply(Normalize(0.5, 0.5), images), images * 2 - 1, atol=1e-6)


def test_normalize_wants_a_number_for_each_channel():
    spec = {"image": Feature((5, 7, 2), "float32")}
    assert Normalize((0.1, 0.2), 1.0).element_spec(spec) == spec
    with pytest.raises(
        ValueError, match=r'Normalize.mean is \(0, 0, 0\), and feature "image" has 2 channels'
    ):
        Normalize((0, 0, 0), 1.0).element_spec(spec)


def test_shift_moves_each_image_by_all_offsets_alike():
    image = np.zeros([5, 5], np.float32)
    image[2, 2], image[2, 3] = 1, 2
    shifted = apply(Shift(2), tf.tile(tf.reshape(image, [1, 5, 5, 1]), [5000, 1, 1, 1]))
    shifted = shifted.numpy()[..., 0]
    counts = np.zeros([5, 5])
    for row in range(5):
        for column in range(5):
            expected = np.zeros([9, 9])
            expected[2 + row, 2 + column : 4 + column] = [1, 2]
            same = np.all(shifted == expected[2:7, 2:7], axis=(1, 2))
            counts[row, column] = same.sum()
    assert counts.sum() == 5000
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 0.01


def test_shift_by_hand():
    """One row of noise decides: 0.9 of 3 offsets is the last, which cuts one pixel further down and right."""

    class Fixed:
        def uniform(self, shape):
            return tf.constant([[0.9, 0.1], [0.5, 0.5]])

    images = tf.reshape(tf.range(1.0, 9.0), [2, 2, 2, 1])
    moved = Shift(1)({"image": images}, Fixed())["image"]
    np.testing.assert_array_equal(moved[0, ..., 0], [[0, 3], [0, 0]])
    np.testing.assert_array_equal(moved[1, ..., 0], images[1, ..., 0])


def test_flip_mirrors_half_of_the_images():
    image = tf.reshape(tf.range(1.0, 13.0), [1, 2, 3, 2])
    flipped = apply(Flip(), tf.tile(image, [4000, 1, 1, 1])).numpy()
    same = np.all(flipped == image.numpy(), axis=(1, 2, 3))
    mirrored = np.all(flipped == image.numpy()[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(same ^ mirrored)
    assert scipy.stats.binomtest(int(same.sum()), 4000, 0.5).pvalue > 0.01


def test_resize_by_area_takes_means():
    images = pictures(3, height=6, width=8)
    small = apply(Resize((3, 2)), images)
    expected = images.numpy().reshape(3, 3, 2, 2, 4, 2).mean((2, 4))
    np.testing.assert_allclose(small, expected, atol=1e-6)


def test_resize_bilinear_is_that_of_pillow():
    """Pillow's filter is as wide as the new pixel too; it rounds to bytes on the way."""
    images = pictures(2, height=12, width=9, channels=3, levels=256)
    for size in [(5, 4), (12, 20), (30, 3)]:
        resized = apply(Resize(size, "bilinear"), images).numpy()
        for image, found in zip(images.numpy(), resized, strict=True):
            one = Image.fromarray(np.rint(image * 255).astype(np.uint8))
            other = one.resize(size[::-1], Image.Resampling.BILINEAR)
            np.testing.assert_allclose(found * 255, np.asarray(other), atol=1.51)


@pytest.mark.parametrize("method", ["area", "bilinear"])
def test_resized_images_stay_in_their_interval_and_dtype(method):
    images = tf.ones([2, 37, 29, 1], tf.float64)
    resized = apply(Resize((11, 13), method), images)
    assert resized.dtype == tf.float64
    assert resized.numpy().max() <= 1 and resized.numpy().min() > 1 - 1e-6


def test_the_centre_is_cut_out():
    images = pictures(2, height=5, width=7)
    np.testing.assert_array_equal(apply(CentreCrop((3, 4)), images), images[:, 1:4, 1:5])
    np.testing.assert_array_equal(apply(CentreCrop((5, 7)), images), images)
    np.testing.assert_array_equal(apply(CentreCrop(4), images), images[:, :4, 1:5])


def test_random_crop_takes_all_places_alike():
    numbered = tf.reshape(tf.range(20.0), [1, 4, 5, 1])
    cut = apply(RandomCrop((2, 3)), tf.tile(numbered, [6000, 1, 1, 1])).numpy()
    first = cut[:, 0, 0, 0]
    np.testing.assert_array_equal(
        cut[..., 0], first[:, None, None] + np.array([[0, 1, 2], [5, 6, 7]])
    )
    places, counts = np.unique(first, return_counts=True)
    np.testing.assert_array_equal(places, [0, 1, 2, 5, 6, 7, 10, 11, 12])
    assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_a_crop_larger_than_the_image_is_refused():
    spec = {"image": Feature((5, 7, 2), "float32")}
    for transform in (CentreCrop((4, 8)), RandomCrop((6, 2))):
        with pytest.raises(ValueError, match=r"Crop.size is .*×.*, and feature \"image\" is 5×7"):
            transform.element_spec(spec)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Dequantize(levels=1), "Dequantize.levels is 1: it must be at least 2"),
        (lambda: Normalize(0.5, (1.0, 0.0)), r"Normalize.standard_deviation is \(1.0, 0.0\)"),
        (lambda: Shift(pixels=-1), "Shift.pixels is -1: it must be at least 0"),
        (lambda: Resize((8, 0)), r"Resize.size is \(8, 0\): it must be height and width"),
        (lambda: CentreCrop((1, 2, 3)), r"CentreCrop.size is \(1, 2, 3\)"),
        (lambda: RandomCrop("8"), "RandomCrop.size is 8"),
        (lambda: Resize(8, "cubic"), 'Resize.method is "cubic"'),
    ],
)
def test_values_that_make_no_sense_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
