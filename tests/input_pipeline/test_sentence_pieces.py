"""SentencePiece models: learnt the same each time, nothing is lost, those of others are read."""

import io
import json
import re
import sys
from pydoc_data.topics import topics

import numpy as np
import pytest

from input_pipeline import sentence_pieces, tokenization
from input_pipeline.batches import DataError, MissingLibrary
from input_pipeline.packed_corpus import pack_corpus, packed_corpus
from input_pipeline.sentence_pieces import SentencePieces
from input_pipeline.subwords import read_tokenizer
from input_pipeline.text_files import load_tokenizer, text_files

TEXT = topics["with"] + topics["try"]
STRANGE = "\n\nnaïve – 𝔘nicode\n 日本 \t<0x41>  and\r\nmore <unk>"


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip(
        "sentencepiece", reason="sentencepiece is not installed: pip install -e '.[text]'"
    )


@pytest.fixture(scope="module")
def learnt(library):
    return SentencePieces.of(TEXT, 400)


def foreign(library, **changes):
    """A model as the library makes it, with its own choice of everything."""
    model = io.BytesIO()
    library.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXT.split("\n")),
        model_writer=model,
        vocab_size=300,
        minloglevel=2,
        **changes,
    )
    return model.getvalue()


def test_nothing_is_lost(learnt):
    assert 256 + 2 < learnt.size <= 400
    for text in (TEXT, STRANGE, ""):
        tokens = learnt.encode(text)
        assert tokens.dtype == np.int32 and learnt.decode(tokens) == text
        assert learnt.characters[tokens].sum() == len(text)
    assert len(learnt.encode(TEXT)) < 0.7 * len(TEXT)


def test_it_is_learnt_the_same_each_time(learnt):
    assert SentencePieces.of(TEXT, 400).to_json() == learnt.to_json()


def test_long_lines_are_learnt_from_in_parts(monkeypatch):
    monkeypatch.setattr(tokenization, "PIECE", 500)
    monkeypatch.setattr(sentence_pieces, "LONGEST_LINE", 2000)
    line = TEXT.replace("\n", " ")
    assert len(line) > 2000
    learnt = SentencePieces.of(line, 400)
    assert 256 + 2 < learnt.size <= 400 and learnt.decode(learnt.encode(TEXT)) == TEXT


def test_a_text_is_encoded_in_pieces_as_at_once(learnt, monkeypatch):
    monkeypatch.setattr(tokenization, "PIECE", 3)
    for text in (STRANGE, TEXT[:500]):
        pieces = list(learnt.pieces(text))
        assert len(pieces) >= 3 and "".join(pieces) == text
        tokens = np.concatenate([learnt.encode(piece) for piece in pieces])
        np.testing.assert_array_equal(tokens, learnt.encode(text))


def test_a_model_of_others_is_read(library, tmp_path):
    """As its library reads it: it begins texts with a space, makes one of several, and of the end of a line too."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(foreign(library))
    preset = tmp_path / "preset"  # Of keras-hub.
    (preset / "assets/tokenizer").mkdir(parents=True)
    (preset / "assets/tokenizer/vocabulary.spm").write_bytes(foreign(library))
    for name in (path, tmp_path, preset):
        tokenizer = load_tokenizer(str(name))
        processor = library.SentencePieceProcessor(model_file=str(path))
        text = " the  with\nstatement"
        tokens = tokenizer.encode(text)
        assert tokens.tolist() == processor.EncodeAsIds(text) and tokenizer.size == 300
        assert tokenizer.decode(tokens) == "the with statement"
        assert tokenizer.characters is None and list(tokenizer.pieces(text)) == [text]
    # Not even where only a space before the text is added.
    kept = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    llama = SentencePieces(foreign(library, model_type="bpe", byte_fallback=False, **kept))
    assert llama.characters is None and list(llama.pieces("")) == []


def test_a_corpus_keeps_its_model(learnt, tmp_path, monkeypatch):
    """In a packed folder, which is enough to decode; and a file of it encodes another text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    corpus = text_files("text.txt", "sentencepiece", 400, validation=0.0)
    pack_corpus({"train": TEXT}, corpus.tokenizer, "packed")
    packed = packed_corpus("packed")
    np.testing.assert_array_equal(packed.part("train"), corpus.part("train"))
    assert packed.tokenizer.decode(packed.part("train")) == TEXT
    assert read_tokenizer(learnt.to_json()).to_json() == learnt.to_json()
    again = text_files("text.txt", "packed", validation=0.0)
    np.testing.assert_array_equal(again.part("train"), corpus.part("train"))


def test_what_cannot_be_done_is_said_in_one_line(library, learnt, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    whole = foreign(library)
    for data in (b"", b"some text", whole[: len(whole) // 2]):
        (tmp_path / "bad.model").write_bytes(data)
        with pytest.raises(DataError, match=r"^bad\.model is no SentencePiece model \(.*name"):
            text_files("text.txt", "bad.model")
    with pytest.raises(DataError, match=r"^none\.model cannot be read \(No such file"):
        text_files("text.txt", "none.model")
    with pytest.raises(ValueError, match="vocabulary is None: say how many subwords"):
        text_files("text.txt", "sentencepiece")
    with pytest.raises(ValueError, match="vocabulary is 9: sentencepiece learns none") as caught:
        text_files("text.txt", "sentencepiece", 9)
    assert re.fullmatch(r"[^\n]+", str(caught.value))
    state = json.loads(learnt.to_json())
    for model in ("!", state["model"][:100]):
        (tmp_path / "tokenizer.json").write_text(json.dumps(state | {"model": model}))
        with pytest.raises(DataError, match=r"tokenizer\.json is no tokenizer\.json \("):
            load_tokenizer("tokenizer.json")
    assert "\n" not in capfd.readouterr().err


def test_the_library_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "a.model").touch()
    with pytest.raises(
        MissingLibrary, match=r"^SentencePiece models need .* pip install sentencepiece$"
    ):
        load_tokenizer(str(tmp_path / "a.model"))
