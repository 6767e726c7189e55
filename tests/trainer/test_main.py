"""The launcher: what it answers before TensorFlow, the line and exit code of each mistake, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from trainer import backend, catalogue, config, config_files, flags, main
from trainer.exits import ConfigError, Diverged, PreemptedExit, UsageError
from trainer.hardware import Hardware
from trainer.preemption import SIGNALS, Asked

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A run that was preempted ignores them from then on, and what later tests start would too."""
    before = [(number, signal.getsignal(number)) for number in SIGNALS]
    yield
    for number, handler in before:
        signal.signal(number, handler)


# ---------------------------------------------------------------------- before TensorFlow

LATE = """
import sys
from trainer import main
code = main.main(sys.argv[1:])
late = {"tensorflow", "keras", "numpy"} & set(sys.modules)
sys.exit(99 if late else code)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("--help", 0, "usage: lockstep MODE"),
        ("train --help", 0, "usage: lockstep MODE"),
        ("--version", 0, "lockstep "),
        (
            "",
            64,
            "lockstep: no mode: begin with one of train, evaluate, sample, report, verify, doctor; lockstep --help tells more",
        ),
        ("train --workdr=x", 64, "lockstep: unknown flag --workdr; did you mean --workdir?"),
        ("train gan/nowhere --workdir=x", 78, 'lockstep: there is no config "gan/nowhere"'),
        (
            "train --gin_param=A.b=c --workdir=/dev/null/x configs_of_test",
            78,
            'lockstep: there is no config "configs_of_test"',
        ),
    ],
)
def test_answers_at_once_and_without_tensorflow(arguments: str, code: int, says: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", LATE, *arguments.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr
    assert says in (done.stdout if code == 0 else done.stderr)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (code != 0)
    # The promise is 1 s; other tests use the same cores meanwhile, so only its own work counts.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_a_reader_that_wants_no_more_is_no_error() -> None:
    """As `lockstep --help | head -1`."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", LATE, "--help"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_nobody_reads_changes_no_exit_code() -> None:
    """As `lockstep train … 2>&1 | head -1`, whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", LATE, "train", "nothing/such", "--workdir=w"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=write,
    )
    os.close(write)
    assert (done.returncode, done.stdout) == (78, b"")


def test_what_cannot_be_written_to_stdout_costs_nothing() -> None:
    """It is closed, as `lockstep --version >&-`; or of another encoding, which has no three dots in one."""
    program = "from trainer.main import run; run()"
    for closing, code, of_arguments in ((">&-", 0, "--version"), (">&- 2>&-", 64, "fly")):
        command = f"{sys.executable} -c '{program}' {of_arguments} {closing}"
        assert subprocess.run(["sh", "-c", command]).returncode == code
    environ = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", program, "--help"]
    shown = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert "usage: lockstep MODE [CONFIG ?] --workdir=FOLDER" in shown.stdout


def test_help_names_every_flag() -> None:
    text = flags.help_text()
    for name in flags._define():
        assert f"--{name} " in text
    assert (
        "--strategy             auto, one_device, mirrored, multi_worker, tpu: how devices" in text
    )


MISTAKES = {
    "trian gan/digits": "unknown mode trian; did you mean train?",
    "export": "unknown mode export; did you mean report?",
    "fly": "unknown mode fly: use train, evaluate, sample, report, verify, doctor",
    "train x --strategy=miror --workdir=w": (
        "--strategy=miror: value should be one of <auto|one_device|mirrored|multi_worker|tpu>"
    ),
    "train x --microbatch=two --workdir=w": "--microbatch=two: it must be a whole number",
    "train x --microbatch=0 --workdir=w": "--microbatch=0: it must be at least 1",
    "sample --workdir=w --length=0": "--length=0: 0 is not a positive integer",
    "sample --workdir=w --top_k=0": "--top_k=0: 0 is not a positive integer",
    "sample --workdir=w --beams=-1": "--beams=-1: -1 is not a positive integer",
    "sample --workdir=w --top_p=1.5": "--top_p=1.5: it must be from 1e-06 to 1",
    "sample --workdir=w --top_p=0": "--top_p=0: it must be from 1e-06 to 1",
    "sample --workdir=w --top_p=nan": "--top_p=nan: it must be from 1e-06 to 1",
    "sample --workdir=w --temperature=-1": "--temperature=-1: it must be from 1e-06 to 1e+06",
    "sample --workdir=w --temperature=inf": "--temperature=inf: it must be from 1e-06 to 1e+06",
    "sample --workdir=w --temperature=0": "--temperature=0: it must be from 1e-06 to 1e+06",
    "sample --workdir=w --repetition_penalty=0": "--repetition_penalty=0: it must be from 1e-06 to 1e+06",
    "report --workdir=w --gin_param=A.b=1": (
        "--gin_param is for train, evaluate and sample, not for report: remove it"
    ),
    "doctor --gin_param=A.b=1": (
        "--gin_param is for train, evaluate and sample, not for doctor: remove it"
    ),
    "verify --workdir=w --microbatch=2": (
        "--microbatch is for train, evaluate, sample and doctor, not for verify: remove it"
    ),
    "report --workdir=w --xla=on": (
        "--xla is for train, evaluate, sample and doctor, not for report: remove it"
    ),
    "train x --features=c --dry_run": (
        "--features compares what --dry_run does not train: drop one"
    ),
    "train x --xla": "Missing value for flag --xla",
    "train gan/digits": (
        "no --workdir: say where the run is kept, such as --workdir=runs/gan-digits"
    ),
    "train x --workdir=gs://b/x": '--workdir="gs://b/x" is not a folder: give a local or mounted one',
    "train x --count=3 --workdir=w": "--count is for evaluate and sample, not for train: remove it",
    "train x --seed=3 --workdir=w": (
        "--seed is for evaluate and sample, not for train: "
        "write --gin_param=Experiment.seed=…, since the configuration decides what is learnt"
    ),
    "train x --batch_size=3 --workdir=w": (
        "unknown flag --batch_size: "
        "write --gin_param=Experiment.global_batch=…, since the configuration decides what is learnt"
    ),
    "train x --gpus=3 --workdir=w": (
        "unknown flag --gpus: write --replicas=N, or leave it out for all that are there"
    ),
    "train x --features=c --workdir=w --hosts=a:1,b:1 --worker=0": (
        "--features compares on one machine: evaluate the run afterwards on one"
    ),
    "evaluate --count=3 --workdir=w": (
        "--count is for the samples that --features compares: give both, or none"
    ),
    "doctor gan/digits": "doctor needs no configuration: remove gan/digits",
    "doctor --dry_run": "--dry_run is for train, not for doctor: remove it",
    "train x --start_seconds=0 --workdir=w": "--start_seconds=0: it must be at least 1",
    "train x --heartbeat_seconds=0 --workdir=w": "--heartbeat_seconds=0: it must be at least 1",
    "train x --max_rollbacks=-1 --workdir=w": "--max_rollbacks=-1: it must be at least 0",
    "train x --check_replicas_every=-2 --workdir=w": (
        "--check_replicas_every=-2: it must be at least 0"
    ),
    "train x --prompt=a --workdir=w": "--prompt is for sample, not for train: remove it",
    "evaluate --class=1 --workdir=w": "--class is for sample, not for evaluate: remove it",
    "sample --class=-1 --workdir=w": "--class=-1: -1 is not a non-negative integer",
    "evaluate --top_p=0.9 --workdir=w": "--top_p is for sample, not for evaluate: remove it",
    "sample --prompt= --workdir=w": "--prompt is empty: give a text, or leave it out",
    "sample --prompt=a\udcff --workdir=w": "--prompt='a\\udcff' is not in UTF-8: give it so",
    "sample --beams=4 --top_k=3 --workdir=w": (
        "--beams searches the likeliest texts and --top_k is for drawn ones: drop one"
    ),
    "sample --temperature=hot --workdir=w": (
        "--temperature=hot: could not convert string to float: 'hot'"
    ),
    "sample --dry_run --workdir=w": "--dry_run is for train, not for sample: remove it",
    "train x --checkpoint=best --workdir=w": (
        "--checkpoint is for evaluate and sample, not for train: remove it"
    ),
    "evaluate --checkpoint=worst --workdir=w": (
        "--checkpoint=worst: choose last, best or the number of a step"
    ),
    "evaluate gan/digits --workdir=w": (
        "evaluate reads the configuration of the workdir: remove gan/digits"
    ),
    "train x --workdir=w --hosts=a:1,b:1": "--hosts needs --worker: which of them this is, 0 to 1",
    "train x --workdir=w --worker=1": (
        "--worker needs --hosts=a:port,b:port, the same list on every worker"
    ),
    "train x --workdir=w --hosts=a:1,b:1 --worker=2": (
        "--worker=2 is not among the 2 hosts: number from 0"
    ),
    "train x --workdir=w --hosts=a:1,b:1 --worker=-1": (
        "--worker=-1 is not among the 2 hosts: number from 0"
    ),
    "train x --workdir=w --hosts=a:1,b --worker=0": '--hosts names "b": write host:port',
    "train x --workdir=w --hosts=a:1,a:1 --worker=0": (
        "--hosts names a worker twice: give each its own host:port"
    ),
    "train x --workdir=w --hosts=a:1 --worker=0 --strategy=mirrored": (
        "--hosts and --strategy=mirrored exclude each other: drop one"
    ),
    "train x --workdir=w --tpu=local --strategy=mirrored": (
        "--tpu and --strategy=mirrored exclude each other: drop one"
    ),
    "train x --workdir=w --tpu=local --virtual_devices=2": (
        "--tpu and --virtual_devices exclude each other: drop one"
    ),
    "train x --workdir=w --strategy=tpu --virtual_devices=2": (
        "--virtual_devices and --strategy=tpu exclude each other: drop one"
    ),
    "train x --workdir=w --strategy=one_device --replicas=2": (
        "--strategy=one_device has one replica: drop --replicas=2"
    ),
    "train x --workdir=w --virtual_devices=2 --replicas=4": (
        "--replicas=4 needs as many --virtual_devices, not 2"
    ),
    "train x --workdir=w --strategy=multi_worker": (
        "--strategy=multi_worker needs its workers: --hosts=a:port,b:port --worker=i, or TF_CONFIG"
    ),
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_wrong_command_line(
    arguments: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert main.main(arguments.split()) == UsageError.code == 64
    assert capsys.readouterr() == ("", f"lockstep: {MISTAKES[arguments]}\n")


def test_home_is_known_behind_an_equals_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    line = flags.parse(["evaluate", "--workdir=~/runs/a", "--features=~/runs/b"])
    assert (line.workdir, line.features) == ("/home/me/runs/a", "/home/me/runs/b")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9,9]"),
    ],
)
def test_memory_that_is_used_up_is_a_line(
    error: Exception, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "_train", mock.Mock(side_effect=error))
    assert main.main(["train", "vae/digits", "--workdir=w"]) == 70
    said = capsys.readouterr().err
    assert said.startswith("lockstep: out of memory: give a --microbatch with fewer examples")
    assert said.count("\n") == 1


def test_command_line_is_read() -> None:
    line = flags.parse(
        "train a b --gin_file=c --gin_param A.x=1 --gin_param=A.x=2,3 --workdir=w --hosts=h:1,[::1]:2 "
        "--worker=1 --xla=on --microbatch 8 --intra_op_threads=2".split()
    )
    assert line.configs == ("a", "b", "c")
    assert line.gin_params == ("A.x=1", "A.x=2,3")
    assert line.hardware == Hardware(
        hosts=("h:1", "[::1]:2"),
        worker=1,
        xla="on",
        microbatch=8,
        intra_op_threads=2,
        steps_per_loop=20,
    )
    assert flags.parse(["train", "--workdir=w"]).hardware == Hardware()


def test_flags_of_decoding_undo_the_other_way() -> None:
    from models.decoding import LEAST, MOST, OF_DRAWS

    assert flags.DRAWING == OF_DRAWS
    assert (flags.LEAST, flags.MOST) == (LEAST, MOST)

    def decoding(text: str) -> Mapping[str, object]:
        return flags.parse(["sample", "--workdir=w", *text.split()]).decoding

    assert decoding("") == {}
    assert decoding("--length=9") == {"length": 9}
    assert decoding("--top_p=0.9 --length=9") == {"beams": None, "length": 9, "top_p": 0.9}
    assert decoding("--beams=4") == {"beams": 4, **OF_DRAWS}


def test_workers_of_the_environment_contradict_flags_before_tensorflow(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    assert main.main("train x --workdir=w --strategy=mirrored".split()) == 64
    assert capsys.readouterr().err == (
        "lockstep: TF_CONFIG names 2 workers, and --strategy=mirrored has one: "
        "use --strategy=multi_worker, or unset TF_CONFIG\n"
    )


def test_missing_tensorflow_names_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    recipe = tmp_path / "x.gin"
    recipe.touch()
    assert main.main(["train", str(recipe), f"--workdir={tmp_path}"]) == 69
    assert capsys.readouterr().err == (
        'lockstep: TensorFlow is not installed: pip install "lockstep-training[cpu]", or [gpu], '
        "or [tpu]; in a checkout, scripts/train does it\n"
    )


@pytest.mark.parametrize(("given", "used"), [(None, "1"), ("0", "0")])
def test_onednn_is_on_unless_it_is_switched_off(given, used, monkeypatch) -> None:
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    if given:
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", given)
    backend.start()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == used


def test_greetings_are_held_back_and_nothing_else(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError), backend.without_greetings():
        os.write(
            2, b"WARNING: All log messages before absl::InitializeLog() is called are written\n"
        )
        os.write(
            2, b"I0000 port.cc:153] oneDNN custom operations are on. You may see\nbroken driver\n"
        )
        raise ZeroDivisionError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "broken driver\nafter\n"


def test_evaluate_where_no_run_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main.main(["evaluate", f"--workdir={tmp_path}"]) == 78
    assert capsys.readouterr().err == (
        f"lockstep: workdir {tmp_path} holds no run ({tmp_path}/config.gin is missing): "
        "train one, or choose another\n"
    )


# ---------------------------------------------------------------------- runs, with a trainer of paper


class Boat:
    def __init__(self, sails: int = 1) -> None:
        if sails == 13:
            raise TypeError("13 sails\n  cannot be rigged")
        if sails < 1:
            raise ValueError(f"sails is {sails}: it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voyage:
    boat: Callable[[], Any] = Boat
    steps: int = 3
    seed: int = 5
    samples: int = 4


class PaperTrainer:
    """Keeps what it was made from and told, and does what `ends` says."""

    ends: Any = None
    decoded: Any = None
    metrics: dict[str, float] = {"loss": 1.25, "accuracy": 0.5}
    made: SimpleNamespace
    texts: Mapping[str, str]

    def __init__(
        self,
        experiment: Voyage,
        hardware: Hardware,
        workdir: Path | None,
        note: Callable[[str], None],
        fence: Callable[[], None],
    ) -> None:
        experiment.boat()
        type(self).made = SimpleNamespace(hardware=hardware, workdir=workdir)
        self.note = note
        self.experiment, self.workdir = experiment, workdir
        self.cluster = SimpleNamespace(chief=True)
        self.timesheet = SimpleNamespace(began=0.0)
        self.step = SimpleNamespace(number=SimpleNamespace(numpy=lambda: 3))

    def train(self, texts: Mapping[str, str], started: Callable[[], None], stop: Asked) -> Any:
        from trainer.trainer import Outcome

        type(self).texts = texts
        if self.ends is not Outcome.ALREADY_DONE:
            started()
        self.note("wind from the west")

        assert self.workdir is not None
        for name in ("checkpoints/step-00000003.safetensors", "samples/step-00000003.png"):
            (self.workdir / name).parent.mkdir(exist_ok=True)
            (self.workdir / name).touch()
        if isinstance(self.ends, BaseException):
            raise self.ends
        return self.ends or Outcome.DONE

    def restore(self, which: str) -> int:
        self.note(f"anchor {which}")
        return {"last": 3, "best": 2}[which]

    def baseline(self) -> dict[str, float]:
        return {}

    def evaluate(self) -> dict[str, float]:
        return self.metrics

    streams = False
    classes: int | None = None

    def sample(
        self, count: int, seed: int, prompt: str | None = None, label: int | None = None
    ) -> Any:
        if self.decoded is not None:
            return self.decoded
        return np.full([count, 2, 2, 1], seed + (label or 0), np.uint8)

    def pictures(self) -> Mapping[str, np.ndarray]:
        return {"sails": np.zeros([1, 2, 2, 2, 1], np.uint8)} if self.decoded is None else {}

    def describe(self) -> str:
        return "boat: 12 weights"


@pytest.fixture
def lockstep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, str, str]]:
    """Runs the launcher in `tmp_path`; returns exit code, stdout and stderr."""
    import trainer.trainer

    names = config.Registry("test_main", root="Voyage")
    names.register(Voyage)
    names.register(Boat)
    monkeypatch.setattr(main, "registry", lambda: names)
    monkeypatch.setattr(trainer.trainer, "Trainer", PaperTrainer)
    monkeypatch.setattr(PaperTrainer, "ends", None)
    monkeypatch.setattr(PaperTrainer, "decoded", None)
    monkeypatch.setattr(PaperTrainer, "metrics", PaperTrainer.metrics)
    monkeypatch.setattr(config_files, "SHIPPED", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/sea.gin").write_text("Voyage.steps = 3\n")

    def run(command: str) -> tuple[int, str, str]:
        code = main.main(command.split())
        return code, *capsys.readouterr()

    return run


CONFIG = (
    "Boat.sails = 1\nVoyage.boat = @Boat\nVoyage.samples = 4\nVoyage.seed = 5\nVoyage.steps = 3\n"
)
NOTE = "wind from the west\n"
RESULTS = """\
samples:    w/samples/step-00000003.png
checkpoint: w/checkpoints/step-00000003.safetensors
curves:     tensorboard --logdir w/summaries
"""


def test_train_leaves_config_and_starts(lockstep, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("A_SECRET", "swordfish")
    assert lockstep("train sea --workdir=w --microbatch=2") == (0, RESULTS, NOTE)
    assert (tmp_path / "w/config.gin").read_text() == CONFIG
    assert PaperTrainer.made.hardware == Hardware(microbatch=2)
    assert PaperTrainer.texts["config"] == f"```\n{CONFIG}```"
    shown = PaperTrainer.texts["start"].splitlines()
    assert shown[0] == "- command: `lockstep train sea --workdir=w --microbatch=2`"
    assert shown[1] == f"- python: `{'.'.join(map(str, sys.version_info[:3]))}`"
    assert f"- keras: `{metadata.version('keras')}`" in shown
    more = "lockstep train --workdir=w --gin_param=Voyage.steps=4"
    assert lockstep(more.removeprefix("lockstep "))[0] == 0  # under its own configuration
    text = (tmp_path / "w/run.json").read_text()
    starts = json.loads(text)
    assert [start["command"] for start in starts] == [
        "lockstep train sea --workdir=w --microbatch=2",
        more,
    ]
    assert starts[0]["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "keras" in starts[0]["versions"]
    assert "swordfish" not in text


def test_starts_that_cannot_be_read_are_kept(lockstep, tmp_path: Path) -> None:
    assert lockstep("train sea --workdir=w")[0] == 0
    path = tmp_path / "w/run.json"
    for number, damaged in enumerate((path.read_text()[:-3], "{}"), 1):
        path.write_text(damaged)
        code, _, said = lockstep("train sea --workdir=w --gin_param=Voyage.steps=4")
        (note,) = re.findall(r"^w/run.json is no list of starts \(.*\): moved to (\S+), and", said)
        assert code == 0 and (tmp_path / note).read_text() == damaged
        assert len(json.loads(path.read_text())) == 1
        (tmp_path / note).rename(tmp_path / f"w/{number}")
    path.unlink()
    path.mkdir()
    assert lockstep("train sea --workdir=w")[::2] == (
        73,
        "lockstep: w/run.json cannot be read or written (is a directory): mend it and start again to go on from the last "
        "checkpoint\n",
    )


def test_other_configuration_is_refused_and_longer_is_not(lockstep, tmp_path: Path) -> None:
    assert lockstep("train sea --workdir=w")[0] == 0
    assert lockstep("train sea --workdir=w --gin_param=Boat.sails=2") == (
        78,
        "",
        "lockstep: workdir w holds a run of another configuration: Boat.sails is 1 there and 2 here; "
        "choose another --workdir, or the configuration in w/config.gin\n",
    )
    assert (tmp_path / "w/config.gin").read_text() == CONFIG
    assert lockstep("train sea --workdir=w --gin_param=Voyage.steps=9")[0] == 0
    assert (tmp_path / "w/config.gin").read_text() == CONFIG.replace("steps = 3", "steps = 9")


def test_a_start_that_failed_does_not_bind(lockstep, tmp_path: Path) -> None:
    """Nothing was learnt, so the corrected configuration may have the workdir."""
    assert lockstep("train sea --workdir=w --gin_param=Boat.sails=0") == (
        78,
        "",
        "lockstep: sails is 0: it must be at least 1\n",
    )
    assert not (tmp_path / "w/config.gin").exists()
    assert lockstep("train sea --workdir=w")[0] == 0


def test_a_type_error_of_a_constructor_is_one_line(lockstep) -> None:
    """The last net, for what the annotations do not say."""
    assert lockstep("train sea --workdir=w --gin_param=Boat.sails=13") == (
        78,
        "",
        "lockstep: 13 sails cannot be rigged\n",
    )


OWN = """
class Raft:
    def __init__(self, logs: int = 3) -> None:
        self.rope = logs[0] if logs else int("rope")
