"""Samples in the eyes of a classifier, from the command line: what is compared with what."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from tests.trainer.objectives import quiet
from trainer import catalogue, config_files, judge
from trainer.main import main

SMALL = (
    "--gin_param=STEPS=40 --gin_param=Experiment.log_every=40 --gin_param=ConvolutionalEncoder.width=4 "
    "--strategy=one_device"
)


def lockstep(arguments: str, *more: str) -> int:
    return main([*arguments.split(), *more])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The runs of a classifier, of a VAE of the same digits and of one of larger pictures."""
    folder = tmp_path_factory.mktemp("runs")
    assert lockstep(f"train classifier/digits --workdir={folder}/classifier {SMALL}") == 0
    assert lockstep(f"train vae/digits --workdir={folder}/vae --gin_param=STEPS=40 {SMALL}") == 0
    return folder


def test_evaluate_compares_samples_and_real_pictures(runs, capsys):
    command = f"evaluate --workdir={runs}/vae --features={runs}/classifier"
    assert lockstep(command) == 0
    out = capsys.readouterr().out
    assert "samples" in out and "real" in out and "frechet_distance" in out
    found = json.loads(out.splitlines()[-1])
    assert found["step"] == 40 and "negative_elbo" in found
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
    names = catalogue.registry()
    resolved = names.resolve(config_files.read([f"{runs}/vae/config.gin"]))
    trainer = quiet(names.build(resolved))
    source = trainer.experiment.source
    trained = source.decode(source.read(tf.range(len(source), dtype=tf.int64))["image"])
    pictures = np.stack([trained[5], np.full([8, 8, 1], 255, np.uint8)])
    table = judge.nearest(trainer, pictures, neighbours=3)
    assert table.shape == (2, 4, 8, 8, 1)
    known = {picture.tobytes() for picture in trained}
    for row in table:
        distances = [((picture - 1.0 * row[0]) ** 2).sum() for picture in row[1:]]
        assert distances == sorted(distances)
        everything = sorted(((trained - 1.0 * row[0]) ** 2).sum((1, 2, 3)))
        np.testing.assert_allclose(distances, everything[:3])
        assert {picture.tobytes() for picture in row[1:]} <= known
    np.testing.assert_array_equal(table[0, 0], table[0, 1])
    assert (runs / "vae/samples/step-00000040-neighbours.png").exists()


def test_a_training_ends_with_the_comparison(runs, capsys, tmp_path):
    command = f"train vae/digits --workdir={runs}/vae {SMALL}"
    assert lockstep(f"{command} --features={runs}/classifier") == 0
    out = capsys.readouterr().out
    assert "already done" in out and f"samples in the eyes of {runs}/classifier" in out
    assert "frechet_distance" in out
    assert lockstep(f"{command} --features={tmp_path}/none") == 78
    assert "holds no run" in capsys.readouterr().err


def test_the_real_pictures_are_the_data(runs, monkeypatch):
    """Held out beside training pictures; where none is held out, two halves without an overlap."""
    digits = load_digits()["images"].astype(np.uint8)
    seen: list[np.ndarray] = []
    recognise = judge.Judge._recognise

    def spy(self: judge.Judge, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(pictures)
        return recognise(self, pictures)

    monkeypatch.setattr(judge.Judge, "_recognise", spy)
    for path in (runs / "classifier/seen").iterdir():
        path.unlink()
    assert lockstep(f"evaluate --workdir={runs}/vae --features={runs}/classifier") == 0
    held_out, real, samples = seen
    assert len(held_out) == len(samples) == len(real) == 180
    known = {np.rint(digit / 16 * 255).astype(np.uint8).tobytes() for digit in digits}
    for pictures in (held_out, real):
        assert {picture.tobytes() for picture in pictures} <= known
    assert not {p.tobytes() for p in held_out} & {p.tobytes() for p in real}
    assert len({p.tobytes() for p in samples}) == 180


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
        "lockstep: LSTMLanguageModel draws no pictures, which --features compares: leave it out\n"
    )
    assert not (tmp_path / "text/metrics.jsonl").exists()
    assert lockstep(f"evaluate --workdir={runs}/vae --features={tmp_path}/none") == 78
    assert f"workdir {tmp_path}/none holds no run" in capsys.readouterr().err
    assert lockstep(f"sample --workdir={runs}/classifier --count=2") == 78
    says = "Classifier draws no samples: set Experiment.samples = 0, and evaluate it"
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
