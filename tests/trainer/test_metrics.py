"""Rows to the byte, rewinding at every place a kill can leave, and what TensorBoard makes of it."""

import json
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from tensorboard.backend.event_processing import event_accumulator, plugin_event_multiplexer

from trainer import metrics, pictures
from trainer.exits import DataProblem


def row(step, loss=0.5):
    return b'{"step": %d, "examples": %d, "seconds": 1.5, "metrics": {"train/loss": %s}}\n' % (
        step,
        step * 64,
        repr(loss).encode(),
    )


def write(writer, *steps, loss=0.5):
    for step in steps:
        writer.write(step, step * 64, 1.5, {"train/loss": loss})


def python(program, *arguments):
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=False)


# Rows.


def test_a_row_is_exactly_this(tmp_path):
    with metrics.MetricWriter(tmp_path, 0) as writer:
        values = {"train/loss": 1.25, "eval/loss": np.float32(0.1), "perf/rate": 3}
        writer.write(100, 6400, 12.3, values)
        # On disk before close.
        assert (tmp_path / "metrics.jsonl").read_bytes() == (
            b'{"step": 100, "examples": 6400, "seconds": 12.3, "metrics": '
            b'{"eval/loss": 0.10000000149011612, "perf/rate": 3.0, "train/loss": 1.25}}\n'
        )


def test_what_is_not_finite_is_null(tmp_path):
    with metrics.MetricWriter(tmp_path, 0) as writer:
        writer.write(1, 2, 3.0, {"a": float("nan"), "b": float("inf"), "c": -np.inf})
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        b'{"step": 1, "examples": 2, "seconds": 3.0, "metrics": '
        b'{"a": null, "b": null, "c": null}}\n'
    )


def test_floats_read_back_with_the_same_bits(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**64, 2000, np.uint64)
    values = [*bits.view(np.float64), 5e-324, -0.0, 0.1, 1e23, sys.float_info.max]
    values = [float(value) for value in values if np.isfinite(value)]
    with metrics.MetricWriter(tmp_path, 0) as writer:
        writer.write(1, 1, 0.0, {f"{i:04d}": value for i, value in enumerate(values)})
    back = json.loads((tmp_path / "metrics.jsonl").read_bytes())["metrics"].values()
    assert [struct.pack("<d", x) for x in back] == [struct.pack("<d", x) for x in values]


@pytest.mark.parametrize("step", [20, 15])
def test_a_second_row_of_a_step_is_an_error(tmp_path, step):
    with metrics.MetricWriter(tmp_path, 0) as writer:
        write(writer, 10, 20)
        with pytest.raises(ValueError) as caught:
            write(writer, step)
    assert str(caught.value) == (
        f"a row of step {step} after one of step 20 in metrics.jsonl: "
        "write all metrics of a step at once, and steps in order"
    )
    assert (tmp_path / "metrics.jsonl").read_bytes() == row(10) + row(20)


def test_the_step_of_the_checkpoint_has_its_row_already(tmp_path):
    with metrics.MetricWriter(tmp_path, 0) as writer:
        write(writer, 10, 20, 30)
    with metrics.MetricWriter(tmp_path, 20) as writer:
        with pytest.raises(ValueError, match="a row of step 20 after one of step 20"):
            write(writer, 20)
        write(writer, 30, loss=0.25)
    assert (tmp_path / "metrics.jsonl").read_bytes() == row(10) + row(20) + row(30, 0.25)


@pytest.mark.parametrize(("resume_step", "kept"), [(0, 0), (9, 0), (10, 1), (25, 2), (30, 3)])
def test_rewind_after_a_kill_at_any_byte(tmp_path, resume_step, kept):
    rows = [row(10), row(20), row(30)]
    whole = b"".join(rows)
    path = tmp_path / "metrics.jsonl"
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        metrics.MetricWriter(tmp_path, resume_step).close()
        complete = sum(len(b"".join(rows[:n])) <= size for n in (1, 2, 3))
        assert path.read_bytes() == b"".join(rows[: min(kept, complete)]), size


