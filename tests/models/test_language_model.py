"""The language model: losses in closed form, dense gradients, and draws against the distribution they come from."""

import dataclasses
import functools

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from input_pipeline.batches import Feature
from input_pipeline.noise import Noise
from models.categorical import draw
from models.decoding import Decoding
from models.embedding import embed
from models.language_model import LanguageModel
from models.lstm_network import LSTMNetwork
from tests.models import objective_checks as checks

VOCABULARY, WINDOW, ROWS = 7, 6, 8
SPEC = {"tokens": Feature((WINDOW + 1,), "int32", VOCABULARY)}
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, [ROWS, WINDOW + 1]).astype(np.int32)
STEP = 0
DECODING = {field.name for field in dataclasses.fields(Decoding)}


def make(spec=SPEC, **changes):
    """A model; the changes are arguments of its network or of its decoding."""
    of_network = {"embedding": 5, "widths": [6, 5]}
    of_network |= {name: x for name, x in changes.items() if name not in DECODING}
    decoding = Decoding(**{name: x for name, x in changes.items() if name in DECODING})
    network = functools.partial(LSTMNetwork, **of_network)
    return LanguageModel(spec, network=network, decoding=decoding)


def build(policy="float64", **changes):
    return checks.build(lambda: make(**changes), policy)


def batch(tokens=TOKENS):
    return {"tokens": tf.constant(tokens)}


def noise(rows=ROWS, first=0, seed=0):
    return Noise(seed, "noise", rows=rows, first=first, dtype=tf.float64)


def evaluated(model):
    """What is reported of the batch."""
    found = model.evaluate(batch(), noise(), STEP)
    return model.summary({name: value.numpy().mean(0) for name, value in found.items()})


def spread(model, scale=3.0):
    """Makes the model's distributions uneven, as if trained."""
    for variable in model.network.trainable_variables:
        variable.assign(variable * scale)
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("policy", checks.NOISE_DTYPE)
def test_gradients_are_finite_dense_and_connected(policy, tied):
    model = build(policy, dropout=0.3, recurrent_dropout=0.2, tied=tied)
    (phase,) = model.phases
    assert checks.check_phase(model, phase, batch(), policy) == set()
    gradients = checks.run_phase(model, phase, batch(), checks.NOISE_DTYPE[policy])[2]
    assert all(isinstance(gradient, tf.Tensor) for gradient in gradients)


def test_xla_changes_rounding_only():
    model = build(dropout=0.3)
    plain, compiled = (
        checks.run_phase(model, model.phases[0], batch(), tf.float64, jit) for jit in [False, True]
    )
    np.testing.assert_allclose(plain[0], compiled[0], rtol=1e-12)
    for one, other in zip(plain[2], compiled[2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-13)


def test_the_contract_of_an_objective():
    model = build(dropout=0.3)
    checks.check_rows_are_their_own(model, model.phases[0], batch())
    checks.check_builds_alike_twice(make)


def test_dropout_draws_once_a_layer_and_step():
    model = build(dropout=0.5)
    losses = [
        checks.run_phase(model, model.phases[0], batch(), tf.float64, step=step)[0]
        for step in [1, 1, 2]
    ]
    np.testing.assert_array_equal(losses[0], losses[1])
    assert np.all(losses[0] != losses[2])
    drawn = noise()
    model.loss(batch(), drawn, STEP)
    assert drawn.drawn == {f"noise/network/dropout_{i}" for i in range(3)}


def test_recurrent_dropout_draws_once_a_layer_and_not_in_evaluation():
    model = spread(build(recurrent_dropout=0.5))
    drawn = noise()
    loss, _ = model.loss(batch(), drawn, STEP)
    assert drawn.drawn == {f"noise/network/lstm_{i}_recurrent" for i in range(2)}
    # The first token has no h before it, so its share of the loss does not change.
    dropped = model._predict(batch(), noise(), training=True)[0].numpy()
    plain = model.evaluate(batch(), noise(), STEP)["nats"].numpy()
    np.testing.assert_allclose(dropped[:, 0], plain[:, 0], rtol=1e-12)
    assert np.all(np.abs(dropped[:, -1] - plain[:, -1]) > 1e-6)
    np.testing.assert_allclose(loss, dropped.mean(1), rtol=1e-12)


def test_recurrent_dropout_is_one_mask_at_all_times():
    """Zero with its rate, else 1 / (1 - rate), by which each layer multiplies h before its product."""
    network = spread(build(recurrent_dropout=0.25)).network
    found, _ = network(batch()["tokens"], noise=noise(), training=True)
    x, drawn = embed(network.table.value, batch()["tokens"]), noise()
    for i, layer in enumerate(network.layers):
        kept = ~drawn(f"lstm_{i}_recurrent").bernoulli(0.25, [layer.units])
        x, _ = layer(x, None, tf.cast(kept, tf.float64) / 0.75)
    expected = x.numpy() @ network.kernel.numpy() + network.bias.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)


