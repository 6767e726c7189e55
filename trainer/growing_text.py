"""Text on a terminal while it is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

HELD_BACK = 32
"""Characters at most that wait: where no white space divides words, or bytes never become a character."""
COMPLETE = re.compile(r".*\S(?=\s)", re.DOTALL)


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """What of a growing text can be printed, so that all that is printed is the last text.

    The last word waits until white space comes after it, and the white space until a word does: more tokens may go on with the
    word, or complete the bytes of its last character, and some tokenizers join words with a space and end lines with none.

    Args:
      texts: each begins as the one before it, but for its last word.
    """
    printed = text = ""
    for text in texts:
        found = COMPLETE.match(text)
        end = max(found.end() if found else 0, len(text) - HELD_BACK)
        if end > len(printed):
            yield text[len(printed) : end]
            printed = text[:end]
    if len(text) > len(printed):
        yield text[len(printed) :]