"""


def test_a_bug_in_a_model_has_its_place(lockstep, tmp_path: Path, monkeypatch) -> None:
    """Only what a constructor of ours refuses is about the configuration, and one line."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_rafts.py").write_text(OWN)
    (tmp_path / "raft.gin").write_text("import own_rafts\nVoyage.boat = @Raft\n")
    for logs, last in (
        (3, "TypeError: 'int' object is not subscriptable"),
        (0, "ValueError: invalid literal for int() with base 10: 'rope'"),
    ):
        command = f"train raft.gin --workdir=w --allow_imports --gin_param=Raft.logs={logs}"
        code, out, said = lockstep(command)
        assert (code, out) == (70, "") and last in said
        assert said.startswith("Traceback") and "own_rafts.py" in said

    def trace(*arguments: Any, **options: Any) -> Any:
        return {}[0:1]

    monkeypatch.setattr(PaperTrainer, "__init__", trace)
    code, _, said = lockstep("train sea --workdir=w")
    assert code == 70 and said.startswith("Traceback") and "TypeError: unhashable" in said


def test_a_mistake_in_the_configuration_makes_no_folder(lockstep, tmp_path: Path) -> None:
    assert lockstep("train sea --workdir=w --gin_param=Boat.sail=2") == (
        78,
        "",
        "lockstep: --gin_param Boat.sail=2: Boat has no parameter sail; did you mean sails?\n",
    )
    assert not (tmp_path / "w").exists()


