"""The transformer against NumPy, its cache against whole texts, and what every objective must hold."""

import dataclasses
import functools
import math

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from input_pipeline.batches import Feature
from input_pipeline.noise import Noise
from models.categorical import draw
from models.causal_attention import rotate, rotation_table
from models.decoding import Decoding
from models.language_model import LanguageModel
from models.sliding_context import SlidingContext
from models.transformer_network import TransformerNetwork
from tests.models import objective_checks as checks

VOCABULARY, WINDOW, ROWS = 7, 6, 8
SPEC = {"tokens": Feature((WINDOW + 1,), "int32", VOCABULARY)}
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, [ROWS, WINDOW + 1]).astype(np.int32)
SMALL = {"layers": 2, "heads": 2, "width": 8, "context": 12}
GPT2 = {"positions": "learned", "norm": "layer", "activation": "gelu"}
LLAMA = {"positions": "rotary", "norm": "rms", "activation": "swiglu", "feed_forward": 5}
LLAMA |= {"use_bias": False, "tied": False}
KINDS = {"gpt2": GPT2, "llama": LLAMA}
DECODING = {field.name for field in dataclasses.fields(Decoding)}
each_kind = pytest.mark.parametrize("kind", KINDS)


def make(spec=SPEC, **changes):
    """A model; the changes are arguments of its network or of its decoding."""
    decoding = {"length": 5} | {name: x for name, x in changes.items() if name in DECODING}
    of_network = SMALL | {name: x for name, x in changes.items() if name not in DECODING}
    network = functools.partial(TransformerNetwork, **of_network)
    return LanguageModel(spec, network=network, decoding=Decoding(**decoding))


def windows(length):
    """Of data, `SPEC` with other windows."""
    return {"tokens": dataclasses.replace(SPEC["tokens"], shape=(length + 1,))}


def build(policy="float64", **changes):
    return checks.build(lambda: make(**changes), policy)


def spread(model):
    """Makes all weights uneven and far from their start, as if trained: biases and factors of norms too."""
    rng = np.random.default_rng(1)
    for variable in model.network.trainable_variables:
        variable.assign(variable + 0.3 * rng.normal(size=variable.shape))
    return model


def network(kind="gpt2", **changes):
    return spread(build(**(KINDS[kind] | changes))).network


def sample_noise():
    return Noise(0, "sample", rows=3, dtype=tf.float64)


def batch(tokens=TOKENS):
    return {"tokens": tf.constant(tokens)}


# ---------------------------------------------------------------------- values


def layer_norm(x, gamma, beta):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def rms_norm(x, gamma):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gamma


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def turned(x):
    """Rotary embedding of a head `[time, d]`: each pair as a complex number, turned by its angle."""
    half = x.shape[1] // 2
    pairs = x[:, :half] + 1j * x[:, half:]
    for t in range(len(x)):
        for i in range(half):
            pairs[t, i] *= np.exp(1j * t * 10_000 ** (-i / half))
    return np.concatenate([pairs.real, pairs.imag], 1)


def attended(q, k, v, heads, turn):
    """One text, a head and a token at a time: `[time, width]` each."""
    out, size = np.zeros_like(q), q.shape[1] // heads
    for h in range(heads):
        columns = slice(h * size, (h + 1) * size)
        queries, keys = turn(q[:, columns]), turn(k[:, columns])
        for t in range(len(q)):
            weights = scipy.special.softmax(keys[: t + 1] @ queries[t] / math.sqrt(size))
            out[t, columns] = weights @ v[: t + 1, columns]
    return out


