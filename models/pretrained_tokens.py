"""Whether the data's tokens can be those of a pretrained model."""

from __future__ import annotations


def check(vocabulary: int, size: int, place: str) -> list[str]:
    """What is to be said at the start, in a line each: that the data has fewer than half of the model's tokens, which no
    rounding up of an embedding explains.

    Args:
      vocabulary: number of tokens of the data.
      size: number of tokens of the model.
      place: where the model was, for messages.

    Raises:
      ValueError: if there are more tokens in the data than in the model.
    """
    if vocabulary > size:
        raise ValueError(
            f"the data has {vocabulary:,} tokens, and the model in {place} {size:,}: encode the text by its own tokenizer"
        )
    if 2 * vocabulary < size:
        return [
            f"the data has {vocabulary:,} tokens, and the model in {place} {size:,}: it knows them only if text_files.tokens names "
            "its own tokenizer"
        ]
    return []
