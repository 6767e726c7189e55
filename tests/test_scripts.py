"""scripts/train: what it makes of its arguments, in a checkout whose `lockstep` only says what it was given."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = ("setup.cfg", "pyproject.toml", "constraints.txt")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Set up already: its stamp is that of a machine without a GPU."""
    root = tmp_path / "a checkout"
    programs = root / ".venv/bin"
    programs.mkdir(parents=True)
    (root / "scripts").mkdir()
    for name in ("scripts/train", "scripts/setup", *INSTALLED):
        shutil.copy(ROOT / name, root / name)
    for name, text in [("lockstep", "printf '<%s>' \"$@\""), ("nvidia-smi", "exit 9")]:
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    stamp = f"{{ cat {' '.join(INSTALLED)} | cksum; pwd; }} >.venv/.lockstep-cpu"
    subprocess.run(["bash", "-c", stamp], cwd=root, check=True)
    run = tmp_path / "there"
    (run / "old runs").mkdir(parents=True)
    (run / "old runs/config.gin").touch()
    return root


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (
            [],
            "classifier/digits --workdir=runs/classifier-digits "
            "train gan/digits --features=runs/classifier-digits --workdir=runs/digits",
        ),
        (["vae/digits", "--workdir=w"], "vae/digits --workdir=w"),
        (["--workdir=w"], "gan/digits --workdir=w"),
        (["--workdir", "w"], "gan/digits --workdir w"),
        (["--workdir", "new runs"], "gan/digits --workdir new runs"),
        (["--workdir=old runs"], "--workdir=old runs"),
        (["--workdir", "old runs"], "--workdir old runs"),
        (["--workdir", "old runs", "vae/digits"], "--workdir old runs vae/digits"),
        (["--gin_file=x.gin", "--workdir=w"], "--gin_file=x.gin --workdir=w"),
        (["--gin_file", "x.gin", "--workdir=w"], "--gin_file x.gin --workdir=w"),
        (["--gin_file", "--workdir=w"], "--gin_file --workdir=w"),
        (
            ["--gin_param", "STEPS=5", "--xla", "on"],
            "gan/digits --gin_param STEPS=5 --xla on --workdir=runs/digits",
        ),
        (["--dry_run", "vae/digits"], "--dry_run vae/digits"),
        (["--dry_run"], "gan/digits --dry_run --workdir=runs/digits"),
        (["--allow_imports", "my.gin", "--workdir=w"], "--allow_imports my.gin --workdir=w"),
        (["--allow_imports", "--workdir=old runs"], "--allow_imports --workdir=old runs"),
        (["--microbatch", "8", "vae/digits"], "--microbatch 8 vae/digits"),
        (["--help"], "gan/digits --help --workdir=runs/digits"),
    ],
    ids=" ".join,
)
def test_a_configuration_and_a_folder_are_added_where_none_is_given(
    checkout: Path, arguments: list[str], given: str
) -> None:
    done = subprocess.run(
        ["bash", checkout / "scripts/train", *arguments],
        cwd=checkout.parent / "there",
        env={**os.environ, "PATH": f"{checkout / '.venv/bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.removeprefix("<").removesuffix(">").split("><")
    assert words[0] == "train"
    assert " ".join(words[1:]) == given
    # No word is split or joined on the way.
    assert set(arguments) <= set(words)


def test_bash_of_macos_can_read_it() -> None:
    """It is 3.2, which does not know these."""
    for name in (
        "train",
        "setup",
        "test",
        "convert",
        "benchmark",
        "submit",
        "launch",
        "test_slurm",
    ):
        text = (ROOT / "scripts" / name).read_text()
        for newer in (";;&", ";&", "mapfile", "readarray", "declare -A", "&>>", "^^}", ",,}"):
            assert newer not in text, (name, newer)