def test_rewind_leaves_a_file_alone_that_is_right(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(row(10) + row(20))
    before = path.stat()
    metrics.MetricWriter(tmp_path, 20).close()
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_kill_while_rewinding_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(row(10) + row(20))

    def killed(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", killed)
        metrics.MetricWriter(tmp_path, 10)
    assert path.read_bytes() == row(10) + row(20)
    metrics.MetricWriter(tmp_path, 10).close()
    assert path.read_bytes() == row(10)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.jsonl", "summaries"]


@pytest.mark.parametrize("line", [b"what is this\n", b"{}\n", b"[1]\n", b'{"step": 1\n'])
def test_a_damaged_row_is_named_and_nothing_is_lost(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(row(10) + line + row(20) + row(30))
    with pytest.raises(DataProblem) as caught:
        metrics.MetricWriter(tmp_path, 20)
    assert str(caught.value) == (
        f"{path}, line 2, is not a row of metrics: mend the line, or move the file away"
    )
    assert path.read_bytes() == row(10) + line + row(20) + row(30)


def test_rows_torn_after_the_checkpoint_are_dropped(tmp_path):
    """As a machine that lost power may leave them: what the checkpoint vouches for is before them."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(row(10) + bytes(20) + b"\n" + row(30))
    metrics.MetricWriter(tmp_path, 20).close()
    assert path.read_bytes() == row(10)


def test_rows_and_points_outlive_sigkill_and_need_no_tensorflow(tmp_path):
    program = """
import os, signal, sys
from trainer import metrics, pictures, progress
writer = metrics.MetricWriter(sys.argv[1], 0)
for step in (10, 20):
    writer.write(step, step * 64, 1.5, {"train/loss": 0.5})
writer.samples(20, ["text"])
if "tensorflow" not in sys.modules:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert python(program, tmp_path).returncode == -signal.SIGKILL
    assert (tmp_path / "metrics.jsonl").read_bytes() == row(10) + row(20)
    assert scalars(tmp_path) == [(10, 0.5), (20, 0.5)]


def test_the_null_writer_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with metrics.NullWriter() as writer:
        write(writer, 10, 10)
        assert writer.samples(10, ["text"]) is None
        writer.text("config", "text", 0)
    assert list(tmp_path.iterdir()) == []


def test_both_writers_have_the_same_methods():
    def public(of):
        return {name for name in dir(of) if not name.startswith("_")}

    assert public(metrics.MetricWriter) == public(metrics.NullWriter)


# TensorBoard.


def scalars(workdir, tag="train/loss", purge=True):
    accumulator = event_accumulator.EventAccumulator(
        str(workdir / "summaries"), purge_orphaned_data=purge
    ).Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_no_zig_zag_after_a_resume(tmp_path):
    first = metrics.MetricWriter(tmp_path, 0)
    write(first, 10, 20, 30, 40, 50, loss=1.0)  # And dies, without close.
    second = metrics.MetricWriter(tmp_path, 30)
    assert scalars(tmp_path) == [(10, 1.0), (20, 1.0), (30, 1.0)]
    write(second, 40, 50, loss=2.0)
    expected = [(10, 1.0), (20, 1.0), (30, 1.0), (40, 2.0), (50, 2.0)]
    assert scalars(tmp_path) == expected
    # So would the curve look if the start of the session were not heeded.
    assert [step for step, _ in scalars(tmp_path, purge=False)] == [10, 20, 30, 40, 50, 40, 50]


def test_a_run_that_starts_over_leaves_no_old_point(tmp_path):
    write(metrics.MetricWriter(tmp_path, 0), 0, 10, 20, loss=1.0)
    write(metrics.MetricWriter(tmp_path, 0), 0, 10, loss=2.0)
    assert scalars(tmp_path) == [(0, 2.0), (10, 2.0)]
    assert (tmp_path / "metrics.jsonl").read_bytes() == row(0, 2.0) + row(10, 2.0)


def test_a_torn_event_does_not_hide_the_next_start(tmp_path):
    write(metrics.MetricWriter(tmp_path, 0), 10, 20, loss=1.0)
    (file,) = (tmp_path / "summaries").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    write(metrics.MetricWriter(tmp_path, 10), 20, loss=2.0)
    assert scalars(tmp_path) == [(10, 1.0), (20, 2.0)]


def test_event_files_sort_by_start_whatever_the_clock(tmp_path, monkeypatch):
    clock = [1_700_000_000.5] * 12 + [1_600_000_000.0, 1_700_000_100.0]
    names = []
    for start, now in enumerate(clock):
        monkeypatch.setattr(metrics.time, "time", lambda now=now: now)
        metrics.MetricWriter(tmp_path, start).close()
        (new,) = {file.name for file in (tmp_path / "summaries").iterdir()} - set(names)
        names.append(new)
    assert names == sorted(names)
    seconds = [int(name.split(".")[3]) for name in names]
    assert seconds == [*range(1_700_000_000, 1_700_000_013), 1_700_000_100]


def test_what_is_judged_leaves_the_curves_of_a_training_that_goes_on(tmp_path):
    """Of whichever step; each stays, in the order in which they were judged."""
    neighbours = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 1), np.uint8)
    (tmp_path / "samples").mkdir()
    with metrics.MetricWriter(tmp_path, 0) as writer:
        write(writer, 10, 20, loss=1.0)
        for step, distance in ((20, 3.0), (10, 5.0)):
            metrics.judged(tmp_path, step, {"samples/distance": distance}, neighbours)
        write(writer, 30, loss=2.0)
    assert scalars(tmp_path) == [(10, 1.0), (20, 1.0), (30, 2.0)]
    found = tensors(tmp_path, "scalars", "summaries/judged")
    assert found == {"samples/distance": [(20, [3.0]), (10, [5.0])]}
    shown = tensors(tmp_path, "images", "summaries/judged")["neighbours"]
    file = (tmp_path / "samples/step-00000010-judged.png").read_bytes()
    assert [step for step, _ in shown] == [20, 10] and shown[1][1][2] == file
    assert file == pictures.png(pictures.table(neighbours))
    assert "neighbours" not in tensors(tmp_path, "images")


def tensors(workdir, plugin, run="summaries"):
    """What TensorBoard's server shows of a run under a plugin: tag -> [(step, strings)]."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(workdir))
    multiplexer.Reload()
    tags = multiplexer.PluginRunToTagToContent(plugin).get(run, {})
    return {
        tag: [
            (event.step, list(event.tensor_proto.string_val) or event.tensor_proto.float_val[:])
            for event in multiplexer.Tensors(run, tag)
        ]
        for tag in tags
    }


def test_scalars_are_shown_as_scalars(tmp_path):
    with metrics.MetricWriter(tmp_path, 0) as writer:
        writer.write(10, 640, 1.0, {"train/loss": 0.5, "eval/loss": 0.25})
    assert tensors(tmp_path, "scalars") == {
        "train/loss": [(10, [0.5])],
        "eval/loss": [(10, [0.25])],
    }


def test_pictures_go_to_a_file_and_to_tensorboard(tmp_path):
    decoded = np.random.default_rng(0).integers(0, 256, [6, 8, 4, 3], np.uint8)
    with metrics.MetricWriter(tmp_path, 0) as writer:
        path = writer.samples(100, decoded)
    assert path == tmp_path / "samples" / "step-00000100.png"
    png = pictures.png(pictures.grid(decoded))
    assert path.read_bytes() == png
    # 3 columns of 4 with 2 gaps by 2 rows of 8 with 1 gap, 14 × 17, times 800 // 17 = 47.
    assert tensors(tmp_path, "images") == {"samples": [(100, [b"658", b"799", png])]}


def test_texts_go_to_a_file_and_to_tensorboard(tmp_path):
    with metrics.MetricWriter(tmp_path, 0) as writer:
        path = writer.samples(100, ["für\nx", "\ud800"])
        assert writer.samples(100, ["für\nx", "z"]) == path  # Written again.
        writer.text("config", "# GAN", 0)
    assert path == tmp_path / "samples" / "step-00000100.txt"
    assert path.read_bytes().decode() == "=== 1/2 ===\nfür\nx\n\n=== 2/2 ===\nz\n"
    shown = tensors(tmp_path, "text")
    assert shown["config"] == [(0, [b"# GAN"])]
    assert shown["samples"][-1] == (100, ["**1/2**\n\n    für\n    x\n\n**2/2**\n\n    z".encode()])


@pytest.mark.parametrize("decoded", [{"a": 1}, "one text", [1, 2]])
def test_other_samples_are_refused(tmp_path, decoded):
    with metrics.MetricWriter(tmp_path, 0) as writer, pytest.raises(TypeError) as caught:
        writer.samples(100, decoded)
    assert str(caught.value) == (
        f"samples are {type(decoded).__name__}: "
        "they must be an array of pictures or a list of texts"
    )


def test_animations_of_samples_and_of_tables(tmp_path, monkeypatch):
    """Of at most so many, the last among them; of a kind of picture there is but one of, none."""
    monkeypatch.setattr(metrics, "MOST_FRAMES", 2)
    with metrics.MetricWriter(tmp_path, 0) as writer:
        for step, level in ((1, 0), (2, 100), (3, 255)):
            writer.samples(step, np.full([1, 2, 2, 1], level, np.uint8))
            path = writer.table(step, "pairs", np.full([1, 2, 2, 2, 1], 255 - level, np.uint8))
        writer.table(3, "once", np.zeros([1, 2, 2, 2, 1], np.uint8))
        for step in (1, 2):  # As `lockstep sample` and `evaluate` leave them.
            for ending in ("seed-0", "neighbours"):
                (path.parent / f"step-{step:08d}-{ending}.png").write_bytes(path.read_bytes())
        writer.animate()
    assert path.name == "step-00000003-pairs.png"
    for name, levels in (("training.gif", (0, 255)), ("training-pairs.gif", (255, 0))):
        with PIL.Image.open(tmp_path / "samples" / name) as animation:
            assert animation.n_frames == 2
            for frame, level in enumerate(levels):
                animation.seek(frame)
                assert np.asarray(animation.convert("L"))[0, 0] == level
    assert {path.name for path in path.parent.glob("*.gif")} == {
        "training.gif",
        "training-pairs.gif",
    }


def test_samples_of_later_steps_are_dropped(tmp_path):
    with metrics.MetricWriter(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.samples(step, np.zeros([1, 2, 2, 1], np.uint8))
            writer.table(step, "pairs", np.zeros([1, 2, 2, 2, 1], np.uint8))
    for of_the_user in ("step-comparison.png", "step-3.png", "step-00000003"):
        (tmp_path / "samples" / of_the_user).touch()
    (tmp_path / "samples/step-123456789.png").touch()
    metrics.MetricWriter(tmp_path, 2).close()
    names = [
        "step-00000001-pairs.png",
        "step-00000001.png",
        "step-00000002-pairs.png",
        "step-00000002.png",
        "step-00000003",
        "step-3.png",
        "step-comparison.png",
    ]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == names