def gpt2(w, text, layers, heads):
    """Logits of one text by GPT-2: weights w by path, as the released ones are laid out."""
    x = w["embedding"][text] + w["positions"][: len(text)]
    for i in range(layers):
        part = {
            path.removeprefix(f"block_{i}/"): value
            for path, value in w.items()
            if path.startswith(f"block_{i}/")
        }
        y = layer_norm(x, part["attention_norm/gamma"], part["attention_norm/beta"])
        qkv = y @ part["attention/qkv/kernel"] + part["attention/qkv/bias"]
        y = attended(*np.split(qkv, 3, 1), heads, turn=lambda one: one)
        x = x + y @ part["attention/out/kernel"] + part["attention/out/bias"]
        y = layer_norm(x, part["feed_forward_norm/gamma"], part["feed_forward_norm/beta"])
        y = tanh_gelu(y @ part["feed_forward/hidden/kernel"] + part["feed_forward/hidden/bias"])
        x = x + y @ part["feed_forward/out/kernel"] + part["feed_forward/out/bias"]
    return layer_norm(x, w["norm/gamma"], w["norm/beta"]) @ w["embedding"].T


def llama(w, text, layers, heads):
    """Logits of one text by an untied network of rotary positions, root mean squares and SwiGLU, without biases."""
    x = w["embedding"][text]
    for i in range(layers):
        block = f"block_{i}"
        y = rms_norm(x, w[f"{block}/attention_norm/gamma"])
        qkv = y @ w[f"{block}/attention/qkv/kernel"]
        x = x + attended(*np.split(qkv, 3, 1), heads, turned) @ w[f"{block}/attention/out/kernel"]
        y = rms_norm(x, w[f"{block}/feed_forward_norm/gamma"])
        gate, y = np.split(y @ w[f"{block}/feed_forward/hidden/kernel"], 2, 1)
        x = x + (gate * scipy.special.expit(gate) * y) @ w[f"{block}/feed_forward/out/kernel"]
    return rms_norm(x, w["norm/gamma"]) @ w["kernel"]


@pytest.mark.parametrize("reference", [gpt2, llama])
def test_logits_against_numpy(reference):
    net = network(reference.__name__, layers=3)
    weights = {v.path.removeprefix("network/"): v.numpy() for v in net.trainable_variables}
    logits, state = net(TOKENS)
    expected = [reference(weights, text, layers=3, heads=2) for text in TOKENS]
    np.testing.assert_allclose(logits, expected, rtol=1e-10, atol=1e-10)
    assert state == {} and net.carry == {}


@each_kind
def test_no_logit_sees_its_target(kind):
    net = network(kind)
    before = net(TOKENS)[0].numpy()
    changed = TOKENS.copy()
    changed[:, 3] = (changed[:, 3] + 1) % VOCABULARY
    after = net(changed)[0].numpy()
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.all(np.any(before[:, 3:] != after[:, 3:], axis=2))


def test_rotary_attention_knows_distances_alone():
    """The product of a turned query and a turned key is the same for all pairs that are as far apart."""
    query, key = np.random.default_rng(0).normal(size=[2, 1, 1, 1, 6])
    cos, sin = rotation_table(9, 6)
    ones = np.ones([1, 1, 9, 1])
    queries, keys = (rotate(tf.constant(x * ones), cos, sin).numpy()[0, 0] for x in (query, key))
    products = queries @ keys.T
    for distance in range(9):
        apart = np.diagonal(products, -distance)
        np.testing.assert_allclose(apart, apart[0], rtol=1e-12)
    assert len(np.unique(products[:, 0].round(6))) == 9


