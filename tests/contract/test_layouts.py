"""Promise 2 and 4: one config learns the same on any number of replicas, with accumulation, with XLA and without."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import pytest

from models import lstm_recurrence
from models.language_model import LanguageModel
from models.lstm_network import LSTMNetwork
from tests.contract.families import (
    FAMILIES,
    OTHERS,
    class_gan,
    dcgan,
    fingerprint,
    gpt2_full,
    gpt2_lora,
    iwae,
    lstm,
    transformer,
    two_layers,
    vq_vae,
)
from tests.contract.runs import ONE, Run, assert_close, assert_equal, train
from trainer.hardware import Hardware

LAYOUTS = {
    "replicas2": Hardware(replicas=2, strategy="mirrored"),
    "replicas4": Hardware(replicas=4, strategy="mirrored"),
    "accumulation2": Hardware(strategy="one_device", microbatch=8),
    "accumulation4": Hardware(strategy="one_device", microbatch=4),
    "replicas2_accumulation2": Hardware(replicas=2, microbatch=4),
}
BOTH = "replicas2_accumulation2"
"""Replicas that accumulate, on which goes wrong what does so on replicas or in accumulation: each test has it."""
XLA_LAYOUTS = {"xla": Hardware(strategy="one_device", xla="on")}
XLA_LAYOUTS |= {f"xla_{name}": replace(layout, xla="on") for name, layout in LAYOUTS.items()}
# The VAE trains on every layout in each run of the tests; of the others those that can find more than it does.
ALWAYS = {
    "gan": ("accumulation4", BOTH),
    "vae": tuple(LAYOUTS),
    # Its streams are carried, and 6 held-out ones are no multiple of 4 replicas.
    "lstm": ("replicas4", BOTH),
}


def cases(layouts: Iterable[str], always: Callable[[str], Iterable[str]]) -> list:
    """Each family on each layout: what is not always run takes `--full`."""
    return [
        pytest.param(family, name, marks=[] if name in always(family) else pytest.mark.full)
        for family in FAMILIES
        for name in layouts
    ]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, int], Run]:
    """Runs on one device without XLA, made once."""
    made: dict[tuple, Run] = {}

    def get(family: str, precision: str, steps: int) -> Run:
        key = family, precision, steps
        if key not in made:
            experiment = (FAMILIES | OTHERS)[family](precision=precision, steps=steps)
            made[key] = train(experiment, ONE, tmp_path_factory.mktemp("one"))
        return made[key]

    return get


@pytest.mark.parametrize(("family", "layout"), cases(LAYOUTS, ALWAYS.__getitem__))
def test_float64_is_the_same(family, layout, one_device, tmp_path):
    run = train(FAMILIES[family](), LAYOUTS[layout], tmp_path)
    expected = one_device(family, "float64", 50)
    assert len(run.rows) == 50
    assert_close(run, expected, losses=1e-9, weights=1e-8)


@pytest.mark.parametrize(("family", "layout"), cases(LAYOUTS, lambda _: [BOTH]))
def test_float32_begins_the_same(family, layout, one_device, tmp_path):
    run = train(FAMILIES[family](precision="float32", steps=5), LAYOUTS[layout], tmp_path)
    expected = one_device(family, "float32", 5)
    assert len(run.rows) == 5
    assert_close(run, expected, losses=1e-5)


@pytest.mark.parametrize(("family", "layout"), cases(XLA_LAYOUTS, lambda _: [f"xla_{BOTH}"]))
def test_xla_learns_the_same(family, layout, one_device, tmp_path):
    run = train(FAMILIES[family](), XLA_LAYOUTS[layout], tmp_path)
    assert_close(run, one_device(family, "float64", 50), losses=1e-7, weights=1e-6)


def test_batch_norm_in_a_discriminator_is_the_same(tmp_path):
    """It is called twice in a loss, for real and for generated examples, and each call moves its averages."""
    one = train(dcgan(steps=20), ONE, tmp_path / "one")
    two = train(dcgan(steps=20), LAYOUTS[BOTH], tmp_path / "two")
    assert_close(two, one, losses=1e-9, weights=1e-8)
    names = [n for n in one.weights if n.startswith("discriminator") and "moving_variance" in n]
    assert names
    for name in names:
        assert abs(one.weights[name] - one.initial[name]).max() > 0.01, name


def test_classes_spectral_norm_and_a_lazy_penalty_are_the_same(tmp_path):
    """The vectors of spectral norm move with the weights alone; the penalty comes at every fourth step."""
    evaluated = class_gan(steps=10, evaluate_every=10)
    one = train(evaluated, ONE, tmp_path / "one")
    two = train(evaluated, LAYOUTS[BOTH], tmp_path / "two")
    assert_close(two, one, losses=1e-9, weights=1e-8)
    assert (
        "eval/fake_loss" in one.rows[-1][2]
        and "train/discriminator/fake_diversity" in one.rows[0][2]
    )
    penalties = [metrics["train/discriminator/gradient_penalty"] for _, _, metrics in one.rows]
    assert [penalty > 0 for penalty in penalties] == [step % 4 == 0 for step in range(10)]
    vectors = [name for name in one.weights if name.endswith("/u")]
    assert vectors
    for name in vectors:
        assert abs(one.weights[name] - one.initial[name]).max() > 0.01, name


@pytest.mark.parametrize(
    "precision, steps, compiled, losses, weights",
    [
        ("float64", 50, "_compiled_forward", 1e-9, 1e-8),
        ("bfloat16", 5, "_compiled_cell", 0.02, 0.02),
    ],
)
def test_loops_that_xla_compiles_within_a_step_are_the_same(
    precision, steps, compiled, losses, weights, one_device, tmp_path, monkeypatch
):
    """As those of an LSTM of usual size on CPU, or in bfloat16 their cells."""
    expected, called = one_device("lstm", precision, steps), []
    function = getattr(lstm_recurrence, compiled)

    def counted(*arguments):
        called.append(True)
        return function(*arguments)

    monkeypatch.setattr(lstm_recurrence, "LARGE", 1)
    monkeypatch.setattr(lstm_recurrence, compiled, counted)
    run = train(FAMILIES["lstm"](precision=precision, steps=steps), LAYOUTS[BOTH], tmp_path)
    assert called
    assert_close(run, expected, losses=losses, weights=weights)


def test_zoneout_variational_dropout_and_tied_weights_are_the_same(tmp_path):
    network = partial(
        LSTMNetwork, embedding=8, widths=(8,), dropout=0.2, variational=True, tied=True
    )
    network = partial(network, zoneout_h=0.1, zoneout_c=0.2)
    wanted = replace(lstm(steps=20), objective=partial(LanguageModel, network=network))
    one = train(wanted, ONE, tmp_path / "one")
    two = train(wanted, LAYOUTS[BOTH], tmp_path / "two")
    assert_close(two, one, losses=1e-9, weights=1e-8)
    assert one.rows[-1][2]["train/loss"] < one.rows[0][2]["train/loss"]


@pytest.mark.parametrize("make", [iwae, two_layers])
def test_several_samples_an_example_are_the_same(make, tmp_path):
    """Of importance weighting in training or of free bits, and in evaluation in chunks of many more."""
    one = train(make(steps=20), ONE, tmp_path / "one")
    two = train(make(steps=20), LAYOUTS[BOTH], tmp_path / "two")
    assert_close(two, one, losses=1e-9, weights=1e-8)
    assert "eval/negative_log_likelihood" in one.rows[-1][2]


def test_a_codebook_is_the_same(tmp_path):
    one = train(vq_vae(steps=20), ONE, tmp_path / "one")
    two = train(vq_vae(steps=20), LAYOUTS[BOTH], tmp_path / "two")
    assert_close(two, one, losses=1e-9, weights=1e-8)
    assert abs(one.weights["codebook/sums"] - one.initial["codebook/sums"]).max() > 0.01


@pytest.mark.parametrize("make", [transformer, gpt2_lora, gpt2_full])
def test_a_transformer_is_the_same(make, tmp_path):
    """With dropout in attention and of adaptations, and in samples, which go through its cache."""
    one = train(make(steps=20, samples=4), ONE, tmp_path / "one")
    two = train(make(steps=20, samples=4), LAYOUTS[BOTH], tmp_path / "two")
    assert_close(two, one, losses=1e-9, weights=1e-8)
    assert one.rows[-1][2]["train/loss"] < one.rows[0][2]["train/loss"]
    samples = [sorted((tmp_path / n / "samples").glob("*.txt")) for n in ("one", "two")]
    assert samples[0]
    for first, second in zip(*samples, strict=True):
        assert first.read_text() == second.read_text()


@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS | XLA_LAYOUTS)
@pytest.mark.parametrize("family", OTHERS)
def test_the_other_families_are_the_same_on_every_layout(family, layout, one_device, tmp_path):
    run = train(OTHERS[family](steps=10), (LAYOUTS | XLA_LAYOUTS)[layout], tmp_path)
    rounding = 100 if layout in XLA_LAYOUTS else 1
    assert len(run.rows) == 10
    assert_close(
        run, one_device(family, "float64", 10), losses=1e-9 * rounding, weights=1e-8 * rounding
    )


def test_ids_noise_and_augmentation_are_equal_to_the_bit(tmp_path):
    """Also with XLA: ids and bits are integers, and their sums are exact."""
    expected = train(fingerprint(), ONE, tmp_path / "one")
    assert expected.rows[0][2]["train/first/ids"] != expected.rows[1][2]["train/first/ids"]
    for name, hardware in (LAYOUTS | {"xla": XLA_LAYOUTS[f"xla_{BOTH}"]}).items():
        run = train(fingerprint(), hardware, tmp_path / name)
        assert_equal(replace(run, weights={}), replace(expected, weights={}))
