"""Windows and streams of a corpus."""

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.batches import Batches, DataError, Feature, Slice
from input_pipeline.corpus import Corpus
from input_pipeline.subwords import Subwords
from input_pipeline.text import TextStreams, TextWindows
from input_pipeline.tokenization import Bytes, Characters, Words


def corpus(text):
    tokenizer = Characters(text)
    return Corpus({"train": tokenizer.encode(text)}, tokenizer)


def letters(count):
    return corpus("".join(map(chr, range(1000, 1000 + count))))


def read_all(source):
    return {k: v.numpy() for k, v in source.read(tf.range(len(source), dtype=tf.int64)).items()}


def test_windows_of_a_short_text():
    source = TextWindows(corpus("abcabd\nxyz"), window=3, stride=2)
    assert source.element_spec == {
        "tokens": Feature((4,), "int32", 8),
        "characters": Feature((), "int32"),
    }
    assert len(source) == 4  # The last begins at 6: "\nxyz".
    tokens = source.read(tf.constant([0, 1, 3], tf.int64))["tokens"]
    assert tokens.dtype == tf.int32
    np.testing.assert_array_equal(tokens, [[1, 2, 3, 1], [3, 1, 2, 4], [0, 5, 6, 7]])
    assert source.decode(tokens) == ["abca", "cabd", "\nxyz"]
    np.testing.assert_array_equal(source.encode("cabd"), tokens[1])


def test_by_default_each_token_but_the_first_is_a_target_once():
    targets = read_all(TextWindows(letters(25), window=8))["tokens"][:, 1:]
    np.testing.assert_array_equal(np.ravel(targets), np.arange(1, 25))