def test_the_number_of_weights_of_gpt_2_small():
    """124,439,808 by hand: (50257 + 1024) · 768 of embeddings; of each of 12 blocks 4 · 768 of norms, 768 · 2304 + 2304 and
    768 · 768 + 768 of attention, 768 · 3072 + 3072 and 3072 · 768 + 768 of feed-forward; 2 · 768 of the last norm."""
    with keras.StatelessScope(initialize_variables=False):  # Shapes without values.
        net = TransformerNetwork(
            50_257,
            noise=Noise(0, "init", rows=1),
            name="network",
            layers=12,
            heads=12,
            width=768,
            context=1024,
        )
    shapes = {v.path: tuple(v.shape) for v in net.trainable_variables}
    assert sum(math.prod(shape) for shape in shapes.values()) == 124_439_808
    assert shapes["network/embedding"] == (50_257, 768)
    assert shapes["network/positions"] == (1024, 768)
    block = {
        "attention_norm/gamma": (768,),
        "attention_norm/beta": (768,),
        "attention/qkv/kernel": (768, 2304),
        "attention/qkv/bias": (2304,),
        "attention/out/kernel": (768, 768),
        "attention/out/bias": (768,),
        "feed_forward_norm/gamma": (768,),
        "feed_forward_norm/beta": (768,),
        "feed_forward/hidden/kernel": (768, 3072),
        "feed_forward/hidden/bias": (3072,),
        "feed_forward/out/kernel": (3072, 768),
        "feed_forward/out/bias": (768,),
    }
    assert {path: shape for path, shape in shapes.items() if "/block_7/" in path} == {
        f"network/block_7/{path}": shape for path, shape in block.items()
    }


def test_initial_weights_are_gpt_2s():
    """Normal with deviation 0.02, or 0.02 / √(2 · 8) where a part of a block adds to the rest; biases 0, factors 1."""
    net = build(layers=8, width=32, context=100).network
    for variable in net.trainable_variables:
        value = variable.numpy()
        if variable.path.endswith(("bias", "beta", "gamma")):
            np.testing.assert_array_equal(value, float(variable.path.endswith("gamma")))
        else:
            stddev = 0.005 if variable.path.endswith("out/kernel") else 0.02
            assert abs(value.std() / stddev - 1) < 5 / math.sqrt(2 * value.size), variable.path
    kernels = [v.numpy() for v in net.trainable_variables if v.path.endswith("qkv/kernel")]
    assert len({kernel[0, 0] for kernel in kernels}) == 8


# ---------------------------------------------------------------------- cache


@each_kind
@pytest.mark.parametrize(
    "parts, jit", [([1] * 7, False), ([3, 1, 1, 1, 1], False), ([4, 3], False), ([4, 3], True)]
)
def test_a_text_in_parts_is_the_whole(parts, jit, kind):
    """There is room for more; each part sees those before it through the cache alone."""
    net = network(kind)
    call = tf.function(net, jit_compile=jit)
    state, logits, begin = net.start(ROWS, 10), [], 0
    for part in parts:
        some, state = call(tf.constant(TOKENS[:, begin : begin + part]), state)
        logits.append(some)
        begin += part
    assert int(state["position"]) == 7
    np.testing.assert_allclose(tf.concat(logits, 1), net(TOKENS)[0], rtol=1e-12, atol=1e-12)
    shapes = {name: tensor.shape for name, tensor in net.start(ROWS, 10).items()}
    assert shapes == {name: tensor.shape for name, tensor in state.items()}
    assert all(np.all(state[name][:, :, 7:] == 0) for name in shapes if name != "position")


@each_kind
@pytest.mark.parametrize("jit", [False, True])
def test_the_likeliest_text_is_that_of_whole_passes(kind, jit):
    model = spread(build(spec=windows(12), length=9, prompt=(4, 1, 3), top_k=1, **KINDS[kind]))
    text = [4, 1, 3]
    for _ in range(9):
        text.append(int(np.argmax(model.network(tf.constant([text]))[0][0, -1])))
    noise = Noise(0, "sample", rows=3, dtype=tf.float64)
    samples = tf.function(lambda: model.sample(noise), jit_compile=jit)()
    np.testing.assert_array_equal(samples, np.tile(text[3:], [3, 1]))
    assert len(set(text[3:])) > 1