def test_unwritable_workdir(lockstep, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert lockstep("train sea --workdir=file/run") == (
        73,
        "",
        "lockstep: workdir file/run cannot be made or written (not a directory): "
        "choose another --workdir\n",
    )
    if os.geteuid() != 0:  # root may write everywhere
        (tmp_path / "shut").mkdir(mode=0o500)
        assert lockstep("train sea --workdir=shut")[0] == 77


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "w/metrics.jsonl"),
            73,
            "w/metrics.jsonl cannot be read or written (no space left on device): "
            "make room and start again to go on from the last checkpoint",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            73,
            "a file of the run cannot be read or written (disk quota exceeded): "
            "make room and start again to go on from the last checkpoint",
        ),
        (
            OSError(errno.EIO, "Input/output error", "w/DONE"),
            73,
            "w/DONE cannot be read or written (input/output error): "
            "mend it and start again to go on from the last checkpoint",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "w/config.gin"),
            77,
            "w/config.gin cannot be read or written (read-only file system): "
            "change its permissions, or choose another --workdir",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "w/samples"),
            77,
            "w/samples cannot be read or written (permission denied): "
            "change its permissions, or choose another --workdir",
        ),
    ],
)
def test_trouble_with_a_file_is_one_line(lockstep, monkeypatch, error, code, says) -> None:
    monkeypatch.setattr(PaperTrainer, "ends", error)
    assert lockstep("train sea --workdir=w") == (code, "", f"{NOTE}lockstep: {says}\n")


