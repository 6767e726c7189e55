"""Pretrained GPT-2 against NumPy and Hugging Face's own, and what low-rank adaptation of it must hold."""

import functools
import json

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from input_pipeline.batches import DataError, Feature
from input_pipeline.corpus import pydoc_topics
from input_pipeline.hugging_face import HuggingFaceFolder
from input_pipeline.noise import Noise
from input_pipeline.text_files import load_tokenizer
from models.decoding import Decoding
from models.gpt2 import gpt2
from models.language_model import LanguageModel
from models.lora import PROJECTIONS, LoRA
from tests.contract.families import pretrained_text
from tests.contract.runs import ONE
from tests.models import gpt2_reference
from tests.models import objective_checks as checks
from tests.models.tiny_gpt2 import END, TinyGPT2, logits
from trainer.trainer import Trainer

WINDOW, ROWS = 9, 6
DECODING = Decoding(length=5)
TOKENS = np.random.default_rng(0).integers(0, END + 1, [ROWS, WINDOW + 1]).astype(np.int32)
EVERYWHERE = LoRA(rank=3, alpha=5.0, projections=PROJECTIONS, dropout=0.3)


def make(weights, vocabulary=END + 1, decoding=DECODING, **options):
    spec = {"tokens": Feature((WINDOW + 1,), "int32", vocabulary)}
    network = functools.partial(gpt2, weights=weights, **options)
    return LanguageModel(spec, network=network, decoding=decoding)


def build(weights, policy="float64", **options):
    return checks.build(lambda: make(weights, **options), policy)


def expected(weights, tokens=TOKENS, vocabulary=END + 1):
    return np.stack([logits(weights, text)[:, :vocabulary] for text in tokens])


def greedy(of, text, count):
    """The likeliest tokens behind a text, one after the other, by a function from a text to its logits."""
    for _ in range(count):
        text = [*text, int(np.argmax(of(text)[-1]))]
    return text


def adapted(weights, policy="float64", lora=EVERYWHERE):
    """A model of which B too is far from its start."""
    model = build(weights, policy, lora=lora)
    chance = np.random.default_rng(1)
    for variable in model.network.trainable_variables:
        variable.assign(variable + 0.2 * chance.normal(size=variable.shape))
    return model


def batch():
    return {"tokens": tf.constant(TOKENS)}


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_inner": 20},
        {"layer_norm_epsilon": 1e-2},
        {"tie_word_embeddings": False},
        {"n_head": 4, "n_layer": 3},
    ],
    ids=str,
)
def test_logits_of_a_folder_are_numpys(changes, tmp_path):
    """And of a vocabulary without the tokens that the tokenizer lacks."""
    weights = TinyGPT2(**changes)
    weights.save(tmp_path / "model", "float64")
    network = build(HuggingFaceFolder(str(tmp_path / "model"))).network
    found = network(TOKENS)[0]
    np.testing.assert_allclose(found, expected(weights), rtol=1e-10, atol=1e-10)
    assert found.shape == (ROWS, WINDOW + 1, END + 1) and network.pretrained