def test_the_cache_is_of_the_compute_dtype():
    model = build("mixed_bfloat16")
    net = model.network
    state = net.start(2, 5)
    assert {tensor.dtype for name, tensor in state.items() if name != "position"} == {tf.bfloat16}
    logits, after = net(TOKENS[:2, :3], state)
    assert logits.dtype == tf.bfloat16
    assert {name: x.dtype for name, x in after.items()} == {n: x.dtype for n, x in state.items()}
    samples = model.sample(Noise(0, "sample", rows=4)).numpy()
    assert samples.shape == (4, 5) and samples.min() >= 0 and samples.max() < VOCABULARY


# ---------------------------------------------------------------------- training


@each_kind
@pytest.mark.parametrize("policy", checks.NOISE_DTYPE)
def test_gradients_are_finite_dense_and_connected(policy, kind):
    model = build(policy, dropout=0.3, layers=1, **KINDS[kind])
    (phase,) = model.phases
    assert checks.check_phase(model, phase, batch(), policy) == set()
    gradients = checks.run_phase(model, phase, batch(), checks.NOISE_DTYPE[policy])[2]
    assert all(isinstance(gradient, tf.Tensor) for gradient in gradients)


@each_kind
def test_gradients_against_finite_differences(kind):
    """Of each variable in a random direction."""
    model = spread(build(**KINDS[kind]))
    (phase,) = model.phases
    gradients = checks.run_phase(model, phase, batch(), tf.float64)[2]

    def loss():
        return float(
            tf.reduce_sum(model.loss(batch(), Noise(0, "n", ROWS, dtype=tf.float64), 0)[0])
        )

    rng = np.random.default_rng(0)
    for variable, gradient in zip(phase.variables, gradients, strict=True):
        value, direction = variable.numpy(), rng.normal(size=variable.shape)
        ends = []
        for change in (1e-5, -1e-5):
            variable.assign(value + change * direction)
            ends.append(loss())
        variable.assign(value)
        expected = (ends[0] - ends[1]) / 2e-5
        found = np.sum(gradient * direction)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8, err_msg=variable.path)


