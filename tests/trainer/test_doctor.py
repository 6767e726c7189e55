"""`lockstep doctor`: what it sees, the line of JSON, and the exit code of the first problem."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import types

import pytest
import tensorflow as tf

from trainer import doctor, lock, main
from trainer.environment import Workers
from trainer.hardware import Hardware


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `lockstep doctor` with flags and environment variables; returns code, facts, table and what it said last."""

    def call(flags="", **environ):
        for name in ("TF_CONFIG", "CLUSTER_SPEC", "SLURM_STEP_NODELIST", "JOB_COMPLETION_INDEX"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("COLUMNS", "300")
        code = main.main(["doctor", *flags.split()])
        out, err = capsys.readouterr()
        table, _, line = out.rstrip("\n").rpartition("\n")
        return code, json.loads(line), table, err

    return call


def test_of_a_machine_that_is_well(run, tmp_path):
    folder = tmp_path / "runs" / "new"
    code, facts, table, err = run(f"--replicas=2 --workdir={folder}")
    assert (code, err, facts["code"], facts["problem"]) == (0, "", 0, None)
    assert (facts["platform"], facts["workers"], facts["worker"]) == ("this machine", [], 0)
    assert facts["tensorflow"]["version"] == tf.__version__
    assert facts["tensorflow"]["cuda"] is None
    assert facts["tensorflow"]["xla"] is True
    assert facts["gs"] == ("gs" in tf.io.gfile.get_registered_schemes())
    assert facts["devices"] == {"CPU": 1}
    assert facts["replicas"] == 2
    assert facts["cores"] <= os.cpu_count()
    assert 0 < facts["memory_available_bytes"] <= facts["memory_bytes"]
    assert facts["workdir"]["path"] == str(folder)
    assert facts["workdir"]["exists"] is False
    assert facts["workdir"]["free_bytes"] == pytest.approx(
        shutil.disk_usage(tmp_path).free, rel=0.1
    )
    assert facts["clock_skew_seconds"] == 0
    assert "MirroredStrategy, 2 × CPU, XLA off" in table
    assert list(tmp_path.iterdir()) == []  # It leaves nothing behind.


def test_without_a_workdir(run):
    code, facts, table, _ = run()
    assert code == 0
    assert "workdir" not in facts
    assert facts["clock_skew_seconds"] is None
    assert "not measured: needs --workdir" in table


def test_onednn_that_is_off(run):
    assert run(TF_ENABLE_ONEDNN_OPTS="0")[1]["tensorflow"]["onednn"] is False


def test_a_run_that_is_there(run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000012.safetensors").touch()
    _, facts, table, _ = run(f"--workdir={tmp_path}")
    assert facts["workdir"]["exists"] is True
    assert f"{tmp_path}, a run of 12 steps: " in table


def test_a_workdir_in_which_another_trains(run, tmp_path):
    with lock.held(tmp_path, "lockstep train x", Workers(), lambda text: None):
        code, facts, _, err = run(f"--workdir={tmp_path}")
    assert code == facts["code"] == 73
    assert f"workdir {tmp_path} is in use by process {os.getpid()} on " in err
    assert run(f"--workdir={tmp_path}")[0] == 0


def test_a_worker_that_is_alone_does_not_wait(run):
    code, facts, _, _ = run("--strategy=multi_worker --hosts=nosuch.invalid:2222 --worker=0")
    assert facts["workers"] == ["nosuch.invalid:2222"] and "replicas" not in facts and code == 0


def test_workers_of_slurm(run):
    code, facts, table, _ = run(
        SLURM_JOB_ID="7",
        SLURM_PROCID="1",
        SLURM_STEP_NODELIST="127.0.0.[1-2]",
        SLURM_STEP_TASKS_PER_NODE="1(x2)",
    )
    assert (code, facts["platform"], facts["worker"]) == (0, "Slurm", 1)
    assert [host.split(":")[0] for host in facts["workers"]] == ["127.0.0.1", "127.0.0.2"]
    assert list(facts["peers"].values()) == ["127.0.0.1", "127.0.0.2"]
    assert "2, this is worker 1" in table
    assert "replicas" not in facts  # The strategy would wait for the other worker.


def test_problems_are_all_shown_and_the_first_is_the_code(run, tmp_path):
    (tmp_path / "file").touch()
    code, facts, table, err = run(
        f"--hosts=127.0.0.1:9,nowhere.invalid:9 --worker=0 --workdir={tmp_path}/file/run"
    )
    line = "worker 1 (nowhere.invalid:9): the name does not resolve: see whether it was started, and its spelling"
    assert (code, facts["code"], facts["problem"]) == (75, 75, line)
    assert err == f"lockstep: {line}\n"
    assert facts["peers"] == {"127.0.0.1:9": "127.0.0.1", "nowhere.invalid:9": None}
    assert f"PROBLEM: {line}" in table
    assert f"PROBLEM: workdir {tmp_path}/file cannot be made or written" in table
    assert facts["memory_bytes"] > 0


@pytest.mark.parametrize(
    ("flags", "environ", "code", "line"),
    [
        (
            "--replicas=9",
            {},
            64,
            "9 replicas need 9 devices, and there are 4: use --replicas=4, or --virtual_devices=9 to split the CPU",
        ),
        (
            "--strategy=multi_worker",
            {},
            64,
            "--strategy=multi_worker needs its workers: --hosts=a:port,b:port --worker=i, or TF_CONFIG",
        ),
        (
            "",
            {"JOB_COMPLETION_INDEX": "9", "LOCKSTEP_WORKERS": "2"},
            64,
            "JOB_COMPLETION_INDEX=9 is not a whole number 0 to 1: mend the manifest, or name the workers with --hosts "
            "and --worker",
        ),
    ],
)
def test_what_would_stop_a_training(run, flags, environ, code, line):
    found, facts, _, err = run(flags, **environ)
    assert (found, facts["code"], facts["problem"], err) == (
        code,
        code,
        line,
        f"lockstep: {line}\n",
    )
    assert "tensorflow" in facts  # It looks at the rest all the same.


def test_a_port_that_is_taken(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, facts, _, _ = run(f"--hosts=127.0.0.1:{port},127.0.0.2:{port} --worker=0")
    assert code == 75
    assert facts["problem"].startswith(
        f"this worker's port, of 127.0.0.1:{port}, cannot be taken (another"
    )


def test_without_tensorflow(run, monkeypatch):
    monkeypatch.setattr(doctor.backend.importlib.util, "find_spec", lambda name: None)
    code, facts, _, err = run()
    assert code == 69
    assert err.startswith("lockstep: TensorFlow is not installed: pip install")
    assert "tensorflow" not in facts and facts["memory_bytes"] > 0


def test_folders_of_vertex_are_shown(run):
    _, facts, table, _ = run(AIP_CHECKPOINT_DIR="gs://b/job/checkpoints")
    assert facts["AIP_CHECKPOINT_DIR"] == "/gcs/b/job/checkpoints"
    assert "mounted as /gcs/b/job/checkpoints: give a folder in it as --workdir" in table


def test_a_full_disk(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=3 * 2**20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    report = doctor.examine(Hardware(replicas=1), {}, tmp_path)
    assert report.problem is not None and report.problem.code == 73
    assert str(report.problem) == (
        f"workdir {tmp_path} has 3 MiB free: make room, at least 100 MiB, or choose another --workdir"
    )


# ---------------------------------------------------------------------- machine


def files(root, contents):
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = "MemTotal:       8000 kB\nMemFree:         100 kB\nMemAvailable:   6000 kB\nHugePages_Total:  0\n"
MAX, CURRENT = "sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"


@pytest.mark.parametrize(
    ("contents", "total", "available"),
    [
        ({"proc/meminfo": MEMINFO}, 8000, 6000),
        ({"proc/meminfo": MEMINFO, MAX: "max\n", CURRENT: "1024\n"}, 8000, 6000),
        ({"proc/meminfo": MEMINFO, MAX: f"{4000 * 1024}\n", CURRENT: "1024000"}, 4000, 3000),
        ({"proc/meminfo": MEMINFO, MAX: f"{7000 * 1024}", CURRENT: "10240"}, 7000, 6000),
        ({"proc/meminfo": MEMINFO, MAX: f"{9000 * 1024}", CURRENT: "10240"}, 8000, 6000),
    ],
)
def test_memory_of_the_machine_or_its_control_group(tmp_path, contents, total, available):
    assert doctor.memory(files(tmp_path, contents)) == (total * 1024, available * 1024)


def test_memory_that_is_not_known(tmp_path):
    assert doctor.memory(tmp_path) == (None, None)


@pytest.mark.skipif(sys.platform != "linux", reason="needs sched_getaffinity")
@pytest.mark.parametrize(
    ("limit", "count"),
    [(None, 6), ("max 100000", 6), ("150000 100000", 1.5), ("1600000 100000", 6)],
)
def test_cores(tmp_path, monkeypatch, limit, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    root = files(tmp_path, {"sys/fs/cgroup/cpu.max": limit} if limit else {})
    assert doctor.cores(root) == count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**50, "1 PiB"),
        (None, "unknown"),
    ],
)
def test_sizes(count, text):
    assert doctor._size(count) == text


@pytest.mark.parametrize(
    ("before", "written", "after", "skew"),
    [
        (100.0, 100.05, 100.1, 0),
        (100.0, 99.995, 100.1, 0),  # The clock of files ticks coarsely.
        (100.0, 103.5, 100.1, 3.4),
        (100.0, 97.5, 100.1, -2.5),
    ],
)
def test_clock_skew(before, written, after, skew):
    assert doctor.skew_of(before, written, after) == skew