def test_what_to_do_then_depends_on_the_mode_and_the_file(lockstep, monkeypatch) -> None:
    assert lockstep("train sea --workdir=w")[0] == 0

    def ends(error: BaseException) -> tuple[int, str]:
        def evaluate(self: PaperTrainer) -> None:
            raise error

        monkeypatch.setattr(PaperTrainer, "evaluate", evaluate)
        code, out, said = lockstep("evaluate --workdir=w")
        assert not out
        return code, said.splitlines()[-1]

    assert ends(KeyboardInterrupt()) == (
        130,
        "lockstep: interrupted; give the same command again",
    )
    assert ends(PermissionError(errno.EACCES, "Permission denied", "data")) == (
        77,
        "lockstep: data cannot be read or written (permission denied): change its permissions and give the same "
        "command again",
    )
    assert ends(OSError(errno.EIO, "Input/output error", "w/samples")) == (
        73,
        "lockstep: w/samples cannot be read or written (input/output error): mend it and give the same command again",
    )


def test_workers_that_a_mode_has_not_are_not_asked_for(lockstep, monkeypatch) -> None:
    """Trouble with a file is what it is, whatever the environment says of workers."""

    def report(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "w/events.jsonl")

    monkeypatch.setattr("trainer.report.report", report)
    monkeypatch.setenv("TF_CONFIG", "{")
    code, _, said = lockstep("report --workdir=w")
    assert (code, said.splitlines()[-1].startswith("lockstep: w/events.jsonl cannot be read")) == (
        77,
        True,
    )


