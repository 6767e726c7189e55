"""Corpora of files."""

import json
import math

import numpy as np
import pytest

from input_pipeline.batches import DataError
from input_pipeline.text_files import load_tokenizer, read_texts, text_files
from tests.models.tiny_gpt2 import END, TinyGPT2

LINES = "".join(f"line {i} of the text\n" for i in range(50))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whole.txt").write_text(LINES)
    return tmp_path


def decoded(corpus):
    return {name: corpus.tokenizer.decode(part) for name, part in corpus.parts.items()}


@pytest.mark.parametrize("tokens", ["characters", "bytes"])
def test_characters_and_bytes_are_cut_anywhere(tokens, folder):
    corpus = text_files("whole.txt", tokens, validation=0.2, test=0.05)
    train, held_out = round(len(LINES) * 0.75), round(len(LINES) * 0.95)
    assert decoded(corpus) == {
        "train": LINES[:train],
        "validation": LINES[train:held_out],
        "test": LINES[held_out:],
    }
    assert {part.dtype for part in corpus.parts.values()} == {np.dtype(np.uint8)}
    assert corpus.tokenizer.size == (256 if tokens == "bytes" else len(set(LINES)))


@pytest.mark.parametrize("tokens, vocabulary", [("words", None), ("subwords", 270)])
def test_words_and_subwords_are_cut_where_lines_end(tokens, vocabulary, folder):
    parts = decoded(text_files("whole.txt", tokens, vocabulary, test=0.1))
    assert list(parts) == ["train", "validation", "test"]
    assert all(part.endswith("text\n") for part in parts.values())
    if tokens == "subwords":
        assert "".join(parts.values()) == LINES
    assert parts["train"].count("\n") == 41 and parts["test"].count("\n") == 4


def test_one_line_is_cut_at_white_space(folder):
    (folder / "one.txt").write_text("aa bbbb cccc dddd ee ff")
    corpus = text_files("one.txt", "words", validation=0.5)
    assert corpus.tokenizer.vocabulary == ("<eos>", "<unk>", "aa", "bbbb", "cccc")
    np.testing.assert_array_equal(corpus.part("train"), [2, 3, 4])
    np.testing.assert_array_equal(corpus.part("validation"), [1, 1, 1])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("aa bbbb cccc dddd ee ff\n", ["aa bbbb cccc ", "dddd ee ff\n"]),
        ("aa\nbbbb cccc dddd ee ff\n", ["aa\nbbbb cccc ", "dddd ee ff\n"]),
        ("aa\nbbbb cccc\ndddd\nee\n", ["aa\nbbbb cccc\n", "dddd\nee\n"]),
    ],
)
def test_the_end_of_the_text_is_not_where_it_is_cut(text, parts, folder):
    (folder / "one.txt").write_text(text)
    assert list(read_texts("one.txt", "words", 0.5, 0.0, None).values()) == parts


def test_the_last_test_may_have_a_file_of_its_own(folder):
    (folder / "last.txt").write_text("text 7\n")
    corpus = text_files("whole.txt", validation=0.1, test="last.txt")
    assert decoded(corpus)["test"] == "text 7\n"
    whole = read_texts("whole.txt", "characters", 0.1, 0.0, None)
    assert {name: text for name, text in decoded(corpus).items() if name != "test"} == whole


def test_the_vocabulary_is_that_of_the_training_part(folder):
    (folder / "held out.txt").write_text("line 7 of another\n")
    corpus = text_files("whole.txt", "words", 7, validation="held out.txt", test=0.1)
    assert set(corpus.tokenizer.vocabulary[2:]) == {"line", "of", "the", "text", "0"}
    assert list(corpus.parts) == ["train", "validation", "test"]
    assert decoded(corpus)["validation"] == "line <unk> of <unk>\n"
    many = text_files("whole.txt", "words", validation="held out.txt")
    assert many.tokenizer.size == 2 + 4 + 50 and list(many.parts) == ["train", "validation"]


def test_a_character_that_training_lacks_is_named(folder):
    (folder / "held out.txt").write_text("text € 12 é\n")
    with pytest.raises(DataError) as error:
        text_files("whole.txt", validation="held out.txt")
    assert str(error.value) == (
        "the vocabulary lacks 'é€', 2 of the characters of part \"validation\": add them by extra_characters, or choose "
        'tokens = "bytes"'
    )
    corpus = text_files("whole.txt", validation="held out.txt", extra_characters="€é")
    assert decoded(corpus)["validation"] == "text € 12 é\n"