def test_the_likeliest_text_is_numpys(tmp_path):
    weights = TinyGPT2(tie_word_embeddings=False)
    weights.save(tmp_path / "model")
    text = greedy(lambda t: logits(weights, np.array(t))[:, : END + 1], [END, 3, 7], 40)
    assert len(set(text[3:])) > 5
    decoding = Decoding(length=40, top_k=1, prompt=text[:3])
    model = build(HuggingFaceFolder(str(tmp_path / "model")), "float32", decoding=decoding)
    samples = tf.function(lambda: model.sample(Noise(0, "sample", rows=2)))()
    np.testing.assert_array_equal(samples, [text[3:]] * 2)
    near = model.network(TOKENS)[0]
    np.testing.assert_allclose(near, expected(weights), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype, limit", [("float16", 2e-2), ("bfloat16", 0.15)])
def test_other_ways_to_save(dtype, limit, tmp_path):
    """In half the bytes, in several files, with masks and with names of the first release."""
    weights = TinyGPT2()
    folder = tmp_path / "model"
    weights.save(folder, dtype)
    arrays = safetensors.numpy.load_file(folder / "model.safetensors") if dtype == "float16" else {}
    if arrays:
        arrays = {name.removeprefix("transformer."): x for name, x in arrays.items()}
        arrays |= {"h.0.attn.bias": np.ones([1, 1, 4, 4], bool), "lm_head.weight": np.ones(3)}
        names = sorted(arrays)
        files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
        for file in set(files.values()):
            part = {name: arrays[name] for name in names if files[name] == file}
            safetensors.numpy.save_file(part, folder / file)
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    read = HuggingFaceFolder(str(folder))
    assert {read.read(name).dtype.name for name in read.shapes if "ln_" in name} == {dtype}
    found = build(read, "float32").network(TOKENS)[0].numpy()
    error = np.abs(found - expected(weights)).max()
    assert 0 < error < limit * np.abs(expected(weights)).max()


def check_answers(folder, said):
    """Logits to 1e-4, and the likeliest text."""
    vocabulary, start = said["logits"].shape[2], tuple(said["tokens"][0, : gpt2_reference.START])
    decoding = Decoding(length=len(said["likeliest"]), top_k=1, prompt=start)
    read = HuggingFaceFolder(str(folder))
    model = build(read, "float32", vocabulary=vocabulary, decoding=decoding)
    logits = model.network(said["tokens"])[0].numpy()
    error = np.abs(logits - said["logits"]).max()
    print(f"largest difference of logits {error:.1e}, of {said['logits'].std():.2f}")
    assert error < 1e-4
    samples = tf.function(lambda: model.sample(Noise(0, "sample", rows=1)))()
    assert samples[0].numpy().tolist() == said["likeliest"].tolist()
    assert len(set(said["likeliest"].tolist())) > 5


def test_it_is_hugging_faces_own():
    """As `transformers` recorded it when it made and saved the model."""
    said = safetensors.numpy.load_file(gpt2_reference.ANSWERS)
    assert said["logits"].shape == (4, 12, 96) and said["likeliest"].shape == (29,)
    check_answers(gpt2_reference.FOLDER, said)


def test_hugging_face_says_the_same_today(tmp_path):
    """What is recorded, and of a larger model, whose tokenizer too is saved."""
    why = "transformers and torch are not installed: pip install -e '.[reference]'"
    pytest.importorskip("torch", reason=why)
    transformers = pytest.importorskip("transformers", reason=why)
    recorded = safetensors.numpy.load_file(gpt2_reference.ANSWERS)
    saved = transformers.GPT2LMHeadModel.from_pretrained(gpt2_reference.FOLDER)
    made = gpt2_reference.model(**gpt2_reference.SIZES)
    for theirs in (saved, made):
        said = gpt2_reference.answers(theirs, recorded["tokens"])
        np.testing.assert_allclose(said["logits"], recorded["logits"], rtol=0, atol=1e-4)
        np.testing.assert_array_equal(said["likeliest"], recorded["likeliest"])
    sizes = {"vocab_size": 300, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}
    theirs = gpt2_reference.model(**sizes)
    theirs.save_pretrained(tmp_path / "model")
    TinyGPT2().save(tmp_path / "tiny")
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "model")
    text = "the cat – 日本 <|endoftext|> sat  on\n\nit"
    for folder in ("tiny", "model"):
        ours = load_tokenizer(str(tmp_path / folder))
        assert ours.encode(text).tolist() == tokenizer(text)["input_ids"]
    check_answers(tmp_path / "model", gpt2_reference.answers(theirs, TOKENS))


# ---------------------------------------------------------------------- adaptation


def test_adaptation_begins_as_the_model_itself():
    """To the bit, in float32 too: B is zero."""
    for policy in ("float64", "float32"):
        plain = build(TinyGPT2(), policy).network(TOKENS)[0].numpy()
        lora = build(TinyGPT2(), policy, lora=EVERYWHERE).network(TOKENS)[0].numpy()
        np.testing.assert_array_equal(plain, lora)