def test_a_full_disk_while_the_configuration_is_written(lockstep, monkeypatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(main.durable, "write", full)
    assert lockstep("train sea --workdir=w") == (
        73,
        "",
        "lockstep: w/config.gin cannot be read or written (no space left on device): "
        "make room and start again to go on from the last checkpoint\n",
    )


def test_what_a_kill_left_unfinished_does_not_bind(lockstep, tmp_path: Path) -> None:
    """A first save that was killed leaves a scratch file, from which nothing goes on."""
    assert lockstep("train sea --workdir=w")[0] == 0
    folder = tmp_path / "w/checkpoints"
    whole = folder / "step-00000003.safetensors"
    whole.rename(folder / ".step-00000003.safetensors.77")
    assert lockstep("train sea --workdir=w --gin_param=Boat.sails=2")[0] == 0
    assert "Boat.sails = 2" in (tmp_path / "w/config.gin").read_text()


def test_a_checkpoint_of_the_beginning_binds(lockstep, tmp_path: Path) -> None:
    """Which a run keeps that may go back to it: another would begin with its weights."""
    assert lockstep("train sea --workdir=w")[0] == 0
    folder = tmp_path / "w/checkpoints"
    (folder / "step-00000003.safetensors").rename(folder / "step-00000000.safetensors")
    code, _, said = lockstep("train sea --workdir=w --gin_param=Boat.sails=2")
    assert (code, "holds a run of another configuration: Boat.sails" in said) == (78, True)


def test_checkpoints_of_an_unknown_configuration_are_refused(lockstep, tmp_path: Path) -> None:
    assert lockstep("train sea --workdir=w")[0] == 0
    (tmp_path / "w/config.gin").unlink()
    assert lockstep("train sea --workdir=w") == (
        78,
        "",
        "lockstep: workdir w holds checkpoints, and their configuration is not known "
        "(w/config.gin is missing): put it back, or choose another --workdir\n",
    )


@pytest.mark.parametrize("steps", [3, 2])
def test_a_run_that_is_done_is_left_as_it_is(
    lockstep, tmp_path: Path, monkeypatch, steps: int
) -> None:
    from trainer.trainer import Outcome

    assert lockstep("train sea --workdir=w")[0] == 0
    files = {name: (tmp_path / "w" / name).read_bytes() for name in ("config.gin", "run.json")}
    monkeypatch.setattr(PaperTrainer, "ends", Outcome.ALREADY_DONE)
    assert lockstep(f"train sea --workdir=w --gin_param=Voyage.steps={steps}") == (
        0,
        f"already done: 3 steps; more with --gin_param=Voyage.steps=…\n{RESULTS}",
        NOTE,
    )
    for name, data in files.items():
        assert (tmp_path / "w" / name).read_bytes() == data


def test_sigterm_while_the_training_is_made(lockstep, tmp_path: Path, monkeypatch) -> None:
    """Also where a library swallows what is raised in its midst."""
    before = signal.getsignal(signal.SIGTERM)

    def sail(self: Any, sails: int = 1) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except PreemptedExit:
            if sails == 2:
                raise

    monkeypatch.setattr(Boat, "__init__", sail)
    for sails in (1, 2):
        assert lockstep(f"train sea --workdir=w --gin_param=Boat.sails={sails}") == (
            75,
            "",
            "lockstep: stopped before the training began: start the same command again\n",
        )
        assert not (tmp_path / "w/config.gin").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_is_left_alone_by_the_launcher_otherwise(lockstep, monkeypatch) -> None:
    """Before and after a training, and in other modes, it ends the process."""
    seen = []

    def look(self: Any, *arguments: Any) -> Any:
        seen.append(signal.getsignal(signal.SIGTERM))
        return {"loss": 1.0} if not arguments else np.zeros([1, 2, 2, 1], np.uint8)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(main, "_results", lambda folder: str(look(None)))
    monkeypatch.setattr(PaperTrainer, "evaluate", look)
    monkeypatch.setattr(PaperTrainer, "sample", look)
    for command in ("train sea", "evaluate", "sample"):
        assert lockstep(f"{command} --workdir=w")[0] == 0
    assert seen == [before] * 3


def test_sigterm_around_a_training_is_not_lost(lockstep, monkeypatch) -> None:
    """The training takes the signal over by itself: before that it is told, and after it nothing ends a run that has saved."""
    from trainer.trainer import Outcome

    ended: list[int] = []
    told: list[bool] = []
    train = PaperTrainer.train

    def signalled(self: Any, texts: Any, started: Any, stop: Asked) -> Any:
        told.append(stop.asked)
        os.kill(os.getpid(), signal.SIGTERM)
        told.append(stop.asked)
        return train(self, texts, started, stop)

    monkeypatch.setattr(PaperTrainer, "train", signalled)
    monkeypatch.setattr(PaperTrainer, "ends", Outcome.PREEMPTED)
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    try:
        assert lockstep("train sea --workdir=w")[0] == 75
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    assert (told, ended) == ([False, True], [])


def test_ends(lockstep, monkeypatch) -> None:
    from input_pipeline.batches import DataError
    from trainer.trainer import Outcome

    for ends, expected in [
        (
            Outcome.PREEMPTED,
            (75, "", "lockstep: preempted and saved in w: start the same command again to go on\n"),
        ),
        (Diverged("phase a diverged:\n it did"), (70, "", "lockstep: phase a diverged: it did\n")),
        (DataError("row 3 is empty"), (65, "", "lockstep: row 3 is empty\n")),
        (
            KeyboardInterrupt(),
            (130, "", "lockstep: interrupted; start again to go on from the last checkpoint\n"),
        ),
    ]:
        monkeypatch.setattr(PaperTrainer, "ends", ends)
        code, out, said = expected
        assert lockstep("train sea --workdir=w") == (code, out, NOTE + said)
    monkeypatch.setattr(PaperTrainer, "ends", ValueError("a bug"))
    code, _, said = lockstep("train sea --workdir=w")
    assert code == 70
    assert said.startswith(f"{NOTE}Traceback") and said.endswith("ValueError: a bug\n")


def test_dry_run_writes_nothing(lockstep, tmp_path: Path) -> None:
    assert lockstep("train sea --dry_run") == (0, f"{CONFIG}\nboat: 12 weights\n", "")
    assert lockstep("train sea --dry_run --workdir=w")[0] == 0
    assert not (tmp_path / "w").exists()


def test_evaluate_and_sample_take_the_run(lockstep, tmp_path: Path, monkeypatch) -> None:
    from PIL import Image

    assert lockstep("train sea --workdir=w")[0] == 0
    monkeypatch.setattr(Voyage, "baseline", "compass", raising=False)
    code, out, said = lockstep("evaluate --workdir=w --checkpoint=best")
    assert (code, said) == (0, "anchor best\n")
    assert json.loads(out.splitlines()[-1]) == {"step": 2, "accuracy": 0.5, "loss": 1.25}
    assert "w, step 2" in out and "1.25" in out and "compass" not in out and "baseline" not in out
    baseline = {"loss": 2.5, "loss_at_16": 3.0, "loss_at_2": 4.0}
    monkeypatch.setattr(PaperTrainer, "baseline", lambda self: baseline)
    code, out, _ = lockstep("evaluate --workdir=w")
    *table, results = out.splitlines()
    assert [row.strip("│┃ ").split() for row in table if "loss" in row or "metric" in row] == [
        ["metric", "┃", "mean", "┃", "compass"],
        ["loss", "│", "1.25", "│", "2.5"],
        ["loss_at_2", "│", "│", "4"],
        ["loss_at_16", "│", "│", "3"],
    ]
    beside = {f"baseline/{name}": value for name, value in baseline.items()}
    assert json.loads(results) == {"step": 3, "accuracy": 0.5, "loss": 1.25, **beside}

    assert lockstep("sample --workdir=w --seed=7") == (
        0,
        "w/samples/step-00000003-seed-7.png\nw/samples/step-00000003-sails.png\n",
        "anchor last\n",
    )
    picture = np.asarray(Image.open(tmp_path / "w/samples/step-00000003-seed-7.png"))
    assert picture[0, 0] == 7
    assert (tmp_path / "w/samples/step-00000003-sails.png").exists()
    _, out, _ = lockstep("sample --workdir=w --seed=7 --class=1")
    assert out.splitlines()[0] == "w/samples/step-00000003-seed-7-class-1.png"
    picture = np.asarray(Image.open(tmp_path / "w/samples/step-00000003-seed-7-class-1.png"))
    assert picture[0, 0] == 8
    monkeypatch.setattr(PaperTrainer, "decoded", ["to be", "or not"])
    code, out, _ = lockstep("sample --workdir=w --count=2")
    assert code == 0
    assert "to be" in out and out.endswith("w/samples/step-00000003-seed-5.txt\n")
    assert "or not" in (tmp_path / "w/samples/step-00000003-seed-5.txt").read_text()


def test_metrics_that_are_not_finite_are_null(lockstep, monkeypatch) -> None:
    assert lockstep("train sea --workdir=w")[0] == 0
    metrics = {"loss": float("nan"), "bits": float("inf"), "rate": 0.5}
    monkeypatch.setattr(PaperTrainer, "metrics", metrics)
    code, out, _ = lockstep("evaluate --workdir=w")
    assert code == 0
    assert out.splitlines()[-1] == '{"step": 3, "bits": null, "loss": null, "rate": 0.5}'


def test_sample_of_no_samples(lockstep) -> None:
    assert lockstep("train sea --workdir=w --gin_param=Voyage.samples=0")[0] == 0
    assert lockstep("sample --workdir=w") == (
        64,
        "",
        "anchor last\nlockstep: the configuration has samples = 0: give --count\n",
    )
    assert lockstep("sample --workdir=w --count=2")[0] == 0


# ---------------------------------------------------------------------- what is registered

GAN = """
Experiment.objective = @GAN
Experiment.source = @train/Split()
Split.source = @Digits()
train/Split.part = "train"
Experiment.global_batch = 64
Experiment.steps = 4
GAN.generator_optimizer = @Optimizer()
GAN.discriminator_optimizer = @Optimizer()
GAN.latent = 8
Optimizer.learning_rate = @CosineDecay()
CosineDecay.initial_learning_rate = 2.0
CosineDecay.decay_steps = 100
ConvolutionalDecoder.width = 16
"""


def test_registered_classes_are_made_as_bound() -> None:
    """A default that is registered (the rule Adam, the decoder) can be bound without being named."""
    import keras

    from models.gan import GAN as Objective

    names = catalogue.registry()
    resolved = names.resolve(config_files.read([], [GAN, "Adam.beta_1=0.25"]))
    assert resolved.bindings["Optimizer.rule"] == "@Adam"
    assert resolved.bindings["ConvolutionalDecoder.width"] == "16"
    experiment = names.build(resolved)
    objective = experiment.objective(experiment.source.element_spec)
    assert type(objective) is Objective
    assert objective.latent == 8
    rule = objective.generator_optimizer.rule()
    assert type(rule) is keras.optimizers.Adam
    assert rule.beta_1 == 0.25
    assert float(objective.generator_optimizer.learning_rate(50)) == pytest.approx(1.0)


def test_where_spikes_are_rolled_back_when_it_is_looked_at_decides() -> None:
    """So that no restart may log or save at other steps."""
    from trainer.rollback import LossSpike

    names = catalogue.registry()
    plain = names.resolve(config_files.read([], [GAN]))
    assert main._may_differ("Experiment", plain) >= {
        "Experiment.log_every",
        "Experiment.checkpoint_every",
    }
    params = ["Experiment.rollback=@LossSpike()", "LossSpike.metric='train/generator/loss'"]
    resolved = names.resolve(config_files.read([], [GAN, *params]))
    assert names.build(resolved).rollback == LossSpike(metric="train/generator/loss")
    may = main._may_differ("Experiment", resolved)
    assert {*may} == main._may_differ("Experiment", plain) - {
        "Experiment.log_every",
        "Experiment.checkpoint_every",
    }


def test_a_baseline_comes_and_goes_with_its_own_arguments() -> None:
    names = catalogue.registry()
    plain = names.resolve(config_files.read([], [GAN]))
    beside = names.resolve(config_files.read([], [GAN, "Experiment.baseline=@NGrams()"]))
    added = beside.bindings.keys() - plain.bindings.keys()
    assert {key.partition(".")[0] for key in added} == {"NGrams"}
    for old, new in ((plain, beside), (beside, plain)):
        names.compare(old, new, main._may_differ("Experiment", new), "runs/x")


@pytest.mark.parametrize("config", ["vae/mnist", "lstm/shakespeare"])
def test_data_whose_contents_are_known_may_move(config: str) -> None:
    names = catalogue.registry()
    here, there = (
        names.resolve(config_files.read([config], [f"DATA={folder!r}"])) for folder in ("a", "b")
    )
    assert here.text != there.text
    names.compare(here, there, main._may_differ("Experiment", there), "runs/x")


def test_pictures_of_which_only_the_names_are_known_may_not_move() -> None:
    names = catalogue.registry()
    here, there = (
        names.resolve(config_files.read(["vae/photos"], [f"DATA={folder!r}"]))
        for folder in ("a", "b")
    )
    with pytest.raises(ConfigError, match=r"ImageFolder\.folder is 'a' there"):
        names.compare(here, there, main._may_differ("Experiment", there), "runs/x")


def test_a_run_may_begin_to_skip_what_would_end_it() -> None:
    names = catalogue.registry()
    photos = ['DATA="photos"', "Split.source=@ImageFolder()"]
    fail, skip = (
        names.resolve(
            config_files.read(["vae/photos"], [*photos, f"ImageFolder.on_bad_record={value!r}"])
        )
        for value in ("fail", "skip")
    )
    names.compare(fail, skip, main._may_differ("Experiment", skip), "runs/x")
    other = names.resolve(config_files.read(["vae/photos"], [*photos, "ImageFolder.fit='stretch'"]))
    with pytest.raises(ConfigError, match=r"ImageFolder\.fit is 'crop' there"):
        names.compare(skip, other, main._may_differ("Experiment", other), "runs/x")


@pytest.mark.parametrize(
    ("param", "says"),
    [
        ("Adam.learning_rate=1.0", "Adam.learning_rate has no effect: set Optimizer.learning_rate"),
        (
            "Adam.clipnorm=1.0",
            "Adam.clipnorm has no effect: use Optimizer.clip_norm, which clips the reduced gradient",
        ),
        ("Adam.ema_momentum=0.5", "Adam.ema_momentum has no effect: use Phase.average"),
        ("Adam.beta1=0.5", "Adam has no parameter beta1; did you mean beta_1?"),
        (
            "Experiment.source=@Digits",
            "Experiment.source is @Digits: it must be Source (@Name()) or Unindexed (@Name()); write @Digits()",
        ),
        (
            "Experiment.transforms=@Flip()",
            "Experiment.transforms is @Flip(): it must be [Transform (@Name()), …]; write [@Flip()]",
        ),
        ("MLPEncoder.widths=200", "MLPEncoder.widths is 200: it must be [int, …]; write [200]"),
        (
            "Experiment.objective=@GAN()",
            "Experiment.objective is @GAN(): it must be a function (@Name); write @GAN",
        ),
        (
            "Optimizer.learning_rate='x'",
            "Optimizer.learning_rate is 'x': it must be float or a function (@Name)",
        ),
        (
            "Optimizer.learning_rate=@CosineDecay",
            "Optimizer.learning_rate is @CosineDecay: it must be float or a function (@Name); write @CosineDecay()",
        ),
        (
            "CosineDecay.decay_steps='100'",
            "CosineDecay.decay_steps is '100': it must be float",
        ),
        (
            "CosineDecay.warmup_target=[1.0]",
            "CosineDecay.warmup_target is [1.0]: it must be float or None",
        ),
        ("Adam.amsgrad=1", "Adam.amsgrad is 1: it must be bool"),
        (
            "PiecewiseConstantDecay.values=1.0",
            "PiecewiseConstantDecay.values is 1.0: it must be [float, …]; write [1.0]",
        ),
        ("GAN.element_spec=1", "GAN.element_spec is given by its caller: remove the binding"),
        ("Optimizer.rule=@Nadam", "@Nadam is not known; did you mean Adam?"),
        ("VAE.latent=2", "VAE.latent is never used: nothing in this configuration refers to @VAE"),
    ],
)
def test_wrong_binding_of_what_is_registered(param: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        catalogue.registry().resolve(config_files.read([], [GAN, param]))
    assert str(raised.value) == f"--gin_param {param}: {says}"
