"""A gang of workers ends together, is started again when that helps, and tells how it ended."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from clusters import launch
from clusters.gang import Gang, free_ports

STUB = pathlib.Path(__file__).with_name("stub.py")


def gang(folder: pathlib.Path, *lives: str, **fields) -> tuple[Gang, list[str]]:
    """A gang whose workers do as the words say, see stub.py, and what it notes."""
    plan, notes = folder / "plan.json", []
    plan.write_text(json.dumps([life.split() for life in lives]))
    workers = len(lives[0].split())
    fields = {"workers": workers, "least": workers, "grace": 20.0} | fields
    command = (sys.executable, str(STUB), str(plan))
    return Gang(command=command, note=notes.append, **fields), notes


def lives(folder: pathlib.Path) -> list[int]:
    """How often each worker was started."""
    return [len(path.read_text()) for path in sorted(folder.glob("lives-*"))]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("0 0", 0),
        ("0 7", 7),
        ("65 save", 65),
        ("save 70", 70),
        ("KILL save", 137),
        ("save save 75", 75),
    ],
)
def test_the_code_is_that_of_the_first_that_failed(words, code, tmp_path):
    one, _ = gang(tmp_path, words)
    assert one.run() == code
    assert lives(tmp_path) == [1] * len(words.split())


@pytest.mark.parametrize(
    ("planned", "restarts", "code", "started"),
    [
        (("75 save", "0 0"), 3, 0, 2),
        (("KILL save", "save KILL", "0 0"), 3, 0, 3),
        (("KILL save", "save 75"), 1, 75, 2),
        (("save KILL", "save KILL"), 1, 137, 2),
        (("65 save",), 3, 65, 1),  # It would be the same again.
        (("75 save",), 0, 75, 1),
    ],
)
def test_75_and_signals_start_it_again_so_often(planned, restarts, code, started, tmp_path):
    one, notes = gang(tmp_path, *planned, restarts=restarts)
    assert one.run() == code
    assert lives(tmp_path) == [started] * 2
    assert [note for note in notes if note.startswith("restart")] == [
        f"restart {i} of {restarts} with 2 workers" for i in range(1, started)
    ]


def test_an_elastic_gang_goes_on_with_fewer(tmp_path, capfd):
    """One less for each that was lost, not for one that asks to be started again, and never fewer than the least."""
    planned = ("save KILL save", "75 save", "KILL save", "KILL save", "0 0")
    one, notes = gang(tmp_path, *planned, least=2, restarts=9)
    assert one.run() == 0
    assert [int(note[-9]) for note in notes if note.startswith("restart")] == [2, 2, 2, 2]
    out = capfd.readouterr().out.splitlines()
    assert sorted(line for line in out if "life 0" in line) == [
        f"[{i}] life 0 of 3" for i in range(3)
    ]
    assert sorted(line for line in out if "life 4" in line) == [
        f"[{i}] life 4 of 2" for i in range(2)
    ]


def test_every_line_says_whose_it_is(tmp_path, capfd):
    one, notes = gang(tmp_path, "save 3")
    assert one.run() == 3
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[0] life 0 of 2", "[1] life 0 of 2"]
    assert sorted(err.splitlines()) == ["[0] no end of line", "[1] no end of line"]
    assert re.fullmatch(r"2 workers, processes \d+, \d+", notes[0])
    assert notes[1:] == ["worker 1 exited with 3: ending worker 0"]


def test_who_does_not_end_is_killed_with_its_children(tmp_path):
    one, notes = gang(tmp_path, "KILL deaf child", grace=0.3)
    began = time.monotonic()
    assert one.run() == 137
    assert time.monotonic() - began < 15
    # Worker 2 ends on SIGTERM, its child does not.
    assert notes[1] == "worker 0 was ended by SIGKILL: ending worker 1, 2"
    assert notes[2] == "worker 1 did not end in time: SIGKILL"
    assert ended(int((tmp_path / "child").read_text()))


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to ask."""
    for _ in range(200):
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


# ---------------------------------------------------------------------- signals to the launcher


@contextlib.contextmanager
def launched(folder: pathlib.Path, words: str):
    """A launcher of a gang that waits, with restarts to spare."""
    gang(folder, words)
    code = (
        "import sys; from clusters.gang import Gang; sys.exit(Gang(command=tuple(sys.argv[1:]), "
        "workers=2, least=2, restarts=3, grace=5.0, note=lambda t: print(t, flush=True)).run())"
    )
    command = [sys.executable, "-c", code, sys.executable, str(STUB), str(folder / "plan.json")]
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        numbers = re.findall(r"\d+", process.stdout.readline())[1:]
        while len(list(folder.glob("ready-0-*"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        yield process, [int(number) for number in numbers]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on_and_ends_it(number, code, tmp_path):
    with launched(tmp_path, "save save") as (process, workers):
        process.send_signal(number)
        assert process.wait(timeout=20) == code
        assert all(map(ended, workers))
    assert lives(tmp_path) == [1, 1]


def test_a_gang_goes_on_where_nobody_reads_what_it_says(tmp_path):
    """More than the pipes between hold: the workers must not wait for a reader."""
    talk = "for i in range(20000): print('a line of some length', i, flush=True)"
    program = f"""
import sys
from clusters.gang import Gang
from trainer.output import say
note = lambda text: say(text, sys.stderr)
gang = Gang(command=(sys.executable, "-c", {talk!r}), workers=2, least=2, note=note)
sys.exit(gang.run())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout and process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="a child ends with its parent on Linux alone")
def test_nobody_is_left_when_the_launcher_is_killed(tmp_path):
    with launched(tmp_path, "deaf save") as (process, workers):
        process.kill()
        assert all(map(ended, workers))


# ---------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "no --workers: say how many"),
        (["--workers=0"], "--workers=0: at least 1, and MIN <= workers <= MAX"),
        (["--elastic=3"], "--elastic=3: write MIN:MAX, such as 1:4"),
        (["--elastic=3:2"], "--workers=2 --elastic=3:2: at least 1, and MIN <= workers <= MAX"),
        (["--elastic=1:2"], "--elastic=1:2 is for restarts, and there is none: give --max_restarts"),
        (["--workers=2", "--", "train", "a", "--workdir=w", "--features=c"], "--features compares on one machine: evaluate the run afterwards on one"),
        (["--workers=2", "--max_restarts=-1"], "--max_restarts=-1: it must be at least 0"),
        (["--workers=2", "--", "train", "a", "--worker=1"], "--worker=1 is set for each worker: remove it after --"),
        (["--workers=2", "--", "train", "a", "--workdir=w", "--tpuu=1"], "unknown flag --tpuu; did you mean --tpu?"),
        (["--workers=2", "--", "train", "a", "--workdir=w", "--replicas=2"], "--hosts and --replicas exclude each other: drop one"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_once_before_anything_starts(flags, said, capsys):
    assert launch.main(flags) == 64
    assert capsys.readouterr() == ("", f"lockstep: {said}\n")


@pytest.mark.parametrize("asked", ["--help", "--version"])
def test_what_lockstep_answers_is_no_error(asked, capsys):
    assert launch.main(["--workers=2", "--", asked]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: lockstep" if asked == "--help" else "lockstep ") and not err


def test_ports_are_different_and_free():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(1024 <= port < 65536 for port in ports)