def test_initial_weights():
    """Zaremba et al. (2014): all weights uniform in a range; the forget gate's bias as given besides."""
    network = build(initial_range=0.1, forget_bias=0.0).network
    weights = [v.numpy() for v in network.trainable_variables]
    assert len(weights) == 9
    for weight in weights:
        assert 0.07 < np.abs(weight).max() < 0.1 and abs(weight.mean()) < 0.06
    bias, shifted = (
        build(initial_range=0.1, forget_bias=n).network.layers[0].bias.numpy() for n in (0, 2)
    )
    np.testing.assert_allclose(shifted, bias + np.repeat([0, 2, 0, 0], 6), rtol=1e-12)
    network = build().network
    np.testing.assert_array_equal(network.layers[0].bias, np.repeat([0, 1, 0, 0], 6))
    np.testing.assert_array_equal(network.bias, np.zeros(VOCABULARY))


@pytest.mark.parametrize("tied", [False, True])
def test_a_uniform_model_loses_the_logarithm_of_the_vocabulary(tied):
    model = build(tied=tied)
    logits = model.network.table if tied else model.network.kernel
    logits.assign(tf.zeros_like(logits))
    metrics = evaluated(model)
    np.testing.assert_allclose(metrics["loss"], np.log(VOCABULARY), rtol=1e-14)
    np.testing.assert_allclose(metrics["perplexity"], VOCABULARY, rtol=1e-14)
    # All are equal, so the likeliest is the first.
    np.testing.assert_allclose(metrics["accuracy"], np.mean(TOKENS[:, 1:] == 0))


def test_loss_and_accuracy_against_numpy():
    model = spread(build())
    logits = model.network(TOKENS[:, :-1])[0].numpy()
    log_p = scipy.special.log_softmax(logits, axis=2)
    targets = TOKENS[:, 1:]
    expected = -np.take_along_axis(log_p, targets[..., np.newaxis], 2)[..., 0]
    right = logits.argmax(2) == targets
    metrics = evaluated(model)
    np.testing.assert_allclose(metrics["loss"], expected.mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics["accuracy"], right.mean())
    places = {f"loss_at_{n}": expected[:, n - 1].mean() for n in (1, 2, 4)}
    assert metrics.keys() == {"loss", "perplexity", "accuracy", *places}
    for name, value in places.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-12)
    loss, train_metrics = model.loss(batch(), noise(), STEP)  # No dropout by default.
    np.testing.assert_allclose(loss, expected.mean(1), rtol=1e-12)
    np.testing.assert_allclose(train_metrics["accuracy"], right.mean(1))
    assert train_metrics.keys() == {"accuracy"}


def test_bits_per_character_are_those_of_all_together():
    """Of a uniform model: targets times log2 of the vocabulary, divided by all characters."""
    model = build()
    model.network.kernel.assign(tf.zeros_like(model.network.kernel))
    characters = np.arange(10, 10 + ROWS)
    rows = batch() | {"characters": tf.constant(characters, tf.int32)}
    found = model.evaluate(rows, noise(), STEP)
    metrics = model.summary({name: value.numpy().mean(0) for name, value in found.items()})
    expected = ROWS * WINDOW * np.log2(VOCABULARY) / characters.sum()
    np.testing.assert_allclose(metrics["bits_per_character"], expected, rtol=1e-12)
    nats = expected * np.log(2)
    np.testing.assert_allclose(metrics["nats_per_character"], nats, rtol=1e-12)


def test_losses_at_places_are_those_of_the_targets_there():
    """Where windows are not full, and in all when nothing is carried."""
    model = build()
    model.network.kernel.assign(tf.zeros_like(model.network.kernel))
    targets = np.array([6, 1, 3, 6, 2, 4, 5, 6], np.int32)
    found = model.evaluate(batch() | {"targets": tf.constant(targets)}, noise(), STEP)
    metrics = model.summary({name: value.numpy().mean(0) for name, value in found.items()})
    for name in ("loss", "loss_at_1", "loss_at_2", "loss_at_4"):
        np.testing.assert_allclose(metrics[name], np.log(VOCABULARY), rtol=1e-12)


