"""Scikit-learn's handwritten digits: 1,797 pictures of 8 by 8 pixels, with labels."""

from __future__ import annotations

import numpy as np

from input_pipeline.images import Images

LEVELS = 17
"""Grey levels of a pixel, 0 to 16: counts of ink in a block of 4 by 4 finer pixels."""


class Digits(Images):
    """The test part of the UCI "optical recognition of handwritten digits" data (Alpaydin and Kaynak 1998).

    Features: "image", float32 `[8, 8, 1]` in [0, 1] (0 is paper), and "label", int32, 0 to 9.
    """

    def __init__(self) -> None:
        # Takes a second to import: only where digits are used.
        from sklearn.datasets import load_digits

        digits = load_digits()
        super().__init__(digits.images.astype(np.uint8), digits.target, levels=LEVELS)
