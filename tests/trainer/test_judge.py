"""Samples in the eyes of a network, from the command line: what is compared with what."""

from __future__ import annotations

import json
import pathlib
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing import event_accumulator

from input_pipeline.batches import Batches, Source, Unindexed
from input_pipeline.images import Images
from input_pipeline.streamed import StreamedTFRecords
from input_pipeline.transforms import CentreCrop, Dequantize, Normalize, Resize
from models.sample_metrics import frechet_distance
from tests.trainer.objectives import quiet
from trainer import catalogue, config_files, judge, pictures, real_pictures
from trainer.features import ClassifierNet, Seen
from trainer.hardware import Hardware
from trainer.main import main, restored
from trainer.trainer import Trainer

SMALL = (
    "--gin_param=STEPS=40 --gin_param=Experiment.log_every=40 --gin_param=ConvolutionalEncoder.width=4 "
    "--strategy=one_device"
)
DIGITS = np.rint(load_digits()["images"] / 16 * 255).astype(np.uint8)
DISTANCES = {"frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"}


def lockstep(arguments: str, *more: str) -> int:
    return main([*arguments.split(), *more])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The runs of a classifier, of a VAE of the same digits and of one of larger pictures."""
    folder = tmp_path_factory.mktemp("runs")
    assert lockstep(f"train classifier/digits --workdir={folder}/classifier {SMALL}") == 0
    assert lockstep(f"train vae/digits --workdir={folder}/vae --gin_param=STEPS=40 {SMALL}") == 0
    return folder


def write_records(path: str, pictures: np.ndarray) -> None:
    """Pictures as bytes in TFRecords."""
    with tf.io.TFRecordWriter(path) as writer:
        for picture in pictures:
            pixels = tf.train.BytesList(value=[picture.tobytes()])
            feature = {"image": tf.train.Feature(bytes_list=pixels)}
            record = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(record.SerializeToString())


def training_on(source: Source | Unindexed, **arguments: object) -> SimpleNamespace:
    """What of a training is looked at."""
    batches = Batches(source, global_batch=4, **arguments)
    return SimpleNamespace(batches=batches, draws_pictures=True)


def distinct(pictures: np.ndarray) -> set[bytes]:
    return {picture.tobytes() for picture in pictures}


def the_vae(runs: pathlib.Path) -> Trainer:
    """A training as that of `runs`, at its start."""
    names = catalogue.registry()
    resolved = names.resolve(config_files.read([f"{runs}/vae/config.gin"]))
    return quiet(names.build(resolved))


def test_evaluate_compares_samples_and_real_pictures(runs, capsys):
    command = f"evaluate --workdir={runs}/vae --features={runs}/classifier"
    assert lockstep(command) == 0
    out = capsys.readouterr().out
    assert "samples" in out and "real" in out and "frechet_distance" in out
    found = json.loads(out.splitlines()[-1])
    assert found["step"] == 40 and "negative_elbo" in found
    assert found["features"] == f"{runs}/classifier" and "samples/confidence" in found
    # After 40 steps samples are far from digits, which the held-out digits are not from the others.
    assert found["samples/frechet_distance"] > 3 * found["real/frechet_distance"] > 0
    assert found["samples/coverage"] < found["real/coverage"]
    assert found["real/precision"] > 0.6 and found["real/recall"] > 0.6
    # Again, with what is remembered of the real pictures, and of other samples.
    seen = sorted((runs / "classifier/seen").iterdir())
    assert len(seen) == 2
    assert lockstep(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == out.splitlines()[-1]
    assert sorted((runs / "classifier/seen").iterdir()) == seen
    assert lockstep(f"{command} --seed=5 --count=100") == 0
    other = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert other["samples/frechet_distance"] != found["samples/frechet_distance"]


def test_samples_are_shown_beside_the_nearest_training_pictures(runs):
    """Of one that is a training picture, that is the first neighbour; the others are the next in pixels."""
    trainer = the_vae(runs)
    source = trainer.experiment.source
    trained = source.decode(source.read(tf.range(len(source), dtype=tf.int64))["image"])
    pictures = np.stack([trained[5], np.full([8, 8, 1], 255, np.uint8)])
    table = real_pictures.nearest(trainer.batches, pictures, neighbours=3)
    assert table.shape == (2, 4, 8, 8, 1)
    known = {picture.tobytes() for picture in trained}
    for row in table:
        distances = [((picture - 1.0 * row[0]) ** 2).sum() for picture in row[1:]]
        assert distances == sorted(distances)
        everything = sorted(((trained - 1.0 * row[0]) ** 2).sum((1, 2, 3)))
        np.testing.assert_allclose(distances, everything[:3])
        assert {picture.tobytes() for picture in row[1:]} <= known
    np.testing.assert_array_equal(table[0, 0], table[0, 1])
    assert (runs / "vae/samples/step-00000040-judged.png").exists()
    events = event_accumulator.EventAccumulator(f"{runs}/vae/summaries/judged").Reload()
    assert events.Tags()["tensors"] == ["neighbours"]
    assert {f"samples/{name}" for name in DISTANCES} < set(events.Tags()["scalars"])


def test_a_training_shows_its_samples_beside_the_nearest_pictures(runs, capsys, tmp_path):
    """At each drawing, and as an animation at the end; of a model that draws none it is refused."""
    steps = (
        "--gin_param=STEPS=4 --gin_param=Experiment.sample_every=2 --gin_param=Experiment.samples=5"
    )
    shown = "--gin_param=Experiment.neighbours=3 --strategy=one_device"
    assert lockstep(f"train vae/digits --workdir={tmp_path}/vae {steps} {shown}") == 0
    names = {path.name for path in (tmp_path / "vae/samples").glob("*neighbours*")}
    drawn = {f"step-0000000{step}-neighbours.png" for step in (2, 4)}
    assert names == {*drawn, "training-neighbours.gif"}
    trainer, _ = restored(tmp_path / "vae", Hardware(strategy="one_device"))
    samples = trainer.sample(5)
    table = real_pictures.nearest(trainer.batches, samples[:3])
    file = tmp_path / "vae/samples/step-00000004-neighbours.png"
    assert file.read_bytes() == pictures.png(pictures.table(table))
    capsys.readouterr()
    assert lockstep(f"train classifier/digits --workdir={tmp_path}/no {shown}") == 78
    assert "Experiment.neighbours is 3, but Classifier draws no pictures" in capsys.readouterr().err


def test_pictures_of_a_stream_are_compared(runs, capsys, tmp_path, monkeypatch):
    """Whose number is not known: as many as are asked for, and neighbours among as many as are searched."""
    write_records(f"{tmp_path}/digits", DIGITS)
    monkeypatch.setattr(real_pictures, "SEARCHED", 1000)
    lines = [
        "Experiment.objective = @VAE",
        "Experiment.source = @StreamedTFRecords()",
        "Experiment.global_batch = 4",
        "Experiment.steps = 2",
        "Experiment.samples = 4",
        f"StreamedTFRecords.files = '{tmp_path}/digits'",
        "StreamedTFRecords.image = 'image'",
        "StreamedTFRecords.shape = (8, 8, 1)",
        "StreamedTFRecords.buffer = 500",
    ]
    (tmp_path / "stream.gin").write_text("\n".join(lines))
    run = f"--workdir={tmp_path}/run --strategy=one_device"
    assert lockstep(f"train {tmp_path}/stream.gin {run}") == 0
    capsys.readouterr()
    assert lockstep(f"evaluate {run} --features={runs}/classifier --count=200") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["real/precision"] > 0.6 and found["real/recall"] > 0.6
    assert found["samples/coverage"] < found["real/coverage"]
    assert (tmp_path / "run/samples/step-00000002-judged.png").exists()


def test_a_training_ends_with_the_comparison(runs, capsys, tmp_path):
    command = f"train vae/digits --workdir={runs}/vae {SMALL}"
    assert lockstep(f"{command} --features={runs}/classifier") == 0
    out = capsys.readouterr().out
    assert "already done" in out and f"samples in the eyes of {runs}/classifier" in out
    assert "frechet_distance" in out
    assert lockstep(f"{command} --features={tmp_path}/none") == 78
    assert "holds no run" in capsys.readouterr().err


def test_the_real_pictures_are_the_data(runs, monkeypatch):
    """Held out beside training pictures."""
    seen: list[np.ndarray] = []
    see = ClassifierNet.__call__

    def spy(self: ClassifierNet, pictures: np.ndarray) -> Seen:
        seen.append(pictures)
        return see(self, pictures)

    monkeypatch.setattr(ClassifierNet, "__call__", spy)
    for path in (runs / "classifier/seen").iterdir():
        path.unlink()
    assert lockstep(f"evaluate --workdir={runs}/vae --features={runs}/classifier") == 0
    held_out, real, samples = seen
    assert len(held_out) == len(samples) == len(real) == 180
    assert distinct(held_out) | distinct(real) <= distinct(DIGITS)
    assert not distinct(held_out) & distinct(real)
    assert len(distinct(samples)) == 180


@pytest.mark.parametrize("streamed", [False, True])
def test_where_none_is_held_out_two_halves_are_compared(streamed, tmp_path):
    """Without an overlap, also of a stream, which begins again before all of it has come."""
    write_records(f"{tmp_path}/digits", DIGITS[:101])
    source = Images(DIGITS[:101])
    if streamed:
        files = f"{tmp_path}/digits"
        source = StreamedTFRecords(files, image="image", shape=(8, 8, 1), buffer=1000)
    seen = []

    class Spy(Means):
        def __call__(self, pictures: np.ndarray) -> Seen:
            seen.append(pictures)
            return super().__call__(pictures)

    compare = judge.Judge(Spy(tmp_path, b"spy"), training_on(source), 50)
    assert compare.count == 50 and [len(pictures) for pictures in seen] == [50, 50]
    yardstick, floor = map(distinct, seen)
    assert len(yardstick) == len(floor) == 50 and not yardstick & floor
    assert yardstick | floor <= distinct(DIGITS[:101])
    # Of more than there are, as many as there are.
    seen.clear()
    assert judge.Judge(Spy(tmp_path, b"again"), training_on(source), 70).count == 50
    held_out = judge.Judge(
        Spy(tmp_path, b"held out"), training_on(source, validation=Images(DIGITS[101:300]))
    )
    assert held_out.count == 101 and distinct(seen[-1]) == distinct(DIGITS[:101])


def test_neighbours_in_a_stream_are_different_pictures(tmp_path):
    write_records(f"{tmp_path}/digits", DIGITS[:40])
    source = StreamedTFRecords(f"{tmp_path}/digits", image="image", shape=(8, 8, 1), buffer=10)
    table = real_pictures.nearest(
        training_on(source).batches, DIGITS[:2, ..., np.newaxis], neighbours=7
    )
    for row in table:
        distances = ((DIGITS[:40] - 1.0 * row[0, ..., 0]) ** 2).sum((1, 2))
        np.testing.assert_array_equal(row[1:, ..., 0], DIGITS[np.argsort(distances)[:7]])


def test_what_a_classifier_takes_pictures_for_is_summed_up(tmp_path):
    class Sure(Means):
        def __call__(self, pictures: np.ndarray) -> Seen:
            probabilities = np.full([len(pictures), 3], 0.1)
            probabilities[np.arange(len(pictures)), (np.arange(len(pictures)) % 5) // 2] = 0.8
            return Seen(super().__call__(pictures).features, probabilities)

    compare = judge.Judge(Sure(tmp_path, b"sure"), training_on(Images(DIGITS[:100])), 50)
    found = compare(DIGITS[:50, ..., np.newaxis])
    for shares in (found, compare.floor):
        assert shares["confidence"] == pytest.approx(0.8)
        # Of each five, two are taken for the first class, two for the second and one for the third.
        assert (shares["rarest_class"], shares["commonest_class"]) == (0.2, 0.4)


def test_evaluate_takes_inception_with_a_file_of_weights(runs, capsys, tmp_path):
    """Distances alone, in a space that is named; what was seen of real pictures is kept beside the run."""
    network = keras.applications.InceptionV3(include_top=False, weights=None)
    network.save_weights(tmp_path / "inception.weights.h5")
    weights = f"{tmp_path}/inception.weights.h5"
    assert lockstep(f"evaluate --workdir={runs}/vae --features={weights} --count=6") == 0
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    space = rf"Keras' InceptionV3 with the weights of {re.escape(weights)} \([0-9a-f]{{12}}\)"
    assert re.fullmatch(space, found["features"])
    assert (
        f"step 40, {found['pictures']} pictures in the eyes of {found['features']}\n" in out
        and "negative_elbo" in found
    )
    assert {name for name in found if name.startswith("samples/")} == {
        f"samples/{name}" for name in DISTANCES
    }
    features = []
    for path in (runs / "vae/seen").iterdir():
        with np.load(path) as kept:
            assert list(kept) == ["features"]
            features.append(kept["features"])
    assert [array.shape for array in features] == [(6, 2048)] * 2
    assert found["real/frechet_distance"] == pytest.approx(frechet_distance(*features))


class Means:
    """Sees the mean of each row, and no classes."""

    name = "means"

    def __init__(self, folder: pathlib.Path, digest: bytes) -> None:
        self.folder, self.digest, self.calls = folder, digest, 0

    def __call__(self, pictures: np.ndarray) -> Seen:
        self.calls += 1
        return Seen(pictures.mean(2).reshape(len(pictures), -1))


def test_samples_are_recognised_as_what_they_are_meant_to_be(runs, tmp_path):
    """Sample i is meant to be of class i modulo them; a network of other classes cannot say."""

    class Brightest(Means):
        def __call__(self, pictures: np.ndarray) -> Seen:
            return Seen(super().__call__(pictures).features, pictures[:, 0, :3, 0] / 255)

    compare = judge.Judge(Brightest(tmp_path, b"brightest"), the_vae(runs), count=20)
    pictures = np.zeros([20, 8, 8, 1], np.uint8)
    pictures[np.arange(20), 0, np.arange(20) % 3] = 200
    assert compare(pictures, classes=3)["recognised"] == 1
    pictures[:5] = 0
    pictures[:5, 0, 2] = 200  # Right for one of these five.
    assert compare(pictures, classes=3)["recognised"] == 16 / 20
    assert "recognised" not in compare(pictures) and "recognised" not in compare(pictures, 4)


@pytest.mark.parametrize(("given", "count"), [(None, 30), (20, 20), (90, 30)])
def test_training_pictures_may_be_of_another_size_than_the_held_out(given, count, tmp_path):
    """Which transforms bring them to that: the training's, if those of the held-out ones do not."""

    class Greys(Means):
        def __call__(self, pictures: np.ndarray) -> Seen:
            assert pictures.shape[1:] == (6, 6, 1)
            return Seen(np.stack([pictures.mean((1, 2, 3)), pictures.std((1, 2, 3))], 1))

    pictures = np.random.default_rng(0).integers(0, 256, [70, 8, 8], np.uint8)
    held_out = Images(pictures[40:, :6, :6])
    data = training_on(Images(pictures[:40]), transforms=[CentreCrop(6)], validation=held_out)
    compare = judge.Judge(Greys(tmp_path, b"greys"), data, given)
    assert compare.count == count and set(compare.floor) == DISTANCES


