"""Models of keras-hub: loaded without their dropout, the same on any layout, adapted at low rank."""

import functools
import shutil

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.batches import DataError
from input_pipeline.keras_hub_preset import KerasHubPreset
from input_pipeline.noise import Noise
from models.keras_hub_network import KerasHubNetwork
from tests.contract.families import pretrained_text
from tests.contract.runs import assert_close, assert_equal, results
from tests.models import objective_checks as checks
from trainer.exits import ConfigError
from trainer.hardware import Hardware
from trainer.trainer import Trainer

VOCABULARY = 120
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, [3, 12]).astype(np.int32)
SIZES = {"vocabulary_size": 128, "num_layers": 2, "hidden_dim": 8, "intermediate_dim": 16}
SIZES |= {"dropout": 0.1}
ONE = Hardware(strategy="one_device")
FOUR = Hardware(replicas=2, microbatch=4)


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """Folders of a GPT-2 and a Llama of random weights, and their logits of `TOKENS`."""
    folder = tmp_path_factory.mktemp("presets")
    keras.utils.set_random_seed(0)
    models = keras_hub.models
    gpt2 = models.GPT2Backbone(**SIZES, num_heads=2, max_sequence_length=64)
    heads = {"num_query_heads": 2, "num_key_value_heads": 1}
    llama = models.LlamaBackbone(**SIZES, **heads)
    expected = {}
    for name, backbone, kind in (
        ("gpt2", gpt2, models.GPT2CausalLM),
        ("llama", llama, models.LlamaCausalLM),
    ):
        for variable in backbone.trainable_variables:
            variable.assign(variable + 0.2 * np.random.default_rng(1).normal(size=variable.shape))
        backbone.save_to_preset(folder / name)
        inputs = {"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}
        expected[name] = kind(backbone=backbone, preprocessor=None)(inputs).numpy()
    return folder, expected


def make(folder, policy="float64", vocabulary=VOCABULARY, **options):
    with checks.dtype_policy(policy):
        preset = KerasHubPreset(str(folder))
        noise = Noise(0, "weights", rows=1, dtype=checks.NOISE_DTYPE[policy])
        return KerasHubNetwork(vocabulary, noise=noise, name="network", preset=preset, **options)


def trainer(folder, workdir, hardware=ONE, said=None, lora_rank=2, **fields):
    preset = KerasHubPreset(str(folder))
    network = functools.partial(KerasHubNetwork, preset=preset, lora_rank=lora_rank)
    fields = {"steps": 6, "evaluate_every": 3, "checkpoint_every": 3} | fields
    workdir.mkdir(exist_ok=True)
    experiment = pretrained_text(network, **fields)
    return Trainer(experiment, hardware, workdir, note=(said if said is not None else []).append)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logits_are_those_of_keras_hub(name, presets):
    """And at the start of an adaptation too, to the bit; a text in parts is the whole."""
    folder, expected = presets
    network = make(folder / name)
    logits, state = network(TOKENS, training=True)
    np.testing.assert_allclose(logits, expected[name][:, :, :VOCABULARY], rtol=1e-4, atol=1e-5)
    assert state == {} and network.context == (64 if name == "gpt2" else None)
    assert not network.non_trainable_variables
    adapted = make(folder / name, lora_rank=2)
    np.testing.assert_array_equal(adapted(TOKENS)[0], logits)
    assert {v.name for v in adapted.trainable_variables} == {"lora_kernel_a", "lora_kernel_b"}
    assert len(adapted.trainable_variables) == 2 * 2 * 2
    state, parts = network.start(3, 15), []
    for part in np.split(TOKENS, [4, 5], 1):
        some, state = network(tf.constant(part), state)
        parts.append(some)
    # Its rotary positions are float32 in any precision.
    np.testing.assert_allclose(tf.concat(parts, 1), logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_layouts_and_restarts(name, presets, tmp_path):
    """Adapted, with samples: as on one device, and stopped after half of it; checkpoints hold what is learnt alone."""
    folder, said = presets[0] / name, []
    trainer(folder, tmp_path / "one", said=said, samples=2).train()
    off = f"the dropout of {folder}, up to 0.1, is off: it is not the same on replicas"
    assert off in said
    one = results(tmp_path / "one")
    names = [name for name in one.weights if name.startswith("network/")]
    assert len(names) == 8 and all("/lora_kernel_" in name for name in names)
    assert one.rows[-1][2]["train/loss"] < one.rows[0][2]["train/loss"]
    trainer(folder, tmp_path / "two", FOUR, samples=2).train()
    # Keras' adaptations are float32 in any precision.
    assert_close(results(tmp_path / "two"), one, losses=1e-6, weights=1e-5)
    trainer(folder, tmp_path / "half", steps=3, samples=2).train()
    trainer(folder, tmp_path / "half", samples=2).train()
    assert_equal(results(tmp_path / "half"), one)
    other = shutil.copytree(folder, tmp_path / "other")
    backbone = keras_hub.models.Backbone.from_preset(str(folder))
    backbone.trainable_variables[0].assign_add(tf.ones([128, 8]))
    backbone.save_to_preset(other)
    with pytest.raises(ConfigError, match="does not fit the pretrained weights"):
        trainer(other, tmp_path / "one", steps=9, samples=2).train()


def test_all_of_a_model_on_another_layout(presets, tmp_path):
    runs = []
    for hardware in (ONE, FOUR):
        workdir = tmp_path / str(hardware.replicas)
        trainer(presets[0] / "gpt2", workdir, hardware, lora_rank=None).train()
        runs.append(results(workdir))
    assert_close(*runs, losses=1e-9, weights=1e-8)
    assert sum(name.startswith("network/") for name in runs[0].weights) == 36


def test_mistakes(presets, tmp_path):
    folder = presets[0] / "gpt2"

    def message(change):
        broken = tmp_path / "preset"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(folder, broken)
        change(broken)
        with pytest.raises(DataError) as caught:
            KerasHubPreset(str(broken)).load()
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"the preset {broken} cannot be loaded (")

    again = "): save it again by save_to_preset, or name another"
    for part in ("config.json", "model.weights.h5"):
        said = message(lambda preset, part=part: (preset / part).unlink())
        assert said.endswith(again) and part.split(".")[0] in said
    assert message(lambda preset: (preset / "config.json").write_text("{")).endswith(again)
    assert message(lambda preset: (preset / "model.weights.h5").write_bytes(b"x")).endswith(again)
    assert message(shutil.rmtree).endswith(
        "preset is no folder: name one that has a keras-hub preset"
    )

    def bert(preset):
        config = {"vocabulary_size": 9, "num_layers": 1, "num_heads": 1, "hidden_dim": 4}
        keras_hub.models.BertBackbone(**config, intermediate_dim=4).save_to_preset(preset)

    assert message(bert).endswith(
        "is a BertBackbone, of which keras-hub has no causal language model: name another"
    )
    off = f"the dropout of {folder}, up to 0.1, is off: it is not the same on replicas"
    few = f"the data has 63 tokens, and the model in {folder} 128: it knows them only if "
    notes = make(folder, vocabulary=63).notes
    assert len(notes) == 2 and notes[0].startswith(few) and notes[1] == off
    for options, expected in (
        ({"vocabulary": 129}, "the data has 129 tokens, and the model in .* 128: encode"),
        ({"lora_rank": 0}, "lora_rank is 0 and lora_alpha 16.0: rank must be at least 1"),
        (
            {"lora_rank": 2, "lora_layers": ["q"]},
            r"lora_layers is \['q'\]: choose .*key, query, value",
        ),
    ):
        with pytest.raises(ValueError, match=expected):
            make(folder, **options)
