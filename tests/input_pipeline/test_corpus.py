"""Texts as tokens."""

from pydoc_data.topics import topics

import numpy as np
import pytest

from input_pipeline.batches import DataError
from input_pipeline.corpus import Corpus, in_parts, pydoc_topics
from input_pipeline.tokenization import Characters


def test_parts_follow_each_other():
    parts = in_parts(np.arange(50), validation=0.1, test=0.06)
    assert list(parts) == ["train", "validation", "test"]
    np.testing.assert_array_equal(np.concatenate(list(parts.values())), np.arange(50))
    assert [len(part) for part in parts.values()] == [42, 5, 3]
    assert list(in_parts(np.arange(50), 0.1)) == ["train", "validation"]
    for shares in [(-0.1, 0.0), (0.1, -0.1), (0.5, 0.5)]:
        with pytest.raises(ValueError, match="held out are validation"):
            in_parts(np.arange(50), *shares)


def test_a_part_that_is_not_there_is_named():
    with pytest.raises(DataError, match='no part "test": choose one of train, validation'):
        Corpus({"train": np.arange(2), "validation": np.arange(2)}, Characters("ab")).part("test")


def test_pydoc_topics():
    corpus = pydoc_topics()
    text = "\n".join(topics[name] for name in sorted(topics))
    assert len(text) > 400_000
    assert corpus.tokenizer.vocabulary == "".join(sorted(set(text)))
    assert [len(part) for part in corpus.parts.values()] == [
        round(len(text) * 0.9),
        len(text) - round(len(text) * 0.9),
    ]
    assert corpus.tokenizer.decode(corpus.part("train")[700:801]) == text[700:801]
    assert corpus.tokenizer.decode(corpus.part("validation")) == text[round(len(text) * 0.9) :]
