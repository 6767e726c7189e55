"""What sources say of themselves, so that a training does not go on with other data."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from input_pipeline.batches import Batches, DataError
from input_pipeline.image_folder import ImageFolder
from input_pipeline.images import Images
from input_pipeline.packed import Packed
from input_pipeline.packed_corpus import pack_corpus, packed_corpus
from input_pipeline.packing import pack
from input_pipeline.split import Split
from input_pipeline.text import TextStreams, TextWindows
from input_pipeline.text_files import encode, make_tokenizer, text_files
from input_pipeline.tokenization import Words

LINE = "one two two three three three\n"


def identity(source):
    return Batches(source, 2).identity


def words(tmp_path, text, **arguments):
    (tmp_path / "text.txt").write_text(text)
    corpus = text_files(str(tmp_path / "text.txt"), "words", **arguments)
    return identity(TextWindows(corpus, window=2))


def test_of_a_text_its_tokens_and_their_vocabulary(tmp_path):
    first = words(tmp_path, LINE * 8)
    assert first == words(tmp_path, LINE * 8) and set(first) == {"meaning", "examples"}
    longer = words(tmp_path, LINE * 9)
    assert longer["meaning"] == first["meaning"] and longer["examples"] != first["examples"]
    # As many words of the same number of tokens, but "one" and "two" have changed places.
    other = words(tmp_path, LINE.replace("two", "1").replace("one", "two") * 8)
    assert other["meaning"] != first["meaning"]
    same_length = words(tmp_path, LINE[::-1][1:] * 8 + "\n")
    assert same_length["examples"] != first["examples"]


def test_a_packed_corpus_is_what_it_was_packed_from(tmp_path):
    texts = {"train": LINE * 8, "validation": LINE}
    tokenizer = make_tokenizer(texts, "words", None, "")
    assert isinstance(tokenizer, Words)
    pack_corpus(texts, tokenizer, str(tmp_path / "packed"))
    pack_corpus({**texts, "train": LINE * 9}, tokenizer, str(tmp_path / "longer"))
    packed, longer = (packed_corpus(str(tmp_path / n)) for n in ("packed", "longer"))
    assert packed.digest("train") != longer.digest("train")
    assert packed.digest("validation") == longer.digest("validation")
    streams = TextStreams(packed, window=2, streams=2)
    assert streams.vocabulary == tokenizer.to_json()
    assert identity(streams) == identity(TextStreams(packed, window=2, streams=2))
    np.testing.assert_array_equal(packed.part("train"), encode(tokenizer, texts["train"]))


def test_of_pictures_in_memory_what_they_are():
    chance = np.random.default_rng(0)
    images, labels = chance.integers(256, size=(6, 4, 4), dtype=np.uint8), np.arange(6)
    first = identity(Images(images, labels))
    assert first == identity(Images(images.copy(), labels)) and set(first) == {"examples"}
    for other in (Images(images, labels[::-1]), Images(images[::-1], labels), Images(images)):
        assert identity(other) != first
    assert identity(Split(Images(images, labels), share=0.5)) != first


def test_of_a_folder_names_of_pictures_and_classes_wherever_it_is(tmp_path):
    for number in range(4):
        path = tmp_path / "one" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(path)
    first = identity(ImageFolder(str(tmp_path / "one")))
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert identity(ImageFolder(str(tmp_path / "two"))) == first
    (tmp_path / "two/b").rename(tmp_path / "two/c")
    renamed = identity(ImageFolder(str(tmp_path / "two")))
    assert renamed["meaning"] != first["meaning"] and renamed["examples"] != first["examples"]
    (tmp_path / "two/c").rename(tmp_path / "two/b")
    (tmp_path / "two/b/3.png").rename(tmp_path / "two/b/5.png")
    added = identity(ImageFolder(str(tmp_path / "two")))
    assert added["meaning"] == first["meaning"] and added["examples"] != first["examples"]


def test_of_packed_pictures_their_checksums(tmp_path):
    images = np.zeros((4, 4, 4), np.uint8)
    pack(Images(images), str(tmp_path / "one"))
    pack(Images(images + 1), str(tmp_path / "two"))
    one, two = (identity(Packed(str(tmp_path / n))) for n in ("one", "two"))
    assert one == identity(Packed(str(tmp_path / "one"))) and one != two


def test_two_vocabularies_are_refused(tmp_path):
    for name, text in (("train", LINE), ("held_out", LINE.replace("two", "four"))):
        (tmp_path / f"{name}.txt").write_text(text * 8)
    train, held_out = (
        TextWindows(text_files(str(tmp_path / f"{n}.txt"), "words", validation=0.0), window=2)
        for n in ("train", "held_out")
    )
    with pytest.raises(DataError, match="the vocabulary of held-out texts is not that of training"):
        Batches(train, 2, validation=held_out)
