"""Every shipped config builds from its file, takes 2 steps and draws a sample."""

from __future__ import annotations

import json
import math
import pathlib
import struct
import sys
from pydoc_data.topics import topics

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import configs
from input_pipeline.noise import Noise
from tests.models.tiny_gpt2 import END, TinyGPT2
from trainer import config_files
from trainer.checkpoint import read
from trainer.main import main, registry

NETWORKS = (
    "ResNetGenerator",
    "ResNetDiscriminator",
    "ConvolutionalEncoder",
    "ConvolutionalDecoder",
)
FOLDER = pathlib.Path(configs.__file__).parent
NAMES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.gin"))


def test_each_family_has_a_config():
    families = {"classifier", "gan", "vae", "lstm", "transformer"}
    assert {name.split("/")[0] for name in NAMES} == families


def _write_mnist(folder: pathlib.Path) -> None:
    """Four files in the form of MNIST's, of random pictures."""
    folder.mkdir()
    chance = np.random.default_rng(0)
    for part, count in (("train", 300), ("t10k", 100)):
        images = chance.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())


def _write_photos(folder: pathlib.Path) -> None:
    """Pictures in colour and in grey, of several sizes."""
    folder.mkdir()
    chance = np.random.default_rng(0)
    for number in range(40):
        shape = (80, 70 + number, 3) if number % 4 else (70, 90)
        Image.fromarray(chance.integers(0, 256, shape, np.uint8)).save(folder / f"{number}.png")


def _write_texts(folder: pathlib.Path) -> None:
    """The first 70,000 characters behind `help()`, and parts of them."""
    folder.mkdir()
    text = "\n".join(topics[name] for name in sorted(topics))[:70_000]
    parts = {
        "all": text,
        "train": text[:50_000],
        "valid": text[50_000:60_000],
        "test": text[60_000:],
    }
    for name, part in parts.items():
        (folder / f"{name}.txt").write_text(part, "utf-8")


def _write_preset(folder: pathlib.Path) -> None:
    """A GPT-2 of keras-hub with its tokenizer."""
    import keras_hub

    models, tiny = keras_hub.models, folder.parent / "tiny"
    TinyGPT2().save(tiny)
    tokenizer = models.GPT2Tokenizer(f"{tiny}/vocab.json", f"{tiny}/merges.txt")
    sizes = {"vocabulary_size": 264, "num_layers": 1, "num_heads": 2, "hidden_dim": 8}
    sizes |= {"intermediate_dim": 16, "max_sequence_length": 64}
    preprocessor = models.GPT2CausalLMPreprocessor(tokenizer)
    models.GPT2CausalLM(models.GPT2Backbone(**sizes), preprocessor).save_to_preset(folder)


def _data(bound: set[str], folder: pathlib.Path) -> list[str]:
    """Arguments that name data and models of a form that the config reads, which are made."""
    model = []
    if "HuggingFaceFolder.path" in bound:
        of_hub = "KerasHubPreset.preset" in bound
        (_write_preset if of_hub else TinyGPT2().save)(folder.parent / "model")
        model = [f'--gin_param=MODEL="{folder.parent}/model"', f"--gin_param=END={END}"]
    if "mnist.folder" in bound:
        _write_mnist(folder)
        return [f'--gin_param=DATA="{folder}"']
    if "ImageFolder.folder" in bound:
        _write_photos(folder)
        # They are for a GPU: a CPU takes minutes for two steps of their sizes.
        small = [f"--gin_param={n}.width=8" for n in NETWORKS if f"{n}.width" in bound]
        return [f'--gin_param=DATA="{folder}"', "--gin_param=Experiment.global_batch=16", *small]
    if "text_files.path" not in bound:
        return []
    _write_texts(folder)
    several = "VALID" in bound
    macros = {"DATA": "train" if several else "all", "VALID": "valid", "TEST": "test"}
    texts = [f'--gin_param={m}="{folder}/{file}.txt"' for m, file in macros.items() if m in bound]
    return texts + model


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_takes_two_steps(name, tmp_path, capsys):
    bound = {binding.key for binding in config_files.read([name]).bindings}
    evaluates = "Experiment.evaluate_every" in bound
    draws = not name.startswith("classifier/")
    short = ["steps=2", "log_every=1", *["samples=2"] * draws, *["evaluate_every=2"] * evaluates]
    arguments = [f"--gin_param=Experiment.{field}" for field in short]
    workdir = tmp_path / "run"
    # A file may give the same number of steps to a schedule; a macro is bound once for all.
    arguments += ["--gin_param=STEPS=2"] * ("STEPS" in bound)
    arguments += ["--gin_param=Decoding.length=8"] * ("Decoding.length" in bound)
    arguments += _data(bound, tmp_path / "data")
    code = main(["train", name, f"--workdir={workdir}", "--strategy=one_device", *arguments])
    assert code == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    losses = {k: v for k, v in rows[1]["metrics"].items() if k.endswith("loss")}
    assert losses and None not in losses.values()
    assert all(rows[1]["metrics"][k] == 0 for k in rows[1]["metrics"] if "skipped" in k)
    evaluated = [k for k in rows[1]["metrics"] if k.startswith("eval/")]
    assert bool(evaluated) == evaluates
    assert all(rows[1]["metrics"][k] is not None for k in evaluated)
    arrays = read(workdir / "checkpoints" / "step-00000002.safetensors").arrays
    assert arrays["step"] == 2
    assert len(list(workdir.glob("samples/step-????????.*"))) == draws
    out = capsys.readouterr().out
    assert "step-00000002" in out and "tensorboard --logdir" in out