def test_what_was_seen_and_is_damaged_is_seen_again(runs, tmp_path):
    trainer = the_vae(runs)
    floor = judge.Judge(Means(tmp_path, b"one"), trainer, count=20).floor
    for number, path in enumerate(sorted((tmp_path / "seen").iterdir())):
        path.write_bytes(path.read_bytes()[:100] if number else b"")
    again = Means(tmp_path, b"one")
    assert judge.Judge(again, trainer, count=20).floor == floor and again.calls == 2


def test_what_a_network_does_not_know_is_left_out(runs, tmp_path):
    trainer = the_vae(runs)
    pictures = np.random.default_rng(0).integers(0, 256, [20, 8, 8, 1], np.uint8)
    net = Means(tmp_path, b"one")
    compare = judge.Judge(net, trainer, count=20)
    assert set(compare(pictures, classes=10)) == set(compare.floor) == DISTANCES
    # Held-out and other real pictures, then these.
    assert net.calls == 3 and len(list((tmp_path / "seen").iterdir())) == 2
    again = Means(tmp_path, b"one")
    assert judge.Judge(again, trainer, count=20).floor == compare.floor and again.calls == 0
    other = Means(tmp_path, b"other")
    judge.Judge(other, trainer, count=20)
    assert other.calls == 2 and len(list((tmp_path / "seen").iterdir())) == 4


