"""The same examples at the same step on any number of replicas and workers, and from any step on."""

import itertools
import time

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.batches import Batches, DataError, Feature, Slice
from input_pipeline.noise import Noise
from input_pipeline.transforms import CentreCrop

LENGTH, GLOBAL_BATCH = 37, 8
LAYOUTS = [(1, 1), (2, 1), (4, 1), (2, 2), (4, 2), (8, 4)]  # Replicas, workers.


class Pixels:
    """Example i is an image full of i."""

    def __init__(self, length=LENGTH):
        self.length = length
        self.element_spec = {"image": Feature((3,), "float32"), "id": Feature((), "int64")}

    def __len__(self):
        return self.length

    def read(self, ids):
        return {"image": tf.tile(tf.cast(ids, tf.float32)[:, tf.newaxis], [1, 3]), "id": ids}

    def decode(self, samples):
        return samples


class Add:
    """Adds normal noise, and counts itself in the spec."""

    def element_spec(self, spec):
        return {**spec, f"added{len(spec)}": Feature((), "float32")}

    def __call__(self, batch, noise):
        image = batch["image"] + noise("image").normal([3])
        return {**batch, "image": image, f"added{len(batch)}": noise("number").uniform()}


def make(**changes):
    arguments = {
        "source": Pixels(),
        "global_batch": GLOBAL_BATCH,
        "seed": 5,
        "transforms": [Add(), Add()],
    }
    return Batches(**{**arguments, **changes})


def steps(dataset, count):
    """`count` elements, as dictionaries of arrays."""
    return [tf.nest.map_structure(np.asarray, element) for element in dataset.take(count)]


def global_steps(make_dataset, replicas, workers, count, axis):
    """What all replicas of all workers get together, in the order of the replicas."""
    per_worker = replicas // workers
    elements = [
        steps(make_dataset(Slice(replicas, worker * per_worker, per_worker)), count * per_worker)
        for worker in range(workers)
    ]
    for step in range(count):
        parts = [
            element
            for worker in elements
            for element in worker[step * per_worker : (step + 1) * per_worker]
        ]
        yield tf.nest.map_structure(lambda *part: np.concatenate(part, axis), *parts)


def assert_equal(one, other):
    tf.nest.map_structure(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("replicas, workers", LAYOUTS)
def test_a_step_is_the_same_on_any_layout(replicas, workers, updates):
    def dataset(worker):
        return make().training(worker, step=3, updates=updates)

    alone = steps(dataset(Slice()), 4)
    assert alone[0]["image"].shape == (updates, GLOBAL_BATCH, 3)
    for one, all_replicas in zip(
        alone, global_steps(dataset, replicas, workers, 4, axis=1), strict=True
    ):
        assert_equal(one, all_replicas)


@pytest.mark.parametrize("worker", [Slice(), Slice(4, 2, 2)])
@pytest.mark.parametrize("start", [1, 7, 1000])
def test_going_on_at_a_step_is_skipping_to_it(start, worker):
    whole = make().training(worker, updates=2).skip(start * worker.count)
    resumed = make().training(worker, step=start, updates=2)
    for one, other in zip(steps(whole, 4), steps(resumed, 4), strict=True):
        assert_equal(one, other)


def test_each_epoch_has_each_example_once():
    batches = steps(make().training(Slice(), updates=2), LENGTH)
    ids = np.concatenate([batch["id"].ravel() for batch in batches])
    epochs = ids.reshape(-1, LENGTH)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(LENGTH))
    for one, other in itertools.combinations(epochs, 2):
        assert not np.array_equal(one, other)
    positions = tf.range(len(ids), dtype=tf.int64)
    np.testing.assert_array_equal(make().ids(positions), ids)


def test_the_noise_of_a_transform_follows_the_position():
    """Also within a step of several updates, and from one epoch to the next."""
    batches = steps(make(transforms=[Add()]).training(Slice(), step=2, updates=3), 3)
    images = np.concatenate([batch["image"].reshape(-1, 3) for batch in batches])
    ids = np.concatenate([batch["id"].ravel() for batch in batches])
    noise = Noise(5, "transform/0/Add/image", rows=len(ids), first=2 * 3 * GLOBAL_BATCH)
    expected = ids.astype(np.float32)[:, np.newaxis] + noise.normal([3])
    np.testing.assert_array_equal(images, expected)


def test_two_transforms_of_one_class_draw_other_numbers():
    (batch,) = steps(make().training(Slice()), 1)
    assert np.all(batch["added2"] != batch["added3"])


def test_the_element_spec_is_that_after_the_transforms():
    assert list(make().element_spec) == ["image", "id", "added2", "added3"]


def test_the_seed_decides_order_and_noise():
    (one,), (other,) = (steps(make(seed=seed).training(Slice()), 1) for seed in [5, 6])
    assert not np.array_equal(one["id"], other["id"])
    assert np.all(one["added2"] != other["added2"])


