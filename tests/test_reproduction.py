"""scripts/reproduce: which trainings and evaluations a row is, and what becomes of their numbers."""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
import runpy
import signal
import subprocess
import types

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture
def reproduce(monkeypatch, capsys):
    """Runs the program with answers of the launcher by mode; returns its commands and the line of JSON."""
    program = runpy.run_path(str(ROOT / "scripts/reproduction.py"))

    def call(arguments, answers):
        commands = []

        def start(command, stdout, text):
            mode, *given = command[command.index("trainer.main") + 1 :]
            commands.append([mode, *given])
            answer = answers[mode].pop(0) if mode in answers else None
            if isinstance(answer, int):
                return types.SimpleNamespace(returncode=answer, communicate=lambda: ("", None))
            said = f"a table\n{json.dumps(answer)}\n"
            return types.SimpleNamespace(returncode=0, communicate=lambda: (said, None))

        monkeypatch.setattr(subprocess, "Popen", start)
        program["main"](arguments)
        return commands, json.loads(capsys.readouterr().out.splitlines()[-1])

    call.program, call.rows = program, program["ROWS"]
    return call


def test_three_seeds_of_a_vae(reproduce, tmp_path):
    answers = {
        "evaluate": [{"negative_log_likelihood": nats} for nats in (87.0, 87.2, 87.4)],
        "report": [{"wall_seconds": seconds} for seconds in (60, 120, 240)],
    }
    commands, found = reproduce(
        ["vae/mnist", f"--data={tmp_path}", "--workdir=w", "--gin_param=STEPS=5"], answers
    )
    for seed in range(3):
        folder = f"--workdir=w/vae-mnist-STEPS=5-{seed}"
        train, evaluate, report = commands[3 * seed : 3 * seed + 3]
        assert train == [
            "train",
            "vae/mnist",
            f'--gin_param=DATA="{tmp_path}"',
            f"--gin_param=Experiment.seed={seed}",
            "--intra_op_threads=1",
            "--gin_param=STEPS=5",
            folder,
        ]
        assert evaluate == ["evaluate", "--gin_param=VAE.evaluation_samples=5000", folder]
        assert report == ["report", folder]
    nats, minutes = found["over seeds"].values()
    assert found["row"] == "vae/mnist"
    assert math.isclose(nats["mean"], 87.2) and math.isclose(nats["deviation"], 0.2)
    assert math.isclose(minutes["mean"], 7 / 3)


def test_a_gan_is_judged_by_a_classifier_of_the_same_data(reproduce, tmp_path):
    numbers = {"samples/frechet_distance": 11.0, "real/frechet_distance": 0.5, "other": 1}
    answers = {"evaluate": [numbers], "report": [{"wall_seconds": 60}]}
    commands, found = reproduce(["gan/fashion", f"--data={tmp_path}", "--seeds=4"], answers)
    data = f'--gin_param=DATA="{tmp_path}"'
    classifier = "runs/reproduced/classifier-mnist"
    assert commands[0] == ["train", "classifier/mnist", data, f"--workdir={classifier}"]
    assert f"--features={classifier}" in commands[2]
    assert found["seeds"]["4"] == {
        "samples/frechet_distance": 11.0,
        "real/frechet_distance": 0.5,
        "minutes": 1.0,
    }
    assert found["over seeds"]["samples/frechet_distance"] == {"mean": 11.0, "deviation": None}


def test_a_language_model_is_evaluated_on_validation_and_test(reproduce, tmp_path):
    answers = {
        "evaluate": [{"loss": 4.8, "perplexity": 121.5}, {"loss": 4.75, "perplexity": 115.5}],
        "report": [{"wall_seconds": 60}],
    }
    arguments = ["lstm/words_small", f"--data={tmp_path}/a.txt", "--seeds=0"]
    changes = [f'--gin_param=VALID="{tmp_path}/b.txt"', "--gin_param=STEPS=7"]
    (train, *evaluations, _), found = reproduce([*arguments, *changes], answers)
    assert train[1:3] == ["lstm/words_small", f'--gin_param=DATA="{tmp_path}/a.txt"']
    assert set(changes) <= set(train)
    one, test = (f"--gin_param=validation/TextStreams.{x}" for x in ("streams=1", 'part="test"'))
    assert [given[1:-1] for given in evaluations] == [[one], [one, test]]
    perplexities = {"validation/perplexity": 121.5, "test/perplexity": 115.5}
    assert found["seeds"]["0"] == {**perplexities, "minutes": 1.0}


def test_what_fails_ends_it_with_the_launchers_code(reproduce):
    with pytest.raises(SystemExit, match=r"^66$"):
        reproduce(["vae/mnist", "--data=nowhere"], {"train": [66]})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_by_the_training_alone(number, reproduce, monkeypatch):
    """Which ends with a code of its own. A terminal sends Ctrl-C to both."""
    heard = []

    class Training:
        returncode = 75

        def __init__(self, *_, **__):
            pass

        def send_signal(self, number):
            heard.append(number)

        def communicate(self):
            os.kill(os.getpid(), number)
            return None, None

    before = signal.getsignal(number)
    monkeypatch.setattr(subprocess, "Popen", Training)
    with pytest.raises(SystemExit, match=r"^75$"):
        reproduce.program["main"](["vae/mnist", "--data=x"])
    assert heard == [signal.SIGTERM] * (number == signal.SIGTERM)
    assert signal.getsignal(number) is before


def test_seeds_that_are_none(reproduce, capsys):
    with pytest.raises(SystemExit):
        reproduce(["vae/mnist", "--data=x", "--seeds=0,b"], {})
    assert "--seeds is 0,b: give whole numbers" in capsys.readouterr().err


def test_the_readme_shows_rows_of_configurations_that_exist(reproduce):
    rows = reproduce.rows
    table = README[README.index("## Reproduced") : README.index("## Several machines")]
    shown = set(re.findall(r"^\| `([a-z0-9_/]+)`", table, re.MULTILINE))
    assert shown and shown <= set(rows)
    for name in rows:
        assert (ROOT / "configs" / f"{name}.gin").exists()