def test_files_of_a_folder_are_joined_in_order(folder):
    (folder / "book").mkdir()
    for name, text in {
        "2.txt": "two",
        "10.txt": "ten",
        "a.txt": "\ufeffa",
        "b.md": "b",
        ".c.txt": "c",
    }.items():
        (folder / "book" / name).write_text(text)
    (folder / "book" / "3.txt").mkdir()
    assert decoded(text_files("book", validation=0.0)) == {"train": "ten\ntwo\na"}


def test_paths_may_begin_with_the_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "home.txt").write_text("abcab" * 20)
    (folder / "home").mkdir()
    (folder / "home" / "one.txt").write_text("ba" * 20)
    corpus = text_files("~/home", validation="~/home.txt", extra_characters="c")
    assert {name: len(part) for name, part in corpus.parts.items()} == {
        "train": 40,
        "validation": 100,
    }
    with pytest.raises(DataError, match="~nobody-of-that-name/text cannot be read"):
        text_files("~nobody-of-that-name/text")


def test_columns_of_tables(folder):
    (folder / "tables").mkdir()
    (folder / "tables/2.csv").write_text('id,text\n1,"b, c"\n2,d\n')
    (folder / "tables/1.jsonl").write_text('{"text": "a"}\n')
    corpus = text_files("tables", validation="tables/1.jsonl", column="text")
    assert decoded(corpus) == {"train": "a\nb, c\nd", "validation": "a"}


def test_a_tokenizer_of_another_corpus(folder):
    first = text_files("whole.txt", "words", 20)
    (folder / "tokenizer.json").write_text(first.tokenizer.to_json())
    again = text_files("whole.txt", "tokenizer.json")
    for name, part in first.parts.items():
        np.testing.assert_array_equal(again.part(name), part)
    (folder / "tokenizer.json").write_text('{"tokens": "characters", "vocabulary": "lin"}')
    with pytest.raises(
        DataError,
        match=r'the vocabulary lacks .* 18 of the characters of part "train": choose tokens',
    ):
        text_files("whole.txt", "tokenizer.json")


def test_large_vocabularies_take_two_bytes_a_token(folder):
    (folder / "many.txt").write_text(" ".join(map(str, range(255))))
    corpus = text_files("many.txt", "words", validation=0.0)
    assert corpus.tokenizer.size == 257 and corpus.part("train").dtype == np.uint16
    assert corpus.part("train").max() == 256


def test_a_file_that_is_not_utf_8_is_named_with_the_place(folder):
    (folder / "latin.txt").write_bytes(b"na\xefve")
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 at byte 2 \(0xef\): convert it"):
        text_files("latin.txt")
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8"):
        text_files("whole.txt", validation="latin.txt")


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        ({"path": "nowhere"}, DataError, r"nowhere cannot be read \(No such file or directory\)"),
        ({"path": ""}, DataError, "the path of the text is empty: name a file or a folder"),
        ({"path": "empty"}, DataError, r"empty has no files \*\.txt"),
        ({"path": "empty.txt"}, DataError, "empty.txt has 0 characters, none of them to train on"),
        ({"path": "short.txt", "validation": 0.9}, DataError, "short.txt has 1 characters, none"),
        ({"test": "empty.txt"}, DataError, "empty.txt is empty: name a text to hold out as test"),
        ({"validation": 0.9, "test": 0.1}, ValueError, "held out are validation 0.9 and test 0.1"),
        ({"validation": math.nan}, ValueError, "held out are validation nan and test 0.0"),
        (
            {"tokens": "letters"},
            ValueError,
            'tokens is "letters": no folder is called so, choose',
        ),
        (
            {"path": "table.csv"},
            DataError,
            "^table.csv is a table: name the column that is to be read",
        ),
        (
            {"path": "none.csv"},
            DataError,
            r"^none.csv cannot be read \(No such file or directory\)",
        ),
        ({"path": "hub"}, DataError, r"^hub has no files \*\.txt: .* and of tables the column$"),
        ({"tokens": "hub"}, DataError, "^hub is a preset without assets/tokenizer: save the whole"),
        ({"tokens": "none.json"}, DataError, r"none\.json cannot be read"),
        ({"tokens": "bad.json"}, DataError, r"bad\.json is no tokenizer\.json \("),
        ({"tokens": "null.json"}, DataError, r"null\.json is no tokenizer\.json \("),
        ({"tokens": "bytes", "vocabulary": 9}, ValueError, "vocabulary is 9: it is for words and"),
        ({"tokens": "subwords"}, ValueError, "vocabulary is None: say how many subwords"),
        ({"tokens": "words", "extra_characters": "é"}, ValueError, "extra_characters is 'é': it"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments, kind, message, folder):
    (folder / "empty").mkdir()
    (folder / "empty.txt").touch()
    (folder / "short.txt").write_text("a")
    (folder / "table.csv").write_text("number,text\n1,a\n")
    (folder / "hub").mkdir()
    (folder / "hub/metadata.json").write_text('{"keras_version": "3.15.1"}')
    (folder / "hub/tokenizer.json").write_text('{"registered_name": "GPT2Tokenizer"}')
    (folder / "bad.json").write_text(json.dumps({"tokens": "words"}))
    (folder / "null.json").write_text(json.dumps({"tokens": "words", "vocabulary": None}))
    with pytest.raises(kind, match=message) as error:
        text_files(**{"path": "whole.txt", **arguments})
    assert "\n" not in str(error.value)


