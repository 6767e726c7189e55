"""That scripts/soak would find a run that differs, and one that does not go on; the soak itself is a command of its own."""

from __future__ import annotations

import json
import random
import sys

import numpy as np
import pytest

from tests.contract import soak
from trainer.checkpoint import Snapshot, write


def finished(folder, weight: float):
    """The workdir of a run of one row and one weight."""
    (folder / "checkpoints").mkdir(parents=True)
    row = {"step": 1, "examples": 4, "metrics": {"train/loss": 0.5, "perf/seconds": weight}}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    snapshot = Snapshot(1, {"w": np.array([1.0, weight])}, {})
    write(folder / "checkpoints/step-00000001.safetensors", snapshot)
    return folder


@pytest.mark.parametrize("disturbed, equal", [(2.0, True), (np.nextafter(2.0, 3.0), False)])
def test_a_run_that_differs_by_a_bit_is_found(disturbed, equal, tmp_path, monkeypatch):
    weights = {"undisturbed": 2.0, "disturbed": disturbed}
    monkeypatch.setattr(
        soak.Soak, "_train", lambda _, config, kind, most: finished(tmp_path / kind, weights[kind])
    )
    run = soak.Soak(tmp_path, 2, random.Random(0), list(soak.FAULTS))
    if equal:
        run.round("vae/digits_mlp")
        assert run.equal == 1 and not (tmp_path / "disturbed").exists()
    else:
        with pytest.raises(soak.Broken, match="disturbed differs from the undisturbed run"):
            run.round("vae/digits_mlp")
        assert (tmp_path / "disturbed").exists()  # To be looked at.


def test_a_gang_that_ends_with_an_error_is_told_with_its_last_words(tmp_path, monkeypatch):
    """At once: the seconds of patience are for one that is silent."""
    program = "import sys; print('no such flag', file=sys.stderr); sys.exit(64)"
    popen = soak.subprocess.Popen
    monkeypatch.setattr(
        soak.subprocess,
        "Popen",
        lambda command, **options: popen([sys.executable, "-c", program], **options),
    )
    run = soak.Soak(tmp_path, 2, random.Random(0), list(soak.FAULTS))
    with pytest.raises(soak.Broken, match=r"vae/digits_mlp does not start:\nno such flag"):
        run.round("vae/digits_mlp")


def test_recoveries_are_told_by_fault():
    recoveries = [soak.Recovery("disk full", s, n) for s, n in ((3.0, 0), (9.0, 15), (4.0, 5))]
    assert soak.table(recoveries) == {
        "disk full": {
            "times": 3,
            "seconds": 4.0,
            "most_seconds": 9.0,
            "repeated": 5,
            "most_repeated": 15,
        }
    }


def test_a_flip_changes_one_bit():
    assert soak._flipped(b"\x00\x00", 9) == b"\x00\x02"