def test_only_a_and_b_are_learnt():
    lora = LoRA(rank=3, projections=("attention/qkv", "feed_forward/out"))
    model = build(TinyGPT2(), "float32", lora=lora)
    (phase,) = model.phases
    shapes = {v.path.removeprefix("network/"): tuple(v.shape) for v in phase.variables}
    block = {"attention/qkv/lora_a": (8, 3), "attention/qkv/lora_b": (3, 24)}
    block |= {"feed_forward/out/lora_a": (32, 3), "feed_forward/out/lora_b": (3, 8)}
    assert shapes == {f"block_{i}/{name}": shape for i in range(2) for name, shape in block.items()}
    # While B is zero, A has no say.
    still = {v.path for v in phase.variables if v.path.endswith("lora_a")}
    checks.check_phase(model, phase, batch(), "float32", still=still)
    moved = adapted(TinyGPT2(), "float32", lora)
    checks.check_phase(moved, moved.phases[0], batch(), "float32")
    assert not build(TinyGPT2()).network.non_trainable_variables


def test_merged_is_unmerged():
    """Both against NumPy, whose weights are changed by alpha / rank A B."""
    weights = TinyGPT2()
    network = adapted(weights).network
    before = expected(weights)
    for i, block in enumerate(network.blocks):
        parts = {"attn.c_attn": block.attention.qkv, "attn.c_proj": block.attention.out}
        parts |= {"mlp.c_fc": block.feed_forward.hidden, "mlp.c_proj": block.feed_forward.out}
        for name, part in parts.items():
            kernel = weights.tensors[f"h.{i}.{name}.weight"]
            merged = kernel + 5 / 3 * part.a.numpy() @ part.b.numpy()
            weights.tensors[f"h.{i}.{name}.weight"] = merged
    found = network(TOKENS)[0]
    np.testing.assert_allclose(found, expected(weights), rtol=1e-10, atol=1e-10)
    assert np.abs(found - before).max() > 0.1


def test_the_contract_of_an_objective():
    """Rows are their own with dropout of adaptations, each of which has a stream of its own."""
    model = adapted(TinyGPT2())
    checks.check_rows_are_their_own(model, model.phases[0], batch())
    checks.check_builds_alike_twice(lambda: make(TinyGPT2(), lora=EVERYWHERE))
    noise = Noise(0, "noise", rows=ROWS, dtype=tf.float64)
    model.loss(batch(), noise, 0)
    parts = {"weights", "weights/qkv", "weights/out"}
    parts |= {"attention", "feed_forward", "feed_forward/hidden", "feed_forward/out"}
    streams = {f"block_{i}/{part}" for i in range(2) for part in parts}
    assert noise.drawn == {f"noise/network/{name}" for name in {"dropout", *streams}}


def test_an_adapted_text_in_parts_is_the_whole():
    network = adapted(TinyGPT2()).network
    state, parts = network.start(ROWS, WINDOW + 1), []
    for part in np.split(TOKENS, [4, 5, 6], 1):
        some, state = network(tf.constant(part), state)
        parts.append(some)
    np.testing.assert_allclose(tf.concat(parts, 1), network(TOKENS)[0], rtol=1e-11, atol=1e-11)


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "llama"}, "config.json in memory says model_type 'llama': it must be"),
        ({"n_layer": None}, "says n_layer None: it must be a number from 1 on"),
        ({"activation_function": "relu"}, "says activation_function 'relu': it must be 'gelu_new'"),
        ({"scale_attn_weights": False}, "says scale_attn_weights False: it must be True"),
    ],
)
def test_another_architecture(changes, message):
    weights = TinyGPT2()
    weights.config |= changes
    with pytest.raises(ValueError, match=message):
        build(weights)