@pytest.mark.parametrize("tokens", [9, 16, 17, 18, 24, 25])
def test_a_whole_text_ends_with_a_window_in_part(tokens):
    source = TextWindows(letters(tokens), window=8, whole=True)
    assert source.element_spec["targets"] == Feature((), "int32")
    read = read_all(source)
    assert len(source) == -(-(tokens - 1) // 8) and read["targets"].min() > 0
    found = [row[1 : 1 + n] for row, n in zip(read["tokens"], read["targets"], strict=True)]
    np.testing.assert_array_equal(np.concatenate(found), np.arange(1, tokens))
    np.testing.assert_array_equal(read["characters"], read["targets"])
    with pytest.raises(ValueError, match="stride is 2 and window 8: leave the stride out, or whol"):
        TextWindows(letters(25), window=8, stride=2, whole=True)


def test_a_text_shorter_than_a_window():
    assert len(TextWindows(corpus("abcd"), window=3)) == 1
    with pytest.raises(DataError, match="has 3 tokens, but one window of 3 needs 4"):
        TextWindows(corpus("abc"), window=3)
    with pytest.raises(ValueError, match="stride is 0"):
        TextWindows(corpus("abcd"), window=2, stride=0)
    with pytest.raises(ValueError, match="window is 0"):
        TextWindows(corpus("abcd"), window=0)


def test_streams_of_a_short_text():
    """22 targets in 3 streams of 7, 7 and 8, windows of 3."""
    source = TextStreams(letters(23), window=3, streams=3)
    assert source.element_spec == {
        "tokens": Feature((4,), "int32", 23),
        "characters": Feature((), "int32"),
        "targets": Feature((), "int32"),
        "begins": Feature((), "bool"),
    }
    assert len(source) == 9
    read = read_all(source)
    np.testing.assert_array_equal(read["begins"], [True] * 3 + [False] * 6)
    np.testing.assert_array_equal(read["targets"], [3, 3, 3, 3, 3, 3, 1, 1, 2])
    np.testing.assert_array_equal(read["tokens"][:3, 0], [0, 7, 14])
    np.testing.assert_array_equal(read["tokens"][3], [3, 4, 5, 6])
    np.testing.assert_array_equal(read["tokens"][8], [20, 21, 22, 22])


@pytest.mark.parametrize(
    "tokens, window, streams", [(23, 3, 3), (50, 7, 4), (41, 10, 4), (9, 8, 1)]
)
def test_each_token_but_the_first_is_a_target_of_a_stream_once(tokens, window, streams):
    source = TextStreams(letters(tokens), window=window, streams=streams)
    read, found = read_all(source), {stream: [] for stream in range(streams)}
    for i in range(len(source)):
        row, count = read["tokens"][i], read["targets"][i]
        if not read["begins"][i] and count:
            assert row[0] == found[i % streams][-1]  # It goes on where the one before it ended.
        found[i % streams] += row[1 : 1 + count].tolist()
    assert [target for row in found.values() for target in row] == list(range(1, tokens))


def test_streams_are_read_in_order_a_window_of_each_an_update():
    source = TextStreams(letters(23), window=3, streams=3)
    batches = Batches(source, 3, seed=5, validation=source)
    data = batches.training(Slice(replicas=3, count=3), step=2)
    first = [element["tokens"][0, 0].numpy().tolist() for element in data.take(6)]
    assert [row[0] for row in first] == [6, 13, 20, 0, 7, 14]
    with pytest.raises(ValueError, match="global_batch is 4 and the source has 3 streams"):
        Batches(source, 4)


def test_a_held_out_stream_stays_in_its_row():
    """3 streams on 2 replicas: the second has one of them, and padding beside it in each step."""
    source = TextStreams(letters(23), window=3, streams=3)
    batches = Batches(source, 3, validation=source)
    data = batches.evaluation(Slice(replicas=2, count=2), batch=4)
    ids = [row.numpy().tolist() for _, row in data]
    assert ids == [[0, 1], [2, 9], [3, 4], [5, 9], [6, 7], [8, 9]]


def test_held_out_windows_may_be_of_another_length_and_no_streams():
    text = letters(23)
    streams = TextStreams(text, window=3, streams=3)
    for validation in (TextWindows(text, window=7), TextStreams(text, window=7, streams=2)):
        batches = Batches(streams, 3, validation=validation)
        assert batches.validation_spec["tokens"] == Feature((8,), "int32", 23)
    other = TextWindows(letters(29), window=3)
    with pytest.raises(DataError, match="the vocabulary of held-out texts is not that of training"):
        Batches(streams, 3, validation=other)


def test_a_text_too_short_for_its_streams():
    assert len(TextStreams(letters(13), window=4, streams=3)) == 3
    with pytest.raises(DataError, match=r"12 tokens, but 3 streams .* of 4 need 13"):
        TextStreams(letters(12), window=4, streams=3)
    with pytest.raises(ValueError, match="streams is 0"):
        TextStreams(letters(12), window=4, streams=0)


TEXT = "\n".join(f"naïvely – 𝔘nicode {i}" for i in range(60))


@pytest.mark.parametrize(
    "tokenizer",
    [Characters(TEXT), Bytes(), Subwords.of(TEXT, 280)],
    ids=["characters", "bytes", "subwords"],
)
@pytest.mark.parametrize(
    "read",
    [
        lambda corpus: TextStreams(corpus, window=7, streams=3),
        lambda corpus: TextStreams(corpus, window=100, streams=1),
        lambda corpus: TextWindows(corpus, window=1),
    ],
    ids=["three streams", "one stream", "windows"],
)
def test_characters_of_all_targets_are_those_behind_the_first_token(tokenizer, read):
    tokens = tokenizer.encode(TEXT)
    found = read_all(read(Corpus({"train": tokens}, tokenizer)))
    first = len(tokenizer.decode(tokens[:1]))
    assert found["characters"].dtype == np.int32 and tokens[0] < tokenizer.size
    assert found["characters"].sum() == len(TEXT) - first


def test_characters_are_those_of_the_windows_own_targets():
    """Of "aï€", bytes 61 c3af e282ac: one that goes on with a character counts for none."""
    source = TextStreams(Corpus({"train": Bytes().encode("aï€b")}, Bytes()), window=4, streams=1)
    read = read_all(source)
    np.testing.assert_array_equal(read["targets"], [4, 2])
    np.testing.assert_array_equal(read["characters"], [2, 1])


def test_words_do_not_say_their_characters():
    words = Words.of("a b c d")
    source = TextWindows(Corpus({"train": words.encode("a b c d")}, words), window=2)
    assert source.element_spec.keys() == read_all(source).keys() == {"tokens"}
