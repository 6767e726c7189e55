"""Checkpoints: what is written is what is read, damage is noticed, and a failed write loses nothing."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import struct
import threading
import time

import numpy as np
import pytest
import safetensors.numpy

from trainer import checkpoint, durable
from trainer.checkpoint import Checkpoints, DamagedCheckpoint, Snapshot, check_fit
from trainer.exits import CannotCreate, ConfigError, DataProblem

NOTES = {"best": {"step": 20, "value": 0.1}, "seconds": 1.5, "text": 'é "quoted"', "none": None}


def snapshot(step=40, **arrays):
    arrays = arrays or {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.int64(step)}
    return Snapshot(step, {name: np.asarray(a) for name, a in arrays.items()}, NOTES)


def same(one, other):
    assert (one.step, one.notes, list(one.arrays)) == (other.step, other.notes, list(other.arrays))
    for name, array in one.arrays.items():
        assert (array.dtype, array.shape) == (other.arrays[name].dtype, other.arrays[name].shape)
        assert array.tobytes() == other.arrays[name].tobytes(), name


def ignore(line):
    pass


# ---------------------------------------------------------------------- one file


def test_what_is_written_is_read(tmp_path):
    """Every dtype of a variable, scalars, nothing at all, NaN of any bits, -0.0, and arrays that are not in C order."""
    odd_nan = np.frombuffer(struct.pack("<I", 0x7FC12345), np.float32)
    arrays = {
        "b/float32": np.array([1.5, -0.0, np.inf, np.nan], np.float32),
        "a/float64": np.linspace(0, 1, 7).reshape(7, 1),
        "float16": np.array([[1, 2], [3, 4]], np.float16),
        "int64": np.array(-(2**62)),
        "int32": np.arange(3, dtype=np.int32),
        "uint8": np.array([255], np.uint8),
        "bool": np.array([True, False]),
        "empty": np.zeros([0, 3], np.float32),
        "nan": odd_nan,
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(12.0)[::3],
        "name with spaces/ü:0": np.float64(0.1),
    }
    written = Snapshot(7, {name: np.asarray(a) for name, a in sorted(arrays.items())}, NOTES)
    checkpoint.write(tmp_path / "one", written)
    same(checkpoint.read(tmp_path / "one"), written)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_the_file_is_a_plain_safetensors_file(tmp_path):
    """Read without us: arrays by name, and the notes as JSON in its metadata."""
    checkpoint.write(tmp_path / "one", snapshot())
    arrays = safetensors.numpy.load_file(tmp_path / "one")
    assert arrays["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["step"].item() == 40
    data = (tmp_path / "one").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["lockstep"]) == {"step": 40, **NOTES}


def test_any_flipped_bit_is_noticed(tmp_path):
    """Every bit of a whole file, header, metadata, padding and data alike: never another training, never another error."""
    path = tmp_path / "one"
    checkpoint.write(
        path, Snapshot(3, {"w": np.ones(12, np.float32), "s": np.int64(3)}, {"best": {}})
    )
    whole = path.read_bytes()
    for byte, value in enumerate(whole):
        # White space may stand for white space, or beside a number.
        changed = {value ^ 1 << bit for bit in range(8)} | set(b" \t\n\r\0") - {value}
        for other in changed:
            data = bytearray(whole)
            data[byte] = other
            path.write_bytes(data)
            with pytest.raises(DamagedCheckpoint) as error:
                checkpoint.read(path)
            assert str(path) in str(error.value)


def test_any_truncation_is_noticed(tmp_path):
    path = tmp_path / "one"
    checkpoint.write(path, snapshot())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpoint, match="one"):
            checkpoint.read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedCheckpoint):
        checkpoint.read(path)


def test_other_files_are_no_checkpoints(tmp_path):
    other = tmp_path / "other"
    safetensors.numpy.save_file({"w": np.ones(2)}, other)
    with pytest.raises(DamagedCheckpoint, match="other is damaged"):
        checkpoint.read(other)
    with pytest.raises(DamagedCheckpoint):
        checkpoint.read(tmp_path / "missing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DamagedCheckpoint):
        checkpoint.read(tmp_path / "folder")


# ---------------------------------------------------------------------- a folder of them


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 20, 40 and 60, whose weight is the step."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (20, 40, 60):
        checkpoints.save(snapshot(step, w=np.full(3, step)), best=None)
    checkpoints.wait()
    return checkpoints


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "truncated":
        del data[-5:]
    elif how == "data":
        data[-1] ^= 1
    elif how == "metadata":
        data[data.index(b"seconds")] ^= 1
    else:
        assert how == "empty"
        data.clear()
    path.write_bytes(data)


DAMAGE = ["truncated", "data", "metadata", "empty"]


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder, how):
    damage(folder.path(60), how)
    notes = []
    found = folder.latest(notes.append)
    assert (found.step, found.arrays["w"].tolist()) == (40, [40, 40, 40])
    (note,) = notes
    assert note.startswith(f"{folder.path(60)} ")
    assert note.endswith(": falling back to the checkpoint before it")
    assert "\n" not in note


def test_two_damaged_ones_give_way_too(folder):
    damage(folder.path(60), "empty")
    damage(folder.path(40), "data")
    notes = []
    assert folder.latest(notes.append).step == 20
    assert [note.split(" ")[0] for note in notes] == [str(folder.path(60)), str(folder.path(40))]


def test_what_a_training_beside_removes_is_not_damaged(folder, monkeypatch):
    """Between the look at the folder and the file it has saved twice."""
    steps, notes = iter([[10]]), []
    monkeypatch.setattr(folder, "steps", lambda: next(steps, [20, 40, 60]))
    assert folder.latest(notes.append).step == 60 and notes == []


def test_all_damaged_ends_the_run_and_keeps_the_files(folder):
    for step, how in zip((20, 40, 60), DAMAGE, strict=False):
        damage(folder.path(step), how)
    with pytest.raises(DataProblem) as error:
        folder.latest(ignore)
    assert str(error.value) == (
        f"none of the 3 checkpoints in {folder.directory} is whole: "
        "restore one from a backup, or remove the directory to start from the beginning"
    )
    assert error.value.code == 65
    assert folder.steps() == [20, 40, 60]


def test_no_checkpoint_at_all(tmp_path):
    checkpoints = Checkpoints(tmp_path / "nowhere", keep=1)
    assert (checkpoints.steps(), checkpoints.latest(ignore)) == ([], None)
    assert not (tmp_path / "nowhere").exists()
    checkpoints.wait()


def test_other_names_are_left_alone(folder):
    for name in ("step-x.safetensors", "notes.txt", "step-00000099.safetensors.part"):
        (folder.directory / name).write_text("mine")
    (folder.directory / ".step-00000099.safetensors.1234").write_text("what a kill has left")
    folder.save(snapshot(80), best=None)
    folder.wait()
    assert sorted(path.name for path in folder.directory.iterdir()) == [
        "notes.txt",
        "step-00000040.safetensors",
        "step-00000060.safetensors",
        "step-00000080.safetensors",
        "step-00000099.safetensors.part",
        "step-x.safetensors",
    ]


def test_steps_are_ordered_as_numbers(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (99_999_999, 100_000_000, 1_000_000_000):
        checkpoints.save(snapshot(step), best=None)
    checkpoints.wait()
    assert checkpoints.steps() == [99_999_999, 100_000_000, 1_000_000_000]
    assert checkpoints.path(100_000_000).name == "step-100000000.safetensors"
    assert checkpoints.latest(ignore).step == 1_000_000_000


KEPT = {  # after saves 1, 2, … 6, of which 1, 2 and 6 were the best so far
    1: [[1], [2], [2, 3], [2, 4], [2, 5], [6]],
    2: [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6]],
    3: [[1], [1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4, 5], [4, 5, 6]],
}
BEST = {1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 6}


@pytest.mark.parametrize("keep", KEPT)
def test_the_last_and_the_best_are_kept(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep)
    for step in range(1, 7):
        checkpoints.save(snapshot(step), BEST[step])
        checkpoints.wait()
        assert checkpoints.steps() == KEPT[keep][step - 1], step


def test_a_damaged_later_one_is_written_anew(folder):
    """After a fall back from 60 to 40 the run saves 50 and 60 again; neither loses what it still may need."""
    damage(folder.path(60), "data")
    again = Checkpoints(folder.directory, keep=2)
    again.save(snapshot(50), best=20)
    again.wait()
    assert again.steps() == [20, 40, 50, 60]
    assert again.latest(ignore).step == 50
    again.save(snapshot(60), best=20)
    again.wait()
    assert again.steps() == [20, 50, 60]
    assert again.latest(ignore).step == 60


# ---------------------------------------------------------------------- writes that fail


def test_a_save_is_made_while_the_caller_goes_on(tmp_path, monkeypatch):
    """`save` returns before the file is there, a second one waits for the first, and `wait` for all."""
    go, order, write = threading.Event(), [], durable.write

    def slow(path, data, check):
        assert go.wait(10)
        write(path, data, check)
        order.append(path.name)

    monkeypatch.setattr(durable, "write", slow)
    checkpoints = Checkpoints(tmp_path, keep=5)
    checkpoints.save(snapshot(1), best=None)
    assert order == []
    go.set()
    checkpoints.save(snapshot(2), best=None)
    assert order[0] == "step-00000001.safetensors"
    checkpoints.wait()
    assert order == ["step-00000001.safetensors", "step-00000002.safetensors"]


def full_disk(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line_and_loses_nothing(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.directory.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        folder.save(snapshot(80), best=None)
        with pytest.raises(CannotCreate) as error:
            folder.wait()
    assert str(error.value) == (
        f"the checkpoint of step 80 cannot be written to {folder.directory} (No space left on device): "
        "make room or mend it and start again; the checkpoints before it are whole"
    )
    assert error.value.code == 73
    # Neither a scratch file nor a missing checkpoint.
    assert {path.name: path.read_bytes() for path in folder.directory.iterdir()} == before
    folder.wait()
    folder.save(snapshot(80), best=None)
    folder.wait()
    assert folder.latest(ignore).step == 80


def test_a_failed_save_is_told_by_the_next_one(folder, monkeypatch):
    def unreadable(path, data, check):
        raise OSError("the mount went away")

    with monkeypatch.context() as patched:
        patched.setattr(durable, "write", unreadable)
        folder.save(snapshot(80), best=None)
        with pytest.raises(CannotCreate, match=r"step 80 cannot .* \(the mount went away\): make"):
            folder.save(snapshot(100), best=None)
    assert folder.steps() == [20, 40, 60]


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("not a folder")
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(snapshot(1), best=None)
    with pytest.raises(CannotCreate, match=r"step 1 cannot be written .* \(File exists\)"):
        checkpoints.wait()


def test_what_a_check_raises_leaves_the_file_as_it_was(tmp_path):
    """It is asked last: all is written but the name."""
    path = tmp_path / "file"
    durable.write(path, b"before")

    def refuse():
        (scratch,) = set(tmp_path.iterdir()) - {path}
        assert scratch.read_bytes() == b"after"
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        durable.write(path, b"after", refuse)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_in_parts_is_whole(tmp_path, monkeypatch):
    """As above 2 GiB; what does not fit names its file."""
    with monkeypatch.context() as patched:
        write = os.write
        patched.setattr(os, "write", lambda file, data: write(file, data[:3]))
        durable.write(tmp_path / "file", bytes(range(100)))
        patched.setattr(os, "write", full_disk)
        with pytest.raises(OSError) as error:
            durable.write(tmp_path / "file", b"more")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == bytes(range(100))


def test_a_save_tells_its_seconds_and_those_waited(tmp_path, monkeypatch):
    """After what must be on the disk first; nothing is told of a save that fails."""
    told, order = [], []
    monkeypatch.setattr(durable, "write", lambda *args: (order.append("write"), time.sleep(0.2)))
    checkpoints = Checkpoints(tmp_path, 1, record=lambda **fields: told.append(fields))
    checkpoints.save(snapshot(7), None, before=lambda: order.append("before"), waited=0.12341)
    checkpoints.wait()
    (fields,) = told
    assert 0.2 <= fields.pop("seconds") < 5
    assert fields == {"step": 7, "waited": 0.1234}
    assert order == ["before", "write"]
    checkpoints.save(snapshot(8), None, before=full_disk)
    with pytest.raises(CannotCreate):
        checkpoints.wait()
    assert told == [fields]


def test_a_folder_that_vanished_is_not_made_anew(folder):
    """An empty one would look like a run that has not begun."""
    folder.directory.parent.rename(folder.directory.parent.with_name("away"))
    folder.save(snapshot(80), best=None)
    with pytest.raises(CannotCreate, match="No such file or directory"):
        folder.wait()
    assert not folder.directory.parent.exists()


def test_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """fsync of the file, rename, fsync of the folder: any other order can leave an empty file after a power cut."""
    calls, fsync, replace = [], os.fsync, os.replace

    def kind(descriptor):
        return "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"

    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(f"fsync {kind(fd)}"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("rename"), replace(*a)))
    durable.write(tmp_path / "file", b"data")
    assert calls == ["fsync file", "rename", "fsync folder"]


# ---------------------------------------------------------------------- whether it fits


@pytest.mark.parametrize(
    ("expected", "line"),
    [
        (
            {"step": "int64 ()", "w": "float32 (2, 3)", "extra/b": "float32 (4,)"},
            "extra/b is missing there and float32 (4,) in the configuration",
        ),
        ({"w": "float32 (2, 3)"}, "step is int64 () there and missing in the configuration"),
        (
            {"step": "int64 ()", "w": "float32 (3, 2)"},
            "w is float32 (2, 3) there and float32 (3, 2) in the configuration",
        ),
        (
            {"step": "int64 (1,)", "w": "float32 (3, 2)"},
            "step is int64 () there and int64 (1,) in the configuration",
        ),
        (
            {"step": "int64 ()", "w": "float64 (2, 3)"},
            "w is float32 (2, 3) there and float64 (2, 3) in the configuration",
        ),
    ],
)
def test_what_does_not_fit_is_named(expected, line):
    where = pathlib.Path("run/checkpoints/step-00000040.safetensors")
    with pytest.raises(ConfigError) as error:
        check_fit(snapshot(), expected, where)
    assert str(error.value) == (
        f"{where} does not fit the model: {line}; "
        "use the configuration it was made with, or another --workdir"
    )
    assert error.value.code == 78


def test_what_fits_is_accepted():
    check_fit(snapshot(), {"w": "float32 (2, 3)", "step": "int64 ()"}, pathlib.Path("x"))