def test_what_is_no_file_of_weights_is_one_line(runs, capsys, tmp_path):
    remedy = "name a file of keras.applications.InceptionV3's weights (.h5, .hdf5, .keras)"
    (tmp_path / "weights.npz").write_bytes(b"no")
    (tmp_path / "text.h5").write_bytes(b"no")
    for name, code, says in (
        ("none.weights.h5", 78, f"is not there: {remedy} or the folder of a run"),
        ("weights.npz", 78, f"is neither a folder nor Keras' weights: {remedy}"),
        (
            "text.h5",
            65,
            "cannot be read (Unable to synchronously open file (file signature not found)): save or copy it again",
        ),
    ):
        assert lockstep(f"evaluate --workdir={runs}/vae --features={tmp_path}/{name}") == code
        assert capsys.readouterr() == ("", f"lockstep: --features={tmp_path}/{name} {says}\n")


def test_what_cannot_be_compared_is_one_line(runs, capsys, tmp_path):
    assert lockstep(f"evaluate --workdir={runs}/vae --features={runs}/vae") == 78
    assert capsys.readouterr().err == (
        f"lockstep: --features={runs}/vae is a run of VAE: name one of a Classifier\n"
    )
    assert lockstep(f"evaluate --workdir={runs}/vae --features={runs}/classifier --count=5") == 78
    assert capsys.readouterr().err == (
        "lockstep: 5 pictures of a kind are too few to compare: take more than 5\n"
    )
    train = f"train lstm/pydoc --workdir={tmp_path}/text --features={runs}/classifier"
    assert lockstep(train) == 78
    assert capsys.readouterr().err == (
        "lockstep: LanguageModel draws no pictures, which --features compares: leave it out\n"
    )
    assert not (tmp_path / "text/metrics.jsonl").exists()
    assert lockstep(f"evaluate --workdir={runs}/vae --features={tmp_path}/none") == 78
    assert f"--features={tmp_path}/none holds no run" in capsys.readouterr().err
    assert lockstep(f"sample --workdir={runs}/classifier --count=2") == 78
    says = "Classifier draws no samples: leave Experiment.samples at 0, and evaluate it"
    assert capsys.readouterr().err == f"lockstep: {says}\n"
    draws = "--gin_param=Experiment.samples=4 --dry_run"
    assert lockstep(f"train classifier/digits {draws}") == 78
    assert capsys.readouterr().err == f"lockstep: {says}\n"


