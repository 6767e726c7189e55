"""What the README shows works as it is shown."""

from __future__ import annotations

import pathlib
import re

import numpy as np

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_the_library_example_trains_and_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 12
    names: dict = {}
    exec(code, names)
    pictures = names["pictures"]
    assert pictures.shape == (16, 8, 8, 1) and pictures.dtype == np.uint8
    assert 20 < pictures.mean() < 150  # Neither black nor white: digits have a mean of 78.
    assert (tmp_path / "runs" / "library" / "DONE").exists()