def test_windows_with_carried_state_are_one_long_pass():
    """Of streams of 14 and 13 targets, in windows of 6; the second ends within its last."""
    spec = SPEC | {"targets": Feature((), "int32"), "begins": Feature((), "bool")}
    model = spread(checks.build(lambda: make(spec), "float64"))
    text = np.random.default_rng(1).integers(0, VOCABULARY, [2, 19]).astype(np.int32)
    targets = np.array([14, 13])
    carried = {
        name: tf.fill([2, *shape], tf.constant(9.0, tf.float64))
        for name, shape in model.carry.items()
    }
    sums = {"nats": 0.0, "right": 0.0, "targets": 0.0}
    for window in range(3):
        rows = {
            "tokens": tf.constant(text[:, 6 * window : 6 * window + 7]),
            "targets": tf.constant(np.clip(targets - 6 * window, 0, 6).astype(np.int32)),
            "begins": tf.constant([window == 0] * 2),
        }
        found = model.evaluate(rows | carried, noise(2), STEP)
        carried = {name: found[name] for name in model.carry}
        sums = {name: total + found[name].numpy().sum(0) for name, total in sums.items()}
    log_p = scipy.special.log_softmax(model.network(text[:, :-1])[0].numpy(), axis=2)
    nats = -np.take_along_axis(log_p, text[:, 1:, np.newaxis], 2)[..., 0]
    expected = np.concatenate([nats[0, :14], nats[1, :13]]).mean()
    metrics = model.summary(sums)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-12)
    np.testing.assert_allclose(metrics["perplexity"], np.exp(expected), rtol=1e-12)
    assert metrics.keys() == {"loss", "perplexity", "accuracy"}


@pytest.mark.parametrize("tied", [False, True])
def test_the_logits_against_numpy(tied):
    """Two layers; the LSTM layer itself is tested against NumPy elsewhere."""
    network = spread(build(tied=tied)).network
    network.bias.assign(np.arange(VOCABULARY) / 10)
    x = network.table.numpy()[TOKENS]
    for layer in network.layers:
        x = layer(x)[0].numpy()
    kernel = network.table.numpy().T if tied else network.kernel.numpy()
    expected = x @ kernel + network.bias.numpy()
    np.testing.assert_allclose(network(TOKENS)[0], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("variational", "dropout"), [(False, 0.3), (True, 0.3), (False, [0.3, 0.2, 0.4])]
)
def test_dropout_is_before_between_and_behind_the_layers(variational, dropout):
    """By the masks themselves, which are the same at all times if it is variational (Gal & Ghahramani 2016)."""
    network = spread(build(dropout=dropout, variational=variational)).network
    rates = dropout if isinstance(dropout, list) else [dropout] * 3
    drawn = noise()

    def dropped(i, x):
        times = 1 if variational else WINDOW + 1
        kept = ~drawn(f"network/dropout_{i}").bernoulli(rates[i], [times, x.shape[2]])
        assert 0.5 < np.mean(kept) < 0.9
        return x * kept.numpy() / (1 - rates[i])

    x = dropped(0, network.table.numpy()[TOKENS])
    for i, layer in enumerate(network.layers, 1):
        x = dropped(i, layer(x)[0].numpy())
    expected = x @ network.kernel.numpy() + network.bias.numpy()
    logits, _ = network(TOKENS, noise=noise()("network"), training=True)
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-14)


def test_no_logit_sees_its_target():
    model = spread(build())
    before = model.network(TOKENS)[0].numpy()
    changed = TOKENS.copy()
    changed[:, 3] = (changed[:, 3] + 1) % VOCABULARY
    after = model.network(changed)[0].numpy()
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.all(np.any(before[:, 3:] != after[:, 3:], axis=2))


def test_it_learns_a_cycle():
    checks.check_learns_a_cycle(
        build("float32", length=WINDOW - 1, prompt=(3,), top_k=1), TOKENS[:, :1], WINDOW
    )