def test_pictures_of_another_size_are_refused(runs, capsys, tmp_path):
    np.save(tmp_path / "pictures.npy", np.zeros([40, 5, 6], np.uint8))
    lines = [
        "Experiment.objective = @VAE",
        "Experiment.source = @numpy_images()",
        "Experiment.global_batch = 4",
        "Experiment.steps = 1",
        f'numpy_images.images = "{tmp_path}/pictures.npy"',
    ]
    (tmp_path / "other.gin").write_text("\n".join(lines))
    assert lockstep(f"train {tmp_path}/other.gin --workdir={tmp_path}/other") == 0
    capsys.readouterr()
    assert lockstep(f"evaluate --workdir={tmp_path}/other --features={runs}/classifier") == 78
    assert capsys.readouterr().err == (
        f"lockstep: the pictures are [5, 6, 1], and the classifier of {runs}/classifier is for [8, 8, 1]: train one on the "
        "same data, and give both the same sizes in Experiment.validation_transforms\n"
    )


def test_a_classifier_sees_pictures_through_its_own_transforms(tmp_path):
    def net(*transforms, side=2, sizes=0, devices=(None,)):
        means = lambda images: (tf.reduce_mean(images, [1, 2]), tf.ones([images.shape[0], 1]))  # noqa: E731
        return ClassifierNet(
            SimpleNamespace(
                objective=SimpleNamespace(recognise=means, networks={}),
                batches=Batches(
                    Images(np.zeros([4, side, side], np.uint8)),
                    global_batch=1,
                    transforms=transforms[:sizes],
                    validation_transforms=transforms,
                ),
                workdir=tmp_path,
            ),
            devices,
        )

    pictures = np.random.default_rng(0).integers(256, size=(501, 2, 2, 1), dtype=np.uint8)
    plain, normalised = net(), net(Normalize(0.5, 0.25))
    expected = pictures.mean((1, 2)) / 255
    np.testing.assert_allclose(plain(pictures).features, expected, atol=1e-6)
    np.testing.assert_allclose(normalised(pictures).features, expected * 4 - 2, atol=1e-5)
    assert plain.digest != normalised.digest
    # They have its size already, and are not brought to it again.
    sized = net(Resize(3), CentreCrop(2), Normalize(0.5, 0.25), side=8, sizes=2)
    np.testing.assert_array_equal(sized(pictures).features, normalised(pictures).features)
    # What is random in them belongs to a picture, whichever part it is in.
    drawn = net(Dequantize(levels=256))(pictures).features
    assert np.all((drawn > expected * 255 / 256) & (drawn < (expected * 255 + 1) / 256))
    assert len(np.unique(drawn - expected * 255 / 256)) > 480
    # Nor on which device, though 501 and 1,501 do not divide.
    on_two = net(Dequantize(levels=256), devices=("CPU:0", "CPU:1"))
    np.testing.assert_array_equal(on_two(pictures).features, drawn)
    many = np.concatenate([pictures] * 3)[:1501]
    np.testing.assert_array_equal(on_two(many).features, net(Dequantize(levels=256))(many).features)
    np.testing.assert_array_equal(on_two(many).features[:501], drawn)