@each_kind
def test_xla_changes_rounding_only(kind):
    model = spread(build(dropout=0.3, layers=1, **KINDS[kind]))
    plain, compiled = (
        checks.run_phase(model, model.phases[0], batch(), tf.float64, jit) for jit in [False, True]
    )
    np.testing.assert_allclose(plain[0], compiled[0], rtol=1e-12)
    for one, other in zip(plain[2], compiled[2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@each_kind
def test_the_contract_of_an_objective(kind):
    model = spread(build(dropout=0.3, **KINDS[kind]))
    checks.check_rows_are_their_own(model, model.phases[0], batch())
    checks.check_builds_alike_twice(functools.partial(make, **KINDS[kind]))


def test_dropout_draws_once_a_name_and_step():
    model = spread(build(dropout=0.5))
    losses = [
        checks.run_phase(model, model.phases[0], batch(), tf.float64, step=step)[0]
        for step in [1, 1, 2]
    ]
    np.testing.assert_array_equal(losses[0], losses[1])
    assert np.all(losses[0] != losses[2])
    noise = Noise(0, "noise", rows=ROWS, dtype=tf.float64)
    model.loss(batch(), noise, 0)
    parts = {
        f"block_{i}/{name}" for i in range(2) for name in ("weights", "attention", "feed_forward")
    }
    assert noise.drawn == {f"noise/network/{name}" for name in {"dropout", *parts}}
    still = Noise(0, "noise", rows=ROWS, dtype=tf.float64)
    model.evaluate(batch(), still, 0)
    assert not still.drawn


def test_low_precision_is_near():
    """Logits of bfloat16 lie near those of float64 with the same weights; the softmax of attention is float32."""
    exact = network()
    near = spread(build("mixed_bfloat16")).network
    near.set_weights(exact.get_weights())
    logits, expected = tf.cast(near(TOKENS)[0], tf.float64), exact(TOKENS)[0].numpy()
    assert np.max(np.abs(logits - expected)) < 0.05 * np.max(np.abs(expected))
    graph = tf.function(near).get_concrete_function(tf.constant(TOKENS)).graph
    softmax = [op for op in graph.get_operations() if op.type == "Softmax"]
    assert len(softmax) == 2 and {op.inputs[0].dtype for op in softmax} == {tf.float32}


def test_it_learns_a_cycle():
    checks.check_learns_a_cycle(
        build("float32", length=WINDOW - 1, prompt=(3,), top_k=1), TOKENS[:, :1], WINDOW
    )


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layers": 0}, "layers is 0, heads 2, width 8, context 12 and feed_forward 32"),
        ({"feed_forward": 0}, "feed_forward 0: each must be at least 1"),
        ({"heads": 3}, "width is 8, which 3 heads cannot share"),
        (
            {"positions": "sinusoidal"},
            'positions is "sinusoidal": it must be "learned" or "rotary"',
        ),
        ({"positions": "rotary", "heads": 8}, "each of 8 heads has 1 numbers: rotary"),
        ({"norm": "batch"}, 'norm is "batch": it must be "layer" or "rms"'),
        ({"activation": "relu"}, 'activation is "relu": it must be "gelu" or "swiglu"'),
        ({"dropout": 1.0}, "dropout rate is 1.0"),
        ({"context": 5}, "context is 5, and windows have 6 tokens: give a larger context"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize(("kind", "jit"), [("gpt2", True), ("llama", False)])
def test_beyond_the_context_texts_go_on_from_its_later_half(kind, jit):
    """Of windows of 7, whatever the context: after 7 tokens the last 3 are read again."""
    model = spread(build(spec=windows(7), length=16, prompt=(4, 1, 3), **KINDS[kind]))
    texts, begin = np.tile([4, 1, 3], [3, 1]), 0
    for i in range(16):
        logits = model.network(tf.constant(texts[:, begin:]))[0][:, -1]
        uniform = sample_noise()("token").numbered(i).uniform()
        texts = np.column_stack([texts, draw(logits, uniform, 1.0, None, None)])
        if texts.shape[1] - begin > 7:
            begin = texts.shape[1] - 4
    samples = tf.function(lambda: model.sample(sample_noise()), jit_compile=jit)()
    np.testing.assert_array_equal(samples, texts[:, 3:])
    assert len({tuple(row) for row in texts}) == 3
    reader = SlidingContext(model.network, 7)
    likeliest = dataclasses.replace(model.decoding, top_k=1)(reader, sample_noise())
    searching = dataclasses.replace(model.decoding, beams=1)
    found = tf.function(lambda: searching(reader, sample_noise()), jit_compile=jit)()
    np.testing.assert_array_equal(found, likeliest)


def test_texts_beyond_the_context_are_the_same_in_parts():
    model = spread(build(spec=windows(7), length=16, prompt=(4, 1, 3)))
    state, parts = model.begin(sample_noise()), []
    for count in (1, 2, 5, 9):
        part, state = model.go_on(sample_noise(), state, count)
        parts.append(part)
    whole = model.sample(sample_noise()).numpy()
    np.testing.assert_array_equal(np.concatenate(parts, 1)[:, :16], whole)
    assert len({tuple(row) for row in whole}) == 3


def test_a_prompt_is_within_the_windows():
    model = build(length=12)
    assert model.length() == 12 and model.length([1] * 6) == 12
    said = (
        "the prompt has 7 tokens, and the network was trained on windows of 6: give a prompt of 6"
    )
    with pytest.raises(ValueError, match=said):
        model.length([1] * 7)
    with pytest.raises(ValueError, match="the prompt has 7 tokens, and the network's context is 6"):
        build(prompt=(1,) * 7, context=6)


def test_a_text_beyond_the_context():
    net = build().network
    with pytest.raises(ValueError, match="a text of 13 tokens is longer than the context of net"):
        net(np.zeros([1, 13], np.int32))
    with pytest.raises(ValueError, match="a text of 13 tokens is longer than the context of net"):
        net.start(1, 13)
