"""Nothing that is read runs code, and no secret of the environment is written down."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from tests.clusters.tiny import tiny
from trainer import main

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


@pytest.fixture
def made(tmp_path):
    """Where code that was run leaves its trace."""
    return tmp_path / "made"


def refused(capsys, code: int, *arguments: str) -> str:
    """The one line with which a command line is refused."""
    assert main.main(list(arguments)) == code
    said = capsys.readouterr().err
    assert said.startswith("lockstep: ") and said.count("\n") == 1, said
    return said


def test_the_payload_works(made):
    pickle.loads(pickle.dumps(Payload(made)))
    assert made.is_dir()


# ---------------------------------------------------------------------- data


@pytest.mark.parametrize("kind", ["npy", "npz", "pickle"])
def test_arrays_with_code_are_refused(kind, made, tmp_path, capsys):
    path = tmp_path / f"images.{'npz' if kind == 'npz' else 'npy'}"
    objects = np.array([Payload(made)] * 4, object)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(made)))
    else:
        (np.save if kind == "npy" else np.savez)(path, objects)
    config = tmp_path / "c.gin"
    config.write_text(
        "Experiment.objective = @VAE\nExperiment.source = @numpy_images()\n"
        f"numpy_images.images = '{path}'\nExperiment.global_batch = 2\nExperiment.steps = 1\n"
    )
    said = refused(capsys, 65, "train", str(config), f"--workdir={tmp_path}/run")
    assert str(path) in said
    assert not made.exists()


def test_packed_folders_with_code_are_refused(made, tmp_path):
    """Also where their index was made to fit: the array itself is of objects."""

    from input_pipeline.batches import DataError
    from input_pipeline.packed import Packed
    from input_pipeline.packed_corpus import packed_corpus

    np.save(tmp_path / "images.npy", np.array([Payload(made)] * 4, object))
    np.save(tmp_path / "train.npy", np.array([Payload(made)] * 4, object))
    (tmp_path / "tokenizer.json").write_bytes(pickle.dumps(Payload(made)))
    index = {"version": 1, "count": 4, "shape": [2, 2, 1], "classes": [], "cardinality": None}
    index |= {"vocabulary": 256}
    files = {}
    for name in ("images.npy", "train.npy", "tokenizer.json"):
        data = (tmp_path / name).read_bytes()
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for kind, read in (("images", Packed), ("text", packed_corpus)):
        text = json.dumps(index | {"format": f"lockstep {kind}", "files": files})
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(DataError):
            read(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"format": "lockstep bytes", "version": 1}')
    assert not made.exists()


def test_a_tokenizer_with_code_is_refused(made, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("some text " * 50)
    for data in (
        pickle.dumps(Payload(made)),
        b"{\"model\": \"__import__('os').mkdir('made')\"}",
        b"[1]",
    ):
        (tmp_path / "tokenizer.json").write_bytes(data)
        params = [f"DATA='{tmp_path}/a.txt'", f"text_files.tokens='{tmp_path}/tokenizer.json'"]
        bound = [f"--gin_param={param}" for param in params]
        said = refused(capsys, 65, "train", "lstm/shakespeare", *bound, f"--workdir={tmp_path}/run")
        assert "tokenizer.json" in said
    assert not made.exists()


# ---------------------------------------------------------------------- checkpoints and configurations


def test_checkpoints_with_code_are_refused(made, tmp_path, capsys):
    """A pickle, an archive of one as PyTorch writes, and a whole safetensors file whose notes are no JSON."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    path = run / "checkpoints/step-00000001.safetensors"
    (run / "config.gin").write_text((ROOT / "configs/vae/digits_mlp.gin").read_text())
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Payload(made)))
    notes = f"__import__('os').mkdir({str(made)!r})"
    forged = safetensors.numpy.save({"a": np.zeros(3)}, {"lockstep": notes, "sha256": "0"})
    for data in (pickle.dumps(Payload(made)), archive.read_bytes(), forged):
        path.write_bytes(data)
        command = ["sample", f"--workdir={run}", "--strategy=one_device"]
        assert main.main(command) == 65
        said = capsys.readouterr().err
        assert str(path) in said and "Traceback" not in said
    assert not made.exists()


def test_configurations_run_nothing(made, tmp_path, capsys, monkeypatch):
    """They name what is registered, and import nothing unasked: neither at the top, nor in what they include, nor from the workdir."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text(f"import os; os.mkdir({str(made)!r})")
    (tmp_path / "included.gin").write_text("import evil\n")
    run = f"--workdir={tmp_path}/run"
    (tmp_path / "workdir").mkdir()
    for number, text in enumerate(
        (
            "import evil\n",
            "from evil import x\n",
            "import evil as y\n",
            "include 'included.gin'\n",
            "Experiment.steps = __import__('os').mkdir('made')\n",
            "Experiment.steps = os.mkdir('made')\n",
            "Experiment.source = @os.mkdir()\n",
            "Experiment.source = @evil.x\n",
            "os.mkdir.path = 'made'\n",
            "eval.source = 'evil'\nExperiment.source = @eval()\n",
            "Experiment.source = @builtins.exec()\n",
        )
    ):
        (tmp_path / "c.gin").write_text(text)
        said = refused(capsys, 78, "train", "c.gin", run)
        assert "c.gin" in said or "included.gin" in said, (number, said)
    (tmp_path / "workdir/config.gin").write_text("import evil\n")
    assert "import" in refused(capsys, 78, "train", f"--workdir={tmp_path}/workdir")
    assert "import" in refused(capsys, 78, "train", "vae/digits", "--gin_param=import evil", run)
    assert not made.exists() and "evil" not in sys.modules


OWN = """
from models.mlp import MLPEncoder

