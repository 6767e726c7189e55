"""Low-rank adaptation: what is learnt of a product whose weights stay (Hu et al. 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

PROJECTIONS = ("attention/qkv", "attention/out", "feed_forward/hidden", "feed_forward/out")
"""Products of a transformer's block."""
WEIGHTS = ("lora_a", "lora_b")
"""Names of the weights that are learnt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Products x W become x W + alpha / rank · (x A) B, of which only A `[inputs, rank]` and B `[rank, outputs]` are learnt.

    B starts at zero, so that nothing is changed at first; A uniform within ±1/√inputs, as the authors' own code has it.

    Attributes:
      rank: of the change.
      alpha: its factor is alpha / rank, so that the learning rate need not follow the rank.
      projections: which products of each block: "attention/qkv" makes queries, keys and values, "attention/out" follows them,
        "feed_forward/hidden" and "feed_forward/out" are the two of the feed-forward part.
      dropout: rate, on the x of (x A) B alone.

    Raises:
      ValueError: if a number is out of range, or there is no such product.
    """

    rank: int = 8
    alpha: float = 16.0
    projections: Sequence[str] = ("attention/qkv",)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(
                f"LoRA.rank is {self.rank} and LoRA.alpha {self.alpha}: rank must be at least 1, alpha above 0"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA.dropout is {self.dropout}: it must be at least 0 and below 1")
        unknown = set(self.projections) - set(PROJECTIONS)
        if unknown or not self.projections:
            raise ValueError(
                f"LoRA.projections is {list(self.projections)}: choose one or more of {', '.join(PROJECTIONS)}"
            )

    @property
    def factor(self) -> float:
        return self.alpha / self.rank


def of(lora: LoRA | None, projection: str) -> LoRA | None:
    """How a product is adapted, None for not at all."""
    return lora if lora is not None and projection in lora.projections else None
