"""A save that is killed or fails at any call of the system leaves the checkpoints of before or of after, whole."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from tests.trainer import interrupted

ROOT = pathlib.Path(__file__).resolve().parents[2]
IN_MEMORY = "/dev/shm"


def test_a_save_interrupted_at_any_call(tmp_path):
    """Each call in turn, into an empty folder and into one that is full; 14 faults. What holds then, `interrupted.check` says."""
    # There fsync takes no time, and the calls are the same.
    fast = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=fast) as folder:
        command = [sys.executable, "-m", "tests.trainer.interrupted", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert len(counts) == 2 * len(interrupted.FAULTS)
    for what, (struck, after) in counts.items():
        # Opening, writing, syncing, closing, renaming, and the folder; then removing what is old.
        assert struck > 20, what
        assert 0 < after < struck, what