def test_weights_that_do_not_fit():
    def message(change, **options):
        weights = TinyGPT2()
        change(weights.tensors)
        with pytest.raises(ValueError) as caught:
            build(weights, **options)
        return str(caught.value)

    name = "h.1.mlp.c_fc.weight"
    said = message(lambda tensors: tensors.pop(name))
    assert f"the weights in memory have no tensor transformer.{name}, which" in said
    said = message(lambda tensors: tensors.update({name: np.ones([8, 31])}))
    assert f"tensor {name} in memory is [8, 31], and config.json asks for [8, 32]" in said
    said = message(lambda tensors: tensors.update({"h.2.ln_1.bias": np.ones(8)}))
    assert "have a tensor h.2.ln_1.bias, which is no part of the GPT-2" in said
    said = message(lambda tensors: None, vocabulary=265)
    assert "the data has 265 tokens, and the model in memory 264: encode" in said


def test_characters_in_place_of_the_models_tokens_are_noted(tmp_path):
    """At the start, in a line; a model whose embedding is rounded up, to less than twice its tokens, has no such line."""
    said = []
    network = functools.partial(gpt2, weights=TinyGPT2(n_layer=1))
    fields = {"steps": 1, "evaluate_every": 0, "best_metric": None}
    Trainer(pretrained_text(network, **fields), ONE, tmp_path, note=said.append).train()
    characters = pydoc_topics().tokenizer.size
    line = (
        f"the data has {characters} tokens, and the model in memory 264: it knows them only if text_files.tokens names its own "
        "tokenizer"
    )
    assert line in said and characters < 132
    assert list(build(TinyGPT2(), vocabulary=131).network.notes) == [
        line.replace(str(characters), "131")
    ]
    assert not build(TinyGPT2(), vocabulary=132).notes


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rank": 0}, "LoRA.rank is 0 and LoRA.alpha 16.0: rank must be at least 1"),
        ({"alpha": 0.0}, "LoRA.alpha 0.0"),
        ({"dropout": 1.0}, "LoRA.dropout is 1.0: it must be at least 0 and below 1"),
        ({"projections": ()}, r"LoRA.projections is \[\]: choose one or more of attention/qkv, "),
        ({"projections": ("query",)}, r"LoRA.projections is \['query'\]"),
    ],
)
def test_wrong_adaptations(changes, message):
    with pytest.raises(ValueError, match=message):
        LoRA(**changes)


def test_paths_may_begin_with_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    TinyGPT2().save(tmp_path / "model")
    assert HuggingFaceFolder("~/model").shapes == HuggingFaceFolder(f"{tmp_path}/model").shapes


def test_folders_that_miss_something(tmp_path):
    folder = tmp_path / "model"

    def message():
        with pytest.raises(DataError) as caught:
            HuggingFaceFolder(str(folder))
        return str(caught.value).replace(str(folder), "F")

    assert message() == "F is no folder: name one that has config.json and model.safetensors"
    TinyGPT2().save(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000])
    assert message().startswith("F/model.safetensors is damaged (")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = message()
    assert said.startswith("F has pytorch_model.bin, a pickle, which could run any code")
    assert "save the model as model.safetensors" in said
    (folder / "pytorch_model.bin").unlink()
    assert message() == "F has no model.safetensors: save the model there by save_pretrained"
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"wte.weight": "model-1.safetensors"}}')
    assert message().startswith("F/model-1.safetensors cannot be read (")
    index.write_text('{"weight_map": {"wte.weight": 5}}')
    said = "F/model.safetensors.index.json has a weight_map of no file names: save the model again"
    assert message() == said
    index.write_text("{}")
    assert message() == "F/model.safetensors.index.json has no weight_map: save the model again"
    (folder / "config.json").write_text("{,}")
    assert message().startswith("F/config.json is no JSON (")
    (folder / "config.json").write_text("[]")
    assert message() == "F/config.json holds no JSON object: save the model again"
    (folder / "config.json").unlink()
    assert message().startswith("F/config.json cannot be read (")
