"""What of a growing text is printed, and when."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.growing_text import HELD_BACK, pieces


def test_the_last_word_waits() -> None:
    texts = ["to", "to b", "to be,", "to be, or", "to be, or \n", "to be, or \nnot"]
    assert list(pieces(texts)) == ["to", " be,", " or", " \nnot"]


def test_a_character_waits_for_its_bytes() -> None:
    data = "naïve café 日本 ok".encode()
    texts = [data[:end].decode(errors="replace") for end in range(1, len(data) + 1)]
    printed = list(pieces(texts))
    assert printed == ["naïve", " café", " 日本", " ok"]
    assert "\ufffd" in "".join(texts)


def test_words_without_spaces_between_wait_no_longer_than_they_must() -> None:
    texts = ["日" * n for n in range(1, 101)]
    printed = list(pieces(texts))
    assert printed[0] == "日" and len(printed) == 100 - HELD_BACK + 1
    assert printed[-1] == "日" * HELD_BACK


@pytest.mark.parametrize("texts", [[], [""], ["a"], [" "], ["a", "a"], ["a b ", "a b  "]])
def test_all_is_printed(texts: list[str]) -> None:
    assert "".join(pieces(texts)) == (texts[-1] if texts else "")


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_any_text_in_any_parts(chunk: int) -> None:
    text = "".join(np.random.default_rng(0).choice(list("ab \nü"), 300))
    ends = [*range(chunk, len(text), chunk), len(text)]
    printed = list(pieces(text[:end] for end in ends))
    assert "".join(printed) == text
    assert len(printed) > 10