def test_embedding_is_a_gather_with_a_dense_gradient():
    table = tf.Variable(np.random.default_rng(0).normal(size=[VOCABULARY, 3]))
    weights = np.random.default_rng(1).normal(size=[*TOKENS.shape, 3])
    for jit in [False, True]:

        @tf.function(jit_compile=jit)
        def gradient():
            with tf.GradientTape() as tape:
                rows = embed(tf.convert_to_tensor(table), tf.constant(TOKENS))
                total = tf.reduce_sum(rows * weights)
            return rows, tape.gradient(total, table)

        rows, dense = gradient()
        np.testing.assert_array_equal(rows, table.numpy()[TOKENS])
        expected = np.zeros([VOCABULARY, 3])
        np.add.at(expected, TOKENS, weights)
        assert isinstance(dense, tf.Tensor)
        np.testing.assert_allclose(dense, expected, rtol=1e-12, atol=1e-14)


LOGITS = np.log([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])


@pytest.mark.parametrize(
    "uniform, top_k, expected",
    [
        ([0.05, 0.05], None, [0, 0]),
        ([0.15, 0.69], None, [1, 0]),
        ([0.59, 0.71], None, [2, 1]),
        ([0.61, 0.999999], None, [3, 3]),
        ([1e-9, 1 - 1e-9], 1, [3, 0]),
        # Of 0.3 and 0.4, 0.3 / 0.7 = 0.4286; of 0.7 and the first of the equals, 0.875.
        ([0.42, 0.87], 2, [2, 0]),
        ([0.43, 0.88], 2, [3, 1]),
        # Of 0.2, 0.3, 0.4: 0.222, 0.556; of 0.7, 0.1, 0.1: 0.778, 0.889.
        ([0.23, 0.9], 3, [2, 2]),
        ([0.61, 0.999999], 4, [3, 3]),
    ],
)
def test_draws_by_hand(uniform, top_k, expected):
    for jit in [False, True]:
        drawn = tf.function(draw, jit_compile=jit)(
            tf.constant(LOGITS), tf.constant(uniform, tf.float64), top_k=top_k
        )
        np.testing.assert_array_equal(drawn, expected)
        assert drawn.dtype == tf.int32


def test_temperature_by_hand():
    """Temperature ½ squares the odds: 0.1² … 0.4² are 1, 4, 9, 16 of 30."""
    for uniform, expected in [(0.03, 0), (0.04, 1), (0.16, 1), (0.17, 2), (0.46, 2), (0.47, 3)]:
        drawn = draw(tf.constant(LOGITS[:1]), tf.constant([uniform], tf.float64), temperature=0.5)
        assert drawn.numpy().item() == expected


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_the_ends_of_the_interval_stay_in_range(dtype):
    logits = tf.random.stateless_normal([200, 50], [1, 2], dtype=dtype) * 5
    for uniform in [2.0**-24, 1 - 2.0**-24]:
        for top_k in [None, 3, 50]:
            drawn = draw(logits, tf.fill([200], tf.constant(uniform, dtype)), 1.0, top_k).numpy()
            assert drawn.min() >= 0 and drawn.max() < 50
            if top_k == 3:
                best = np.argsort(-logits.numpy(), axis=1)[:, :3]
                assert np.all(np.any(best == drawn[:, np.newaxis], axis=1))


@pytest.mark.parametrize("top_k, temperature", [(None, 1.0), (3, 1.0), (None, 0.5)])
def test_the_first_token_has_the_distribution_of_the_logits(top_k, temperature):
    model = spread(build(length=1, top_k=top_k, temperature=temperature, prompt=(2, 5)))
    logits = model.network(tf.constant([[2, 5]]))[0].numpy()[0, -1] / temperature
    if top_k:
        logits[np.argsort(-logits)[top_k:]] = -np.inf
    p = scipy.special.softmax(logits)
    counts = np.bincount(model.sample(noise(5000)).numpy()[:, 0], minlength=VOCABULARY)
    assert np.all(counts[p == 0] == 0)
    assert scipy.stats.chisquare(counts[p > 0], 5000 * p[p > 0]).pvalue > 0.01


def test_a_later_token_has_the_distribution_given_those_before():
    """Fed back: the third token of those samples that began alike."""
    model = spread(build(length=3), 1.5)
    samples = model.sample(noise(20_000)).numpy()
    pairs, counts = np.unique(samples[:, :2], axis=0, return_counts=True)
    pair = pairs[np.argmax(counts)]
    p = scipy.special.softmax(model.network(tf.constant([[0, *pair]]))[0].numpy()[0, -1])
    third = samples[np.all(samples[:, :2] == pair, axis=1), 2]
    counts = np.bincount(third, minlength=VOCABULARY)
    assert len(third) > 400
    assert scipy.stats.chisquare(counts, len(third) * p).pvalue > 0.01