def test_words_have_a_perplexity_of_each_part(tmp_path, capsys):
    """That of the test part is what a run says whose validation part is the same file, and so is the trigram's beside it."""
    _write_texts(tmp_path / "data")
    texts = {name: f'"{tmp_path}/data/{name}.txt"' for name in ("train", "valid", "test")}
    small = [f"DATA={texts['train']}", f"TEST={texts['test']}"]
    small += ["STEPS=2", "Decoding.length=8", "LSTMNetwork.widths=(8, 8)"]

    def evaluated(validation, part):
        run = [f"--workdir={tmp_path}/{validation}", "--strategy=one_device"]
        changes = [*small, f"VALID={texts[validation]}"]
        train = ["train", "lstm/words_small", *run]
        assert main([*train, *(f"--gin_param={change}" for change in changes)]) == 0
        capsys.readouterr()
        streams = ["streams=1", f'part="{part}"']
        of = [f"--gin_param=validation/TextStreams.{change}" for change in streams]
        assert main(["evaluate", *run, *of]) == 0
        out = capsys.readouterr().out
        assert f"{validation}, step 2, validation/TextStreams.streams=1, validation" in out
        return json.loads(out.splitlines()[-1])

    validation, test = evaluated("valid", "validation"), evaluated("valid", "test")
    assert test == evaluated("test", "validation")
    for found in (validation, test):
        assert math.isclose(found["perplexity"], math.exp(found["loss"]), rel_tol=1e-5)
    for name in ("perplexity", "baseline/perplexity"):
        assert validation[name] != test[name]


def test_keras_hub_is_asked_for(tmp_path, capsys, monkeypatch):
    """By its configuration where it is not installed, in a line."""
    _write_texts(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    values = {"MODEL": f"{tmp_path}/model", "DATA": f"{tmp_path}/data/all.txt"}
    params = [f'--gin_param={name}="{value}"' for name, value in values.items()]
    params += ['--gin_param=text_files.tokens="bytes"', "--gin_param=END=10"]
    train = ["train", "transformer/keras_hub_lora", "--strategy=one_device", *params]
    assert main([*train, f"--workdir={tmp_path}/run"]) == 69
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("keras-hub, which is not installed: pip install keras-hub")


def test_words_are_learnt_as_zaremba_learnt_them(tmp_path):
    """20 streams of 20 words; 2 layers of 200 units without dropout; rates of 1, for a sum over 20 words, in 4 epochs of 13, then
    half of that before in each; the clip; weights, biases too, within ±0.1."""
    bound = {binding.key for binding in config_files.read(["lstm/words_small"]).bindings}
    texts = [text.removeprefix("--gin_param=") for text in _data(bound, tmp_path / "data")]
    names = registry()
    experiment = names.build(names.resolve(config_files.read(["lstm/words_small"], texts)))
    model = experiment.objective(experiment.source.element_spec)
    assert (experiment.source.streams, experiment.global_batch, model.window) == (20, 20, 20)
    assert experiment.source.corpus.tokenizer.size <= 10_000
    epoch = math.ceil(
        math.ceil(929_588 / 20) / 20
    )  # Targets of the Penn Treebank, a stream and a window.
    assert experiment.steps == 13 * epoch and model.optimizer.clip_norm == 5 / 20
    assert experiment.evaluate_every == epoch
    for number in range(13):
        expected = 20 * 0.5 ** max(0, number - 3)
        for step in (number * epoch, (number + 1) * epoch - 1):
            assert float(model.optimizer.learning_rate(tf.constant(step, tf.int64))) == expected
    model.build(Noise(0, "weights", rows=1))
    network = model.network
    assert network.embedding == 200 and [layer.units for layer in network.layers] == [200, 200]
    assert not network.tied and not network.zoneout and network.recurrent_dropout.rate == 0
    assert [dropout.rate for dropout in network.dropouts] == [0, 0, 0]
    weights = [v.numpy() for v in network.trainable_variables]
    assert len(weights) == 9
    assert all(0.099 < np.abs(weight).max() < 0.1 for weight in weights)