def test_the_tokenizer_of_a_models_folder(folder):
    """By hand: bytes in the order of their symbols, then "th" and "the"; and the same from its tokenizer.json."""
    TinyGPT2().save(folder / "model")
    tokenizer = load_tokenizer("model")
    text = "the cat <|endoftext|>thé\n\n  ü"
    tokens = tokenizer.encode(text)
    assert tokens.tolist()[:3] == [257, 220, 66] and tokenizer.size == END + 1
    assert tokens.tolist().count(END) == 1 and tokens.tolist().count(256) == 1
    assert tokenizer.decode(tokens) == text
    assert tokenizer.characters[tokens].sum() == len(text)
    corpus = text_files("whole.txt", "model")
    assert "".join(decoded(corpus).values()) == LINES
    (folder / "json").mkdir()
    (folder / "json/tokenizer.json").write_text(tokenizer.to_json())
    np.testing.assert_array_equal(load_tokenizer("json").encode(text), tokens)

    def message():
        with pytest.raises(DataError) as caught:
            text_files("whole.txt", "model")
        return str(caught.value)

    (folder / "model/merges.txt").write_text("t h\nx yz\n")
    assert message().startswith("vocab.json and merges.txt of model make no tokenizer (")
    (folder / "model/vocab.json").write_text("[1]")
    assert message().startswith("vocab.json and merges.txt of model make no tokenizer (")
    (folder / "model/merges.txt").unlink()
    assert message().startswith("model has no tokenizer.json, and no merges.txt to make one of: ")
    (folder / "json/tokenizer.json").write_text('{"module": "keras_hub"}')
    with pytest.raises(DataError, match=r"json/tokenizer\.json is no tokenizer\.json"):
        load_tokenizer("json")


def test_the_tokenizer_of_a_preset(folder):
    """Of keras-hub, whose tokenizer.json is passed over: the two files of GPT-2 by its names for them."""
    TinyGPT2().save(folder / "model")
    expected = load_tokenizer("model")
    assets = folder / "preset/assets/tokenizer"
    assets.mkdir(parents=True)
    said = folder / "preset/tokenizer.json"
    said.write_text('{"module": "keras_hub", "class_name": "GPT2Tokenizer"}')
    (folder / "model/vocab.json").rename(assets / "vocabulary.json")
    (folder / "model/merges.txt").rename(assets / "merges.txt")
    assert load_tokenizer("preset").to_json() == expected.to_json()
    assert load_tokenizer("preset").encode("the <|endoftext|>").tolist() == [257, 220, END]
    (assets / "vocabulary.json").write_text("[1]")
    with pytest.raises(
        DataError, match=r"^vocabulary\.json and merges\.txt of preset/assets/tokenizer make no"
    ):
        load_tokenizer("preset")
    (assets / "vocabulary.json").unlink()
    with pytest.raises(DataError, match=r"^preset/assets/tokenizer has no .*, and no vocab\.json "):
        load_tokenizer("preset")
    said.write_text('{"module": "keras_hub", "class_name": "Llama3Tokenizer"}')
    with pytest.raises(DataError, match=r"^the tokenizer of preset is not GPT-2's, .*: name the"):
        load_tokenizer("preset")
