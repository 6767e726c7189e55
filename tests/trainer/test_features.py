"""Inception's features are those of Keras' own model, whichever way its weights were saved; what is no such file is one line."""

from __future__ import annotations

import pathlib
import re
import socket
from collections.abc import Iterator

import keras
import numpy as np
import pytest
from PIL import Image

from trainer.exits import ConfigError, DataProblem
from trainer.features import InceptionNet

WHOLE = ("whole.weights.h5", "whole.h5")
BARE = ("bare.h5", "bare.keras")


@pytest.fixture(scope="module")
def bare() -> keras.Model:
    """Keras' network without its top, with weights that are all different from those that it begins with."""
    keras.utils.set_random_seed(0)
    network = keras.applications.InceptionV3(include_top=False, pooling="avg", weights=None)
    rng = np.random.default_rng(0)
    for weight in network.weights:
        if weight.path.endswith(("beta", "moving_mean")):
            weight.assign(rng.normal(0, 0.1, weight.shape))
        elif weight.path.endswith("moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return network


@pytest.fixture(scope="module")
def whole(bare: keras.Model) -> keras.Model:
    """With its top, and otherwise the same weights."""
    network = keras.applications.InceptionV3(weights=None)
    network.set_weights([*bare.get_weights(), *network.layers[-1].get_weights()])
    return network


@pytest.fixture
def built(whole: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made without weights was made before, which takes seconds: for tests in which none are read."""
    monkeypatch.setattr(keras.applications, "InceptionV3", lambda weights: whole)


@pytest.fixture(scope="module")
def files(
    bare: keras.Model, whole: keras.Model, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[pathlib.Path]:
    """A folder of its weights in several forms, 400 MB."""
    folder = tmp_path_factory.mktemp("weights")
    for network, names in ((whole, WHOLE), (bare, BARE)):
        for name in names:
            path = folder / name
            (network.save_weights if ".weights." in name else network.save)(path)
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def nets(files: pathlib.Path) -> dict[str, InceptionNet]:
    """Of each form of the file, made without a connection."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was made")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", refuse)
        return {name: InceptionNet(files / name, files) for name in (*WHOLE, *BARE)}


def resized(pictures: np.ndarray) -> np.ndarray:
    """299 × 299 by Pillow, which filters when it makes smaller; float32, three channels in [0, 255]."""
    coloured = np.repeat(pictures, 3 // pictures.shape[-1], -1).astype(np.float32)
    channels = [
        [
            Image.fromarray(c).resize((299, 299), Image.Resampling.BILINEAR)
            for c in np.moveaxis(p, -1, 0)
        ]
        for p in coloured
    ]
    return np.moveaxis(np.array([[np.asarray(c) for c in p] for p in channels]), 1, -1)


@pytest.mark.parametrize("shape", [(3, 8, 8, 1), (2, 40, 28, 3), (1, 400, 350, 3)])
def test_features_are_those_of_keras_own_model(bare, nets, shape, monkeypatch):
    pictures = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    monkeypatch.setattr(InceptionNet, "BATCH", 2)
    seen = nets["bare.h5"](pictures)
    expected = bare(keras.applications.inception_v3.preprocess_input(resized(pictures))).numpy()
    assert seen.probabilities is None and seen.features.shape == (shape[0], 2048)
    assert expected.std() > 0.05
    np.testing.assert_allclose(seen.features, expected, rtol=0, atol=1e-5)


def test_each_form_of_a_file_is_one_space(bare, files, nets, tmp_path):
    """Its name tells the weights, the layer of the classes is none of them, and nothing is downloaded."""
    (digest,) = {net.digest for net in nets.values()}
    for name, net in nets.items():
        weights = f"{files / name} ({net.digest.hex()[:12]})"
        assert net.name == f"Keras' InceptionV3 with the weights of {weights}"
    last = bare.weights[-1]
    before = last.numpy()
    last.assign(before + 1e-3)
    bare.save_weights(tmp_path / "other.weights.h5")
    last.assign(before)
    assert InceptionNet(tmp_path / "other.weights.h5", tmp_path).digest != digest


@pytest.mark.parametrize("name", ["other.h5", "other.weights.h5", "other.keras"])
def test_weights_of_another_network_are_refused(name, built, tmp_path, recwarn):
    other = keras.Sequential([keras.Input([299, 299, 3]), keras.layers.Conv2D(32, 3)])
    (other.save_weights if ".weights." in name else other.save)(tmp_path / name)
    recwarn.clear()
    says = (
        f"--features={tmp_path / name} holds weights of another network: name a file of "
        "keras.applications.InceptionV3's weights (.h5, .hdf5, .keras)"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}$"):
        InceptionNet(tmp_path / name, tmp_path)
    assert not [w for w in recwarn if "nested container" in str(w.message)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cut.h5", "truncated file"),
        ("cut.weights.h5", "truncated file"),
        ("text.h5", "file signature not found"),
        ("text.keras", "File is not a zip file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(files, built, name, reason, tmp_path):
    whole = files / name.replace("cut", "whole")
    (tmp_path / name).write_bytes(whole.read_bytes()[:1_000_000] if whole.exists() else b"no")
    with pytest.raises(DataProblem) as error:
        InceptionNet(tmp_path / name, tmp_path)
    says = str(error.value)
    assert says.startswith(f"--features={tmp_path / name} cannot be read (") and reason in says
    assert says.endswith("): save or copy it again") and "\n" not in says


def test_pictures_of_other_channels_are_refused(nets):
    says = "the pictures have 2 channels, and InceptionV3 is for 1, grey, or 3, colours"
    with pytest.raises(ConfigError, match=f"^{says}$"):
        nets["bare.h5"](np.zeros([1, 8, 8, 2], np.uint8))
