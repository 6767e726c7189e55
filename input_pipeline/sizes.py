"""Sizes of pictures, as arguments give them: height and width, or one number for both."""

from __future__ import annotations

from collections.abc import Sequence


def height_and_width(
    argument: str, size: int | Sequence[int], instead: str = ""
) -> tuple[int, int]:
    """The two sides in pixels.

    Args:
      argument: the name of `size`, for messages.
      size: its value.
      instead: what else the argument may be, for messages.

    Raises:
      ValueError: if it is neither two sides nor one.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise ValueError(
            f"{argument} is {size}: it must be height and width, such as (32, 48), or one number for both, each at least "
            f"1{instead}"
        )
    return pair[0], pair[1]
