"""`lockstep verify` names each file of a run that is not what was written, and no other."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from trainer import main, verify, workdir
from trainer.checkpoint import Checkpoints, Snapshot
from trainer.ledger import Ledger
from trainer.metrics import MetricWriter

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = ["config.gin", "run.json", "metrics.jsonl", "events.jsonl", "DONE"]
FILES += [f"checkpoints/step-{step:08d}.safetensors" for step in (10, 20, 30)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 30 steps as a training leaves it, made by its own modules."""
    folder = tmp_path_factory.mktemp("verify") / "run"
    folder.mkdir()
    workdir.record_start(
        folder, "Experiment.steps = 30\nExperiment.seed = 5\n", ["train", "a"], print
    )
    ledger = Ledger(folder / "events.jsonl")
    checkpoints = Checkpoints(
        folder / "checkpoints", 3, record=lambda **f: ledger.record("save", **f)
    )
    with MetricWriter(folder) as writer:
        for step in (10, 20, 30):
            writer.write(step, 8 * step, 0.1 * step, {"train/loss": 1 / step})
            arrays = {"step": np.asarray(step), "w": np.full(4, step, np.float32)}
            checkpoints.save(Snapshot(step, arrays, {"best": {"step": 20, "value": 0.1}}), 20)
        checkpoints.wait()
    (folder / "DONE").write_text('{"steps": 30}\n')
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_a_whole_run_is_said_to_be_whole_without_tensorflow(run):
    code = (
        "import sys; from trainer import main; code = main.main(sys.argv[1:]); "
        "sys.exit(99 if {'tensorflow', 'keras'} & set(sys.modules) else code)"
    )
    command = [sys.executable, "-c", code, "verify", f"--workdir={run}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    *table, line = done.stdout.splitlines()
    assert json.loads(line) == {"workdir": str(run), "whole": True, "files": dict.fromkeys(FILES)}
    assert sum("whole" in row for row in table) == len(FILES)


@pytest.mark.parametrize(("damaged", "code"), [(False, 0), (True, 65)])
def test_a_reader_that_wants_no_more_changes_no_exit_code(damaged, code, run):
    """As `lockstep verify | head -1`."""
    if damaged:
        change(run / "metrics.jsonl", "flipped")
    read, write = os.pipe()
    os.close(read)
    command = "import sys; from trainer import main; sys.exit(main.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", command, "verify", f"--workdir={run}"],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    assert done.returncode == code


def change(path, how):
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "flipped":
        data[len(data) // 2] ^= 0x80
    elif how == "truncated":
        del data[-3:]
    elif how == "empty":
        data.clear()
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flipped", "empty", "truncated", "missing"])
def test_what_is_damaged_is_named(name, how, run, capsys):
    change(run / name, how)
    # Rows and events that are cut off at the end are what a kill leaves; DONE says that there was none.
    wrong = {name}
    if name == "events.jsonl" and how in ("truncated", "empty"):
        wrong = set()
    if name == "metrics.jsonl":
        wrong = {"DONE"} | ({name} if how in ("flipped", "missing") else set())
        wrong -= {"DONE"} if how == "flipped" else set()
    if name == "DONE" and how == "missing":
        wrong = set()  # It may go on.
    if how == "missing" and name == FILES[-1]:
        wrong = {"DONE"}
    if how == "missing" and name == FILES[-3]:
        wrong = set()  # Removed, as old ones are.
    assert main.main(["verify", f"--workdir={run}"]) == (65 if wrong else 0)
    out, said = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert {name for name, problem in found["files"].items() if problem} == wrong
    assert found["whole"] == (not wrong)
    assert said.count("\n") == bool(wrong)
    if wrong:
        assert said.startswith(f"lockstep: {len(wrong)} of ")
        assert sum("DAMAGED" in row for row in out.splitlines()) == len(wrong)


def test_any_flipped_bit_of_the_configuration_is_found(run):
    whole = (run / "config.gin").read_bytes()
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        (run / "config.gin").write_bytes(data)
        assert verify.verify(run).files["config.gin"], bit


def test_rows_out_of_order_and_checkpoints_of_another_step_are_found(run):
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([rows[1], rows[0], rows[2]]))
    (run / FILES[-1]).write_bytes((run / FILES[-3]).read_bytes())
    found = verify.verify(run)
    assert found.files["metrics.jsonl"] == "line 2: a row of step 10 after one of step 20"
    assert found.files[FILES[-1]] == "it is of step 10"


def test_what_a_kill_left_is_whole_and_said(run):
    """A line of an event torn in the midst, after which the next start has begun another."""
    with (run / "events.jsonl").open("a") as file:
        file.write('{"time": 12.5, "eve')
    Ledger(run / "events.jsonl").record("start", step=30)
    found = verify.verify(run)
    assert found.problem is None
    assert found.notes == {"events.jsonl": "a kill or a full disk has cut off 1 line"}


def test_a_run_that_was_started_from_python_is_whole(run, capsys):
    """Which writes neither the configuration nor the command."""
    for name in ("config.gin", "run.json"):
        (run / name).unlink()
    assert main.main(["verify", f"--workdir={run}"]) == 0
    *table, line = capsys.readouterr().out.splitlines()
    assert json.loads(line)["files"] == dict.fromkeys(FILES[2:])
    (note,) = (row for row in table if "config.gin" in row)
    assert "config.gin and run.json" in note and "not there: it was not lockstep train" in note
    (run / "metrics.jsonl").unlink()
    assert verify.verify(run).files["metrics.jsonl"] == "missing"


def test_where_no_run_is(tmp_path, capsys):
    assert main.main(["verify", f"--workdir={tmp_path}"]) == 78
    assert capsys.readouterr().err.startswith(f"lockstep: workdir {tmp_path} holds no run (")
