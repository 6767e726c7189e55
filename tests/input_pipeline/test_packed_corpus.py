"""Packed corpora: read as those in memory, the same bytes after any interruption; what is damaged is named."""

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline import tokenization, writing
from input_pipeline.batches import Batches, DataError, Slice
from input_pipeline.corpus import Corpus
from input_pipeline.manifest import CHECKED_BYTES, verify
from input_pipeline.packed_corpus import pack_corpus, packed_corpus
from input_pipeline.text import TextStreams, TextWindows
from input_pipeline.tokenization import Bytes, Words

WORDS = Words.of(" ".join(map(str, range(400))))
TEXTS = {
    "train": "".join(f"{i} {i * i}\n" for i in range(300)),
    "validation": "1 2 3\n" * 10,
    "test": "4 5 6\n" * 10,
}
IN_MEMORY = Corpus({name: WORDS.encode(text) for name, text in TEXTS.items()}, WORDS)


def same(done, skipped):
    return "same"


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "set"
    pack_corpus(TEXTS, WORDS, str(folder))
    return folder


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "copy")


def test_the_parts_are_memory_maps_of_what_numpy_reads(packed):
    corpus = packed_corpus(str(packed))
    assert list(corpus.parts) == ["train", "validation", "test"]
    for name, part in corpus.parts.items():
        assert isinstance(part, np.memmap) and part.dtype == np.uint16
        np.testing.assert_array_equal(part, IN_MEMORY.part(name))
        np.testing.assert_array_equal(np.load(packed / f"{name}.npy"), part)
    assert corpus.tokenizer.vocabulary == WORDS.vocabulary
    index = json.loads((packed / "index.json").read_text())
    files = ["test.npy", "tokenizer.json", "train.npy", "validation.npy"]
    assert sorted(index["files"]) == files
    assert sorted(path.name for path in packed.iterdir()) == sorted([*files, "index.json"])
    assert index["vocabulary"] == WORDS.size and index["format"] == "lockstep text"


@pytest.mark.parametrize(
    "make",
    [
        lambda corpus: TextWindows(corpus, window=7, stride=3),
        lambda corpus: TextStreams(corpus, window=7, streams=4),
    ],
    ids=["windows", "streams"],
)
def test_windows_and_streams_are_read_as_from_memory(make, packed):
    one, other = make(packed_corpus(str(packed))), make(IN_MEMORY)
    assert one.element_spec == other.element_spec and len(one) == len(other)
    streams = [Batches(source, 4, seed=3).training(Slice(2, 0, 2)) for source in (one, other)]
    assert streams[0].element_spec == streams[1].element_spec
    for found, expected in zip(*(stream.take(8) for stream in streams), strict=True):
        for name, values in expected.items():
            assert found[name].dtype == values.dtype
            np.testing.assert_array_equal(found[name], values)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("save_seconds", [0, 1000])
@pytest.mark.parametrize("part", [0, 0.4, 0.96, 1])
def test_an_interrupted_conversion_goes_on_to_the_same_bytes(
    part, save_seconds, packed, tmp_path, monkeypatch
):
    monkeypatch.setattr(tokenization, "PIECE", 200)
    monkeypatch.setattr(writing, "SAVE_SECONDS", save_seconds)
    seen = []

    def stop(done, total):
        seen.append(done)
        if done >= part * total:
            raise Killed

    with pytest.raises(Killed):
        pack_corpus(TEXTS, WORDS, f"{tmp_path}/set", same, stop)
    with (tmp_path / ".set.partial/train.npy").open("ab") as file:
        file.write(b"half a word")
    stopped, total = seen[-1], sum(map(len, TEXTS.values()))
    seen.clear()
    pack_corpus(TEXTS, WORDS, f"{tmp_path}/set", same, lambda done, total: seen.append(done))
    assert seen[0] == (stopped if save_seconds == 0 or part == 1 else 0) and seen[-1] == total
    assert contents(tmp_path / "set") == contents(packed)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("other", [Bytes(), Words.of("1 2 3")], ids=["bytes", "words"])
def test_another_conversion_begins_again(other, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "PIECE", 200)
    monkeypatch.setattr(writing, "SAVE_SECONDS", 0)

    def stop(done, total):
        if done > 500:
            raise Killed

    with pytest.raises(Killed):
        pack_corpus(TEXTS, other, f"{tmp_path}/set", same, stop)
    pack_corpus(TEXTS, WORDS, f"{tmp_path}/set", same)
    assert contents(tmp_path / "set") == contents(packed)


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "is no packed folder.* make it by scripts/convert text SRC"),
        (lambda f: edit(f / "index.json", format="lockstep images"), "not of the format 'lockstep"),
        (lambda f: edit(f / "index.json", vocabulary=9), r"has 402 tokens, and 9 by index\.json"),
        (lambda f: (f / "test.npy").unlink(), r"test\.npy cannot be read \(No such file"),
        (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json cannot be read \(No such"),
        (lambda f: os.truncate(f / "train.npy", 200), r"train\.npy has 200 bytes, and [\d,]+ by"),
        (lambda f: flip(f / "train.npy"), r"train\.npy has the SHA-256 .*: it was altered"),
        (lambda f: flip(f / "tokenizer.json"), r"tokenizer\.json has the SHA-256"),
    ],
)
def test_a_damaged_folder_is_named_when_it_is_opened(damage, message, copy):
    damage(copy)
    with pytest.raises(DataError, match=message):
        packed_corpus(str(copy))


def test_objects_are_not_unpickled(copy):
    np.save(copy / "train.npy", np.array([{}], object), allow_pickle=True)
    index = json.loads((copy / "index.json").read_text())
    index["files"].pop("train.npy")
    index["files"]["train.npy"] = {"bytes": (copy / "train.npy").stat().st_size, "sha256": ""}
    edit(copy / "index.json", files=index["files"])
    with pytest.raises(DataError, match=r"train\.npy"):
        packed_corpus(str(copy))
    large = CHECKED_BYTES + 1
    os.truncate(copy / "train.npy", large)
    index["files"]["train.npy"]["bytes"] = large
    edit(copy / "index.json", files=index["files"])
    with pytest.raises(
        DataError, match=r"train\.npy cannot be read \(Array can't be memory-mapped"
    ):
        packed_corpus(str(copy))


def test_opening_and_reading_take_no_memory_of_the_texts_size(tmp_path):
    """Of a sparse file of 10^11 tokens, which are neither read nor held."""
    resource = pytest.importorskip("resource")
    pack_corpus({"train": "a"}, Bytes(), f"{tmp_path}/set")
    count, folder = 10**11, tmp_path / "set"
    with (folder / "train.npy").open("r+b") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + count)
        size = file.seek(0, os.SEEK_END)
    files = json.loads((folder / "index.json").read_text())["files"]
    edit(folder / "index.json", files={**files, "train.npy": {"bytes": size, "sha256": "0"}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = TextWindows(packed_corpus(str(folder)), window=100)
    ids = tf.constant(np.random.default_rng(0).integers(0, len(source), 1000))
    assert len(source) == (count - 1) // 100 and not source.read(ids)["tokens"].numpy().any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    os.truncate(folder / "train.npy", CHECKED_BYTES + 1)
    edit(folder / "index.json", files={"train.npy": {"bytes": CHECKED_BYTES + 1, "sha256": "0"}})
    with pytest.raises(DataError, match=r"train\.npy has the SHA-256"):
        verify(str(folder))
