"""Characters, bytes and words."""

import json

import numpy as np
import pytest

from input_pipeline import tokenization
from input_pipeline.batches import DataError
from input_pipeline.subwords import read_tokenizer
from input_pipeline.tokenization import Bytes, Characters, Words, smallest_dtype

TEXT = "naïve – 𝔘nicode\n\n日本 \t and\r\nmore\n"


def test_characters_are_numbered_in_order():
    tokenizer = Characters("abcabd\nxyz")
    assert tokenizer.vocabulary == "\nabcdxyz" and tokenizer.size == 8
    np.testing.assert_array_equal(tokenizer.encode("dab\n"), [4, 1, 2, 0])
    assert tokenizer.decode(np.array([7, 0])) == "z\n"


def test_encoding_is_undone_by_decoding():
    tokenizer = Characters("naïve – 𝔘nicode\ud800!")
    text = "ücode"[1:] + "𝔘 –ï\ud800"
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32 and tokens.shape == (len(text),)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.encode("").shape == (0,)


@pytest.mark.parametrize("character", ["A", "\x00", "b", "d", "\U0001f600"])
def test_an_unknown_character_is_named(character):
    with pytest.raises(DataError, match="at position 2 is not among the 2") as error:
        Characters("acac").encode(f"ac{character}c")
    assert repr(character) in str(error.value)


def test_characters_need_one():
    with pytest.raises(ValueError, match="the vocabulary is empty"):
        Characters("")


def test_bytes_are_those_of_utf_8():
    tokenizer = Bytes()
    np.testing.assert_array_equal(tokenizer.encode("aï\n"), [97, 0xC3, 0xAF, 10])
    assert tokenizer.size == 256 and tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.decode(np.array([97, 0xC3, 98])) == "a\ufffdb"


def test_words_are_the_most_frequent_and_of_equal_ones_the_first():
    text = "b a c b\n a d <unk> é\n"
    assert Words.of(text).vocabulary == ("<eos>", "<unk>", "a", "b", "c", "d", "é")
    tokenizer = Words.of(text, 5)
    assert tokenizer.vocabulary == ("<eos>", "<unk>", "a", "b", "c") and tokenizer.size == 5
    np.testing.assert_array_equal(tokenizer.encode("a\tc  é\n\nb"), [2, 4, 1, 0, 0, 3])
    assert tokenizer.encode(text).dtype == np.int32
    assert tokenizer.decode(tokenizer.encode(text)) == "b a c b\na <unk> <unk> <unk>\n"
    assert tokenizer.decode(np.array([], int)) == ""
    assert tokenizer.characters is None
    for size in (2, 0):
        with pytest.raises(ValueError, match=f"vocabulary is {size}: it must be at least 3"):
            Words.of(text, size)
    for words in (["<eos>", "a"], ["<eos>", "<unk>", "a", "a"]):
        with pytest.raises(ValueError, match="give each once"):
            Words(words)


@pytest.mark.parametrize("tokenizer", [Characters(TEXT), Bytes()], ids=["characters", "bytes"])
def test_characters_of_tokens_add_up_to_those_of_the_text(tokenizer):
    assert tokenizer.characters.shape == (tokenizer.size,)
    for text in (TEXT, TEXT[3:9], ""):
        assert tokenizer.characters[tokenizer.encode(text)].sum() == len(text)


@pytest.mark.parametrize(
    "tokenizer", [Characters(TEXT), Bytes(), Words.of(TEXT)], ids=["characters", "bytes", "words"]
)
def test_a_text_is_encoded_in_pieces_as_at_once(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenization, "PIECE", 3)
    pieces = list(tokenizer.pieces(TEXT))
    assert len(pieces) >= 5 and "".join(pieces) == TEXT
    tokens = np.concatenate([tokenizer.encode(piece) for piece in pieces])
    np.testing.assert_array_equal(tokens, tokenizer.encode(TEXT))


@pytest.mark.parametrize(
    "tokenizer",
    [Characters(TEXT + "\ud800"), Bytes(), Words.of(TEXT)],
    ids=["characters", "bytes", "words"],
)
def test_a_tokenizer_is_read_as_it_was_written(tokenizer):
    state = tokenizer.to_json()
    state.encode()
    read = read_tokenizer(state)
    assert type(read) is type(tokenizer) and read.to_json() == state
    np.testing.assert_array_equal(read.encode(TEXT), tokenizer.encode(TEXT))


def test_what_is_no_tokenizer():
    for state in ("[1]", json.dumps({"tokens": "words", "vocabulary": ["a"]})):
        with pytest.raises(ValueError):
            read_tokenizer(state)


def test_tokens_take_little_memory():
    sizes = [(1, 1), (256, 1), (257, 2), (65_536, 2), (65_537, 4)]
    assert [(n, np.dtype(smallest_dtype(n)).itemsize) for n, _ in sizes] == sizes