class NarrowEncoder(MLPEncoder):
    def __init__(self, shape, outputs, *, noise, name, width: int = 8):
        super().__init__(shape, outputs, noise=noise, name=name, widths=(width,))

def _hidden():
    raise AssertionError
"""


OWN_CONFIG = """
import own_networks
Experiment.objective = @VAE
Experiment.source = @Digits()
Experiment.validation = @Digits()
Experiment.global_batch = 64
Experiment.steps = 2
VAE.encoder = @NarrowEncoder
VAE.decoder = @MLPDecoder
VAE.latent = 2
NarrowEncoder.width = 5
MLPDecoder.widths = (8,)
"""


def test_modules_are_imported_where_that_is_allowed(tmp_path, capsys, monkeypatch):
    """A network of the user's own is named after its import, in the run's configuration too, and each use must allow it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_networks.py").write_text(OWN)
    config = tmp_path / "own.gin"
    config.write_text(OWN_CONFIG)
    own = ["--strategy=one_device", f"--workdir={tmp_path}/run"]
    said = refused(capsys, 78, "train", str(config), *own)
    assert said == (
        f"lockstep: {config}:2: import own_networks would run the module's code: if you trust it, give --allow_imports\n"
    )
    assert "own_networks" not in sys.modules
    assert main.main(["train", str(config), "--allow_imports", *own]) == 0, capsys.readouterr().err
    saved = (tmp_path / "run/config.gin").read_text()
    assert saved.startswith("import own_networks\n") and "NarrowEncoder.width = 5\n" in saved
    weights = safetensors.numpy.load_file(next((tmp_path / "run/checkpoints").glob("step-*2.*")))
    assert weights["encoder/hidden_0/kernel"].shape == (64, 5)
    capsys.readouterr()
    assert "--allow_imports" in refused(capsys, 78, "evaluate", f"--workdir={tmp_path}/run")
    assert main.main(["evaluate", "--allow_imports", f"--workdir={tmp_path}/run"]) == 0
    config.write_text("import nowhere.at_all\n")
    assert refused(capsys, 78, "train", str(config), "--allow_imports", *own) == (
        f"lockstep: {config}:1: nowhere.at_all cannot be imported (ModuleNotFoundError: No module named 'nowhere'): "
        "mend it, or put its folder in PYTHONPATH\n"
    )


# ---------------------------------------------------------------------- secrets

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI-secret-1",
    "MY_TOKEN": "ghp-secret-2",
    "LOCKSTEP_PASSWORD": "hunter2-secret-3",
}
COMMANDS = """
import os, sys
from trainer import main
workdir, *tiny = sys.argv[1:]
train = ["train", "vae/digits_mlp", "--strategy=one_device", f"--workdir={workdir}/run"]
codes = [main.main([*train, *tiny])]
codes.append(main.main(["report", f"--workdir={workdir}/run"]))
codes.append(main.main(["doctor", f"--workdir={workdir}/run"]))
codes.append(main.main(["sample", f"--workdir={workdir}/run", "--count=1", "--strategy=one_device"]))
from trainer.checkpoint import Checkpoints
def broken(self, *args, **options):
    raise RuntimeError("with a traceback")
Checkpoints.save = broken
train[-1] = f"--workdir={workdir}/broken"
codes.append(main.main([*train, *tiny]))
print(codes, file=sys.stderr)
"""


def test_no_secret_of_the_environment_is_written(tmp_path):
    """By a training, one that fails with a traceback, and what looks at the machine: in no file, and in no output."""
    command = [sys.executable, "-c", COMMANDS, str(tmp_path), *tiny(steps=2, checkpoint_every=1)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | SECRETS, capture_output=True)
    assert done.stderr.endswith(b"[0, 0, 0, 0, 70]\n"), done.stderr[-2000:]
    assert b"with a traceback" in done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.gin", "run.json", "events.jsonl", "metrics.jsonl"} <= {p.name for p in files}
    failed = json.loads((tmp_path / "broken/events.jsonl").read_text().splitlines()[-1])
    assert (failed["event"], failed["error"]) == ("failed", "RuntimeError")
    for where, text in [
        ("output", done.stdout + done.stderr),
        *((p, p.read_bytes()) for p in files),
    ]:
        for name, value in SECRETS.items():
            assert value.encode() not in text, (where, name)
