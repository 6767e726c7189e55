"""Byte pair encoding: learnt the same each time, nothing is lost, other tokenizer.json are read."""

import json
import sys
import time
from pydoc_data.topics import topics

import numpy as np
import pytest
import tokenizers

from input_pipeline import tokenization
from input_pipeline.batches import DataError, MissingLibrary
from input_pipeline.subwords import Subwords, read_tokenizer

TEXT = topics["with"] + topics["try"]
STRANGE = "\n\nnaïve – 𝔘nicode\n 日本 \t<|end|>  and\r\nmore <unk>"


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
REMOVED = {"type": "Split", "pattern": {"String": "-"}, "behavior": "Removed", "invert": False}
ADDED = {"id": 258, "content": "<|end|>", "special": True, "normalized": False}
ADDED |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)


@pytest.fixture(scope="module")
def learnt():
    return Subwords.of(TEXT, 400)


def foreign(**changes):
    """A tokenizer.json of byte pair encoding that has two merges and a special token."""
    library = tokenizers
    symbols = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: token for token, symbol in enumerate([*symbols, "th", "the"])}
    tokenizer = library.Tokenizer(library.models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return json.dumps({**json.loads(tokenizer.to_str()), **changes})


def test_merges_are_the_most_frequent_pairs():
    """By hand: "ab" 4 times, then "abc" 3 times; of pairs 2 times " " and "a" would be next."""
    tokenizer = Subwords.of("abc abc\nabc\nab\n", 258)
    assert json.loads(tokenizer.to_json())["model"]["merges"] == [["a", "b"], ["ab", "c"]]
    assert tokenizer.size == 258
    tokens = tokenizer.encode("ab abc")
    assert tokens.dtype == np.int32 and len(tokens) == 3 and tokens[0] == 256 and tokens[2] == 257


def test_nothing_is_lost(learnt):
    assert learnt.size == 400
    for text in (TEXT, STRANGE, ""):
        tokens = learnt.encode(text)
        assert learnt.decode(tokens) == text
        assert learnt.characters[tokens].sum() == len(text)
    assert len(learnt.encode(TEXT)) < 0.6 * len(TEXT)


def test_a_text_is_encoded_in_pieces_as_at_once(learnt, monkeypatch):
    monkeypatch.setattr(tokenization, "PIECE", 3)
    for text in (STRANGE, TEXT[:500]):
        pieces = list(learnt.pieces(text))
        assert len(pieces) >= 3 and "".join(pieces) == text
        tokens = np.concatenate([learnt.encode(piece) for piece in pieces])
        whole = tokenizers.Tokenizer.from_str(learnt.to_json()).encode(text)
        np.testing.assert_array_equal(tokens, whole.ids)


def test_learning_is_repeated_to_the_letter(learnt):
    """Each time its hash tables have other seeds, with which unigram models differ."""
    for _ in range(3):
        assert Subwords.of(TEXT, 400).to_json() == learnt.to_json()


def test_the_file_of_another_library_is_read():
    tokenizer = read_tokenizer(foreign())
    assert isinstance(tokenizer, Subwords) and tokenizer.size == 259
    text = "the <|end|>thé"
    tokens = tokenizer.encode(text)
    np.testing.assert_array_equal(tokens[[0, 2, 3]], [257, 258, 256])
    assert tokenizer.decode(tokens) == text
    assert tokenizer.characters[tokens].sum() == len(text)
    assert read_tokenizer(tokenizer.to_json()).to_json() == tokenizer.to_json()
    # How it divides lines is not known, so it gets the text as one.
    assert list(tokenizer.pieces("a\n" * 1_000_000)) == ["a\n" * 1_000_000]
    assert list(tokenizer.pieces("")) == []


def test_nothing_is_cut_off_or_filled_up():
    truncation = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    for changes in ({"truncation": truncation}, {"padding": padding}):
        tokenizer = Subwords(foreign(**changes))
        assert len(tokenizer.encode("the the")) == 3 and len(tokenizer.encode("abcdef")) == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [REMOVED, BYTES]}},
        {"pre_tokenizer": {**BYTES, "add_prefix_space": True}},
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}},
        {"added_tokens": [{**ADDED, "lstrip": True}]},
    ],
    ids=str,
)
def test_characters_are_not_counted_where_the_text_is_changed(changes):
    assert read_tokenizer(foreign(**changes)).characters is None


def test_what_is_no_tokenizer():
    for state in ("{}", '{"model": 1}'):
        with pytest.raises(ValueError):
            Subwords(state)
    with pytest.raises(ValueError, match="vocabulary is 255: it must be at least 256"):
        Subwords.of(TEXT, 255)


def whitespace_tokenizer(**model):
    """The JSON of one whose words are divided by white space."""
    state = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    before = {"type": "Whitespace"}
    return json.dumps({**state, "pre_tokenizer": before, "model": state["model"] | model})


def test_what_has_no_token_is_named():
    """The library itself raises an error without a class, or leaves it out."""
    known = {"H": 0, "e": 1, "l": 2, "o": 3}
    short = Subwords(whitespace_tokenizer(vocab=known, merges=[]))
    assert short.encode("Hello oH").tolist() == [0, 1, 2, 2, 3, 3, 0]
    with pytest.raises(DataError, match="no token for 'dr', and would leave out what"):
        short.encode("Hello lord")
    words = {"type": "WordLevel", "vocab": {"Hello": 0}, "unk_token": "<unk>"}
    unknown = Subwords(whitespace_tokenizer(**words))
    assert unknown.encode("Hello Hello").tolist() == [0, 0]
    with pytest.raises(DataError, match=r"cannot encode the text \(WordLevel error: Missing"):
        unknown.encode("Hello lord")
    known_too = {**words, "vocab": {"Hello": 0, "<unk>": 1}}
    assert Subwords(whitespace_tokenizer(**known_too)).encode("Hello lord").tolist() == [0, 1]
    with pytest.raises(ValueError, match="it has no tokens"):
        Subwords(whitespace_tokenizer())


def test_a_word_without_end_is_learnt_from_in_parts():
    """Else by the square of its length: half a minute here."""
    random = np.random.default_rng(0)
    text = "".join(map(chr, random.integers(0x4E00, 0x5E00, 80_000)))
    begin = time.process_time()
    learnt = Subwords.of(text, 600)
    assert time.process_time() - begin < 10
    assert learnt.size == 600 and learnt.decode(learnt.encode(text)) == text


def test_the_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for make in (lambda: Subwords(foreign()), lambda: Subwords.of(TEXT, 300)):
        with pytest.raises(MissingLibrary, match="pip install tokenizers"):
            make()