@pytest.mark.parametrize("changes", [{"top_k": 1}, {"temperature": 1e-6}, {"beams": 1}])
def test_the_greedy_limit(changes):
    """Against the argmax of the whole text so far, run from its beginning."""
    model = spread(build(length=8, prompt=(4, 1), **changes))
    text = [4, 1]
    for _ in range(8):
        text.append(int(np.argmax(model.network(tf.constant([text]))[0][0, -1])))
    np.testing.assert_array_equal(model.sample(noise(3)), np.tile(text[2:], [3, 1]))


@pytest.mark.parametrize(
    ("jit", "parts"), [(False, [(4, 4), (1, 3), (3, 1)]), (True, [(4, 4)])], ids=["plain", "xla"]
)
def test_a_sample_depends_on_its_row_alone(jit, parts):
    model = spread(build(length=12))

    def samples(rows, first):
        return tf.function(lambda: model.sample(noise(rows, first)), jit_compile=jit)().numpy()

    whole = samples(8, 0)
    assert whole.shape == (8, 12) and whole.dtype == np.int32
    assert len(np.unique(whole, axis=0)) > 4
    for rows, first in parts:
        np.testing.assert_array_equal(samples(rows, first), whole[first : first + rows])


def test_samples_go_on_from_another_prompt_in_parts():
    model, prompted = (spread(build(length=7, prompt=prompt)) for prompt in [(0,), (4, 1)])
    expected = prompted.sample(noise()).numpy()
    np.testing.assert_array_equal(model.sample(noise(), [4, 1]), expected)
    assert (model.sample(noise()).numpy() != expected).any()
    state, parts = model.begin(noise(), [4, 1]), []
    for _ in range(2):
        part, state = model.go_on(noise(), state, 4)
        parts.append(part)
    np.testing.assert_array_equal(np.concatenate(parts, 1)[:, :7], expected)
    with pytest.raises(ValueError, match="tokens go from 0 to 6"):
        model.sample(noise(), [9])


@pytest.mark.parametrize("jit", [False, True])
def test_a_search_follows_the_state_of_each_beam(jit):
    """All first tokens go on, so all texts of two tokens are compared."""
    model = spread(build(length=2, prompt=(4, 1), beams=VOCABULARY))
    texts = np.array([(a, b) for a in range(VOCABULARY) for b in range(VOCABULARY)])
    inputs = np.array([[4, 1, a] for a, _ in texts])
    log_p = scipy.special.log_softmax(model.network(tf.constant(inputs))[0].numpy(), axis=2)
    rows = np.arange(len(texts))
    order = np.argsort(-(log_p[rows, 1, texts[:, 0]] + log_p[rows, 2, texts[:, 1]]))
    found = tf.function(lambda: model.sample(noise(VOCABULARY)), jit_compile=jit)()
    np.testing.assert_array_equal(found, texts[order[:VOCABULARY]])


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("how", [{}, {"top_p": 0.7, "repetition_penalty": 1.2}, {"beams": 3}])
def test_samples_in_other_precisions(policy, how):
    model = build(policy, length=5, **how)
    samples = model.sample(Noise(0, "sample", rows=4)).numpy()
    assert samples.shape == (4, 5) and samples.min() >= 0 and samples.max() < VOCABULARY


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"widths": []}, "at least one layer"),
        ({"widths": [3, 0]}, "each at least 1 wide"),
        ({"tied": True, "widths": [5, 6]}, "the last of widths, 6"),
        (
            {"dropout": [0.1, 0.2]},
            "give one rate, or 3, of the inputs of 2 layers and of the logits",
        ),
        ({"initial_range": 0.0}, "initial_range is 0.0: it must be above 0, or None"),
        ({"initial_range": -0.1}, "initial_range is -0.1"),
        ({"prompt": ()}, "prompt is"),
        ({"prompt": (7,)}, "tokens go from 0 to 6"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 8}, "at most 7"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"length": 0}, "length is 0"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    "spec",
    [
        {"image": Feature((8, 8, 1), "float32")},
        {"tokens": Feature((7,), "int32")},
        {"tokens": Feature((1,), "int32", 7)},
    ],
)
def test_data_without_token_windows(spec):
    with pytest.raises(ValueError, match='needs a feature "tokens"'):
        LanguageModel(spec)