@pytest.mark.parametrize("length", [1, 7, 8, 17])
@pytest.mark.parametrize("replicas, workers", LAYOUTS)
def test_an_evaluation_pass_has_each_example_once(length, replicas, workers):
    batches = make(validation=Pixels(length), validation_transforms=[Add()])

    def dataset(worker):
        return batches.evaluation(worker, batch=8)

    count = -(-length // 8)
    per_worker = replicas // workers
    for worker in range(workers):
        part = dataset(Slice(replicas, worker * per_worker, per_worker))
        assert len(list(part)) == count * per_worker

    alone = steps(dataset(Slice()), count)
    for one, all_replicas in zip(
        alone, global_steps(dataset, replicas, workers, count, axis=0), strict=True
    ):
        assert_equal(one, all_replicas)
    ids = np.concatenate([ids for _, ids in alone])
    read = np.concatenate([batch["id"] for batch, _ in alone])
    np.testing.assert_array_equal(ids, np.arange(count * 8))
    np.testing.assert_array_equal(read[:length], np.arange(length))
    assert np.all(read[length:] == length - 1)


def test_validation_noise_depends_on_the_id_alone():
    batches = make(validation=Pixels(17), validation_transforms=[Add()])
    passes = [
        np.concatenate([b["image"] for b, _ in batches.evaluation(Slice(), batch=batch)])[:17]
        for batch in [1, 5, 8]
    ]
    np.testing.assert_array_equal(passes[0], passes[1])
    np.testing.assert_array_equal(passes[0], passes[2])


def test_the_datasets_are_in_order_not_sharded_by_file_and_end_at_once():
    for dataset in [
        make().training(Slice()),
        make(validation=Pixels()).evaluation(Slice(), batch=4),
    ]:
        options = dataset.options()
        assert options.deterministic
        assert options.autotune.enabled is False
        policy = options.experimental_distribute.auto_shard_policy
        assert policy == tf.data.experimental.AutoShardPolicy.OFF


@pytest.mark.parametrize("epochs", [0, 0.5, 3.7])
def test_a_large_source_begins_anywhere_at_once(epochs):
    """10^8 examples: nothing is shuffled, skipped or listed before the first batch."""
    length = 10**8
    start = time.monotonic()
    first = int(epochs * length / GLOBAL_BATCH)
    (batch,) = steps(make(source=Pixels(length)).training(Slice(), step=first), 1)
    assert time.monotonic() - start < 2
    positions = first * GLOBAL_BATCH + tf.range(GLOBAL_BATCH, dtype=tf.int64)
    np.testing.assert_array_equal(batch["id"][0], make(source=Pixels(length)).ids(positions))
    assert len(set(batch["id"][0])) == GLOBAL_BATCH and batch["id"].max() < length


def test_errors():
    with pytest.raises(DataError, match="empty"):
        make(source=Pixels(0))
    with pytest.raises(ValueError, match="global_batch is 0"):
        make(global_batch=0)


class Pictures:
    """Nothing but what is known before anything is read."""

    def __init__(self, shape=(8, 8, 1), dtype="float32", labels=None, classes=()):
        self.element_spec = {"image": Feature(shape, dtype)}
        if labels or classes:
            self.element_spec["label"] = Feature((), "int32", labels or len(classes))
        self.classes = list(classes)

    def __len__(self):
        return 3


def held_out(train, validation, **transforms):
    return Batches(train, global_batch=2, validation=validation, **transforms)


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (
            Pictures(),
            Pictures((8, 6, 1)),
            'feature "image" of held-out examples is float32 [8, 6, 1], and of training ones float32 [8, 8, 1]: make them '
            "alike, by the arguments of Experiment.validation or by Experiment.validation_transforms",
        ),
        (
            Pictures(),
            Pictures(dtype="float64"),
            'feature "image" of held-out examples is float64 [8, 8, 1], and of training ones float32 [8, 8, 1]: make them '
            "alike, by the arguments of Experiment.validation or by Experiment.validation_transforms",
        ),
        (
            Pictures(labels=3),
            Pictures(labels=4),
            'feature "label" of held-out examples has 4 values, and of training ones 3: the model knows no more, take '
            "held-out examples of the same classes or vocabulary",
        ),
        (
            Pictures(classes=["cat", "dog", "owl"]),
            Pictures(classes=["cat", "owl"]),
            'label 1 is "owl" of held-out examples, and "dog" of training ones: give both the same classes, folders of the '
            "same names with at least one picture in each",
        ),
    ],
    ids=["size", "dtype", "more classes", "other classes"],
)
def test_held_out_examples_of_another_form_are_refused(train, validation, message):
    with pytest.raises(DataError) as error:
        held_out(train, validation)
    assert str(error.value) == message


def test_held_out_examples_are_of_a_form_after_their_transforms():
    small, large = Pictures((4, 4, 1), labels=3), Pictures(labels=3)
    batches = held_out(small, large, validation_transforms=[CentreCrop(4)])
    assert batches.validation_spec == batches.element_spec == small.element_spec
    assert held_out(large, small, transforms=[CentreCrop(4)]).validation_spec == small.element_spec
    with pytest.raises(ValueError, match=r'CentreCrop.size is 9×9, and feature "image" is 8×8'):
        held_out(large, large, validation_transforms=[CentreCrop(9)])


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (Pictures(labels=3), Pictures()),
        (Pictures(), Pictures(labels=3)),
        (Pictures(labels=3), Pictures(labels=2)),
        (Pictures(classes=["cat", "dog", "owl"]), Pictures(classes=["cat", "dog"])),
        (Pictures(classes=["cat", "dog"]), Pictures(labels=2)),
    ],
    ids=["not labelled", "labelled", "fewer", "the first", "no names"],
)
def test_what_held_out_examples_lack_is_no_matter_of_the_data(train, validation):
    assert held_out(train, validation).validation_spec is validation.element_spec
