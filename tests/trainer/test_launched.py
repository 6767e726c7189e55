"""The launcher on real runs: what it prints is what the trainer computes, and a signal ends it as it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from input_pipeline.images import Images
from input_pipeline.packing import pack
from trainer import catalogue, config_files, main, pictures
from trainer.exits import NoPermission
from trainer.hardware import Hardware

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "vae/digits_mlp --strategy=one_device --gin_param=MLPEncoder.widths=(8,) "
    "--gin_param=MLPDecoder.widths=(8,) --gin_param=VAE.latent=2 --gin_param=Experiment.samples=9 "
).split()


# ---------------------------------------------------------------------- evaluate and sample


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps, with a checkpoint at each."""
    folder = tmp_path_factory.mktemp("launched") / "run"
    often = [f"--gin_param=Experiment.{name}_every=1" for name in ("evaluate", "checkpoint")]
    code = main.main(["train", *TINY, *often, "--gin_param=STEPS=2", f"--workdir={folder}"])
    assert code == 0
    assert json.loads((folder / "DONE").read_text()) == {"steps": 2}
    return folder


@pytest.fixture(scope="module")
def evaluated(run: Path) -> Callable[[str], tuple[int, dict[str, float]]]:
    """Step and metrics of a checkpoint, by the trainer itself."""
    from trainer.trainer import Trainer

    names = catalogue.registry()
    experiment = names.build(names.resolve(config_files.read([str(run / "config.gin")])))
    trainer = Trainer(experiment, Hardware(strategy="one_device"), run, note=lambda line: None)
    return lambda which: (trainer.restore(which), trainer.evaluate())


@pytest.mark.parametrize("which", ["last", "best", "1"])
def test_evaluate_prints_what_the_trainer_computes(
    run: Path, evaluated, which: str, capsys: pytest.CaptureFixture
) -> None:
    command = ["evaluate", f"--workdir={run}", f"--checkpoint={which}", "--strategy=one_device"]
    assert main.main(command) == 0
    out, said = capsys.readouterr()
    assert said == ""
    printed = json.loads(out.splitlines()[-1])
    step, metrics = evaluated(which)
    assert step == {"last": 2, "best": 2, "1": 1}[which]  # two steps do improve it
    assert printed == {"step": step, **metrics}
    assert "negative_elbo" in metrics
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["step"] == step)["metrics"]
    assert row["eval/negative_elbo"] == pytest.approx(printed["negative_elbo"], rel=1e-6)


def test_sample_leaves_the_picture_that_it_names(run: Path, capsys: pytest.CaptureFixture) -> None:
    pictures = {}
    for which, step in (("last", 2), ("1", 1)):
        command = ["sample", f"--workdir={run}", f"--checkpoint={which}", "--seed=7", "--count=4"]
        assert main.main([*command, "--strategy=one_device"]) == 0
        tables = ("interpolations", "reconstructions", "traversals")
        path, *others = (
            run / f"samples/step-{step:08d}-{name}.png" for name in ("seed-7", *tables)
        )
        said = "".join(f"{path}\n" for path in (path, *others))
        assert capsys.readouterr() == (said, "")
        assert all(other.exists() for other in others)
        pictures[step] = np.asarray(Image.open(path))
    assert main.main(["train", "--strategy=one_device", f"--workdir={run}"]) == 0
    assert f"{run}/samples/step-00000002.png" in capsys.readouterr().out  # Not the one of above.
    assert pictures[1].shape == pictures[2].shape
    assert (pictures[1] != pictures[2]).any()


def test_pictures_as_an_array(run: Path, text_run: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["sample", f"--workdir={run}", "--seed=8", "--count=4", "--array"]
    assert main.main([*command, "--strategy=one_device"]) == 0
    path = run / "samples/step-00000002-seed-8.npy"
    assert capsys.readouterr().out.splitlines()[1] == str(path)
    array = np.load(path)
    assert array.dtype == np.uint8 and array.shape == (4, 8, 8, 1)
    assert pictures.png(pictures.grid(array)) == path.with_suffix(".png").read_bytes()
    command = ["sample", f"--workdir={text_run}", "--array", "--strategy=one_device"]
    assert main.main(command) == 64
    assert capsys.readouterr().err == (
        "lockstep: --array is for pictures, which LanguageModel draws none of: remove it\n"
    )


def test_results_are_shown_where_nothing_can_be_written(
    run: Path, text_run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(folder: Path) -> None:
        raise NoPermission(f"workdir {folder} may not be written")

    monkeypatch.setattr(main.workdir, "prepare", prepare)
    command = ["sample", f"--workdir={text_run}", "--count=2", "--strategy=one_device"]
    assert main.main(command) == 77
    out, err = capsys.readouterr()
    assert len(out) > 60 and err.endswith("samples may not be written\n")


def test_a_checkpoint_that_is_not_there(run: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["evaluate", f"--workdir={run}", "--checkpoint=7", "--strategy=one_device"]
    assert main.main(command) == 64
    assert capsys.readouterr() == (
        "",
        f"lockstep: no checkpoint 7 in {run / 'checkpoints'}: choose last, best or one of 1, 2\n",
    )


# ---------------------------------------------------------------------- texts


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of a tiny language model."""
    folder = tmp_path_factory.mktemp("launched") / "text"
    tiny = ["LSTMNetwork.widths=(8,)", "LSTMNetwork.embedding=4", "Decoding.length=30"]
    tiny += ["STEPS=2", "Experiment.samples=1", "Experiment.evaluate_every=0"]
    tiny += ["Experiment.best_metric=None"]
    bound = [f"--gin_param={param}" for param in tiny]
    command = ["train", "lstm/pydoc", f"--workdir={folder}", "--strategy=one_device", *bound]
    assert main.main(command) == 0
    return folder


def sampled(capsys: pytest.CaptureFixture, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, the page of texts on stdout, and stderr."""
    capsys.readouterr()
    command = ["sample", f"--workdir={folder}", "--strategy=one_device", "--seed=3", *arguments]
    code = main.main(command)
    out, said = capsys.readouterr()
    path = Path(out.splitlines()[-1]) if code == 0 else None
    page = path.read_text() if path else ""
    assert out == (f"{page}\n{path}\n" if code == 0 else "")
    return code, page, said


def drawn_by_the_library(folder: Path, prompt: str | None, *params: str) -> list[str]:
    trainer, _ = main.restored(folder, Hardware(strategy="one_device"), gin_params=params)
    return trainer.sample(3, 3, prompt)


def test_flags_of_decoding_are_parameters_of_the_configuration(
    text_run: Path, capsys: pytest.CaptureFixture
) -> None:
    how = ["temperature=1.5", "top_k=50", "top_p=0.9", "repetition_penalty=1.1", "length=21"]
    given = [f"--{one}" for one in how]
    code, page, said = sampled(capsys, text_run, "--prompt=The if ", "--count=3", *given)
    assert (code, said) == (0, "")
    texts = drawn_by_the_library(text_run, "The if ", *(f"Decoding.{one}" for one in how))
    assert page == pictures.page(texts)
    assert all(text.startswith("The if ") and len(text) == 7 + 21 for text in texts)
    _, other, _ = sampled(capsys, text_run, "--prompt=The if ", "--count=3", "--length=21")
    assert other != page


def test_a_search_takes_the_place_of_the_configured_draws(
    text_run: Path, capsys: pytest.CaptureFixture
) -> None:
    """lstm/pydoc has a temperature."""
    code, page, said = sampled(capsys, text_run, "--beams=3", "--count=3", "--length=4")
    assert (code, said) == (0, "")
    params = ["Decoding.beams=3", "Decoding.length=4", "Decoding.temperature=1.0"]
    texts = drawn_by_the_library(text_run, None, *params)
    assert page == pictures.page(texts)
    assert len(set(texts)) == 3


@pytest.mark.parametrize("count", [1, 3])
def test_the_first_text_grows_on_a_terminal(
    count: int, text_run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, page, _ = sampled(capsys, text_run, "--prompt=The if ", f"--count={count}")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    command = f"sample --workdir={text_run} --strategy=one_device --seed=3 --count={count}".split()
    assert main.main([*command, "--prompt=The if "]) == 0
    # One alone has no number.
    text = page.removeprefix("=== 1/1 ===\n")
    out, said = capsys.readouterr()
    path = Path(out.splitlines()[-1])
    assert (out, said) == (f"{text}\n{path}\n", "")
    assert path.read_text() == page


def test_texts_that_were_drawn_before_stay(text_run: Path, capsys: pytest.CaptureFixture) -> None:
    """Of the same seed in another way; the same again is the same file."""
    paths, folder = [], text_run / "samples"
    for prompt in ("if", "while", "while", "if"):
        command = (
            f"sample --workdir={text_run} --strategy=one_device --seed=11 --count=1 --length=3"
        )
        assert main.main([*command.split(), f"--prompt={prompt}"]) == 0
        paths.append(Path(capsys.readouterr().out.splitlines()[-1]))
        assert f"\n{prompt}" in paths[-1].read_text()
    first, second = (folder / f"step-00000002-seed-11{ending}.txt" for ending in ("", "-2"))
    assert paths == [first, second, second, first]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            "--prompt=Œuvre",
            64,
            "the prompt cannot be encoded: the character 'Œ' at position 0 is not among the ",
        ),
        ("--top_p=0", 64, "--top_p=0: it must be from 1e-06 to 1\n"),
        ("--beams=1000", 78, "Decoding.beams is 1000: it must be at most "),
    ],
)
def test_texts_that_cannot_be_drawn(
    text_run: Path, capsys: pytest.CaptureFixture, arguments: str, code: int, says: str
) -> None:
    found, _, said = sampled(capsys, text_run, arguments)
    assert found == code
    assert said.startswith(f"lockstep: {says}") and said.count("\n") == 1


def test_models_that_draw_no_texts(run: Path, capsys: pytest.CaptureFixture) -> None:
    for flag, says in {
        "--temperature=0.5": (
            f"--temperature is for models that draw texts, and the configuration of {run} has no @Decoding(): remove it"
        ),
        "--prompt=a": "VAE goes on from no prompt: leave it out, it is for models that draw texts",
    }.items():
        assert main.main(["sample", f"--workdir={run}", "--strategy=one_device", flag]) == 64
        assert capsys.readouterr() == ("", f"lockstep: {says}\n")


# ---------------------------------------------------------------------- SIGTERM


def launch(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.main", "train", *TINY, f"--workdir={folder}", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    endless = ["--gin_param=STEPS=1000000", "--gin_param=Experiment.checkpoint_every=1000000"]
    endless += [
        "--gin_param=Experiment.evaluate_every=0",
        "--gin_param=Experiment.best_metric=None",
    ]

    # While it is made: TensorFlow is being imported, or the networks built.
    process = launch(folder, *endless)
    maps = Path(f"/proc/{process.pid}/maps")
    wait_for(process, lambda: not maps.exists() or "tensorflow" in maps.read_text(errors="replace"))
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=120)
    assert (process.returncode, out) == (75, "")
    assert said.splitlines()[-1] == (
        "lockstep: stopped before the training began: start the same command again"
    )
    assert "Traceback" not in said
    assert not (folder / "checkpoints").exists()

    # While it trains: the first row of metrics is there.
    process = launch(folder, *endless)
    rows = folder / "metrics.jsonl"
    wait_for(process, lambda: rows.exists() and rows.stat().st_size > 0)
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=120)
    assert (process.returncode, out) == (75, "")
    assert said.splitlines()[-1] == (
        f"lockstep: preempted and saved in {folder}: start the same command again to go on"
    )
    (checkpoint,) = os.listdir(folder / "checkpoints")
    step = int(checkpoint.removeprefix("step-").removesuffix(".safetensors"))
    assert step >= 250  # the first row

    # The same again, with an end that is near.
    near = f"--gin_param=Experiment.steps={step + 5}"
    process = launch(folder, *endless, near, "--intra_op_threads=1")
    out, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    cluster = "OneDeviceStrategy, 1 × CPU, 1 thread an operation, XLA off"
    assert f"going on from step {step} on {cluster}\n" in said
    assert out.splitlines()[0] == f"samples:    {folder}/samples/step-{step + 5:08d}.png"
    assert json.loads((folder / "DONE").read_text()) == {"steps": step + 5}


SLOW = """
import time
import numpy as np
import tensorflow as tf
from input_pipeline.batches import DataError, Feature

class Slow:
    element_spec = {"image": Feature((8, 8, 1), "float32")}
    inexact = None

    def __init__(self, bad=None):
        self.bad = bad

    def __len__(self):
        return 64

    def decode(self, samples):
        return np.zeros([len(samples), 8, 8, 1], np.uint8)

    def read(self, ids):
        image = tf.numpy_function(self._read, [ids], tf.float32, stateful=False)
        return {"image": tf.ensure_shape(image, [None, 8, 8, 1])}

    def _read(self, ids):
        time.sleep(0.2)
        if self.bad in ids:
            raise DataError(f"example {self.bad} is bad: mend it")
        return np.zeros([len(ids), 8, 8, 1], np.float32)
"""


@pytest.mark.parametrize(("bad", "code"), [(None, 0), (37, 65)])
def test_a_run_ends_while_examples_are_being_read(bad: int | None, code: int, tmp_path: Path):
    """In a process that ends, Python functions of tf.data run no more, for which its iterators would wait."""
    (tmp_path / "slow.py").write_text(SLOW)
    config = tmp_path / "slow.gin"
    config.write_text(
        f"""import slow
include 'vae/digits_mlp.gin'
Experiment.source = @Slow()
Slow.bad = {bad}
Experiment.validation = None
Experiment.evaluate_every = 0
Experiment.best_metric = None
Experiment.global_batch = 2
MLPEncoder.widths = (8,)
MLPDecoder.widths = (8,)
Experiment.samples = 0
"""
    )
    command = [sys.executable, "-m", "trainer.main", "train", str(config), "--allow_imports"]
    command += [
        "--strategy=one_device",
        f"--workdir={tmp_path}/run",
        f"--gin_param=STEPS={9 if bad is None else 90}",
    ]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == code, done.stderr
    if code:
        assert done.stderr.endswith("lockstep: example 37 is bad: mend it\n")


# ---------------------------------------------------------------------- a user's own pictures


def test_a_folder_of_pictures_trains_until_one_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What was saved before stays, and the run goes on where it is skipped, which is recorded, and once the picture is mended."""
    for number in range(6):
        grey = np.full((8, 8), 40 * number, np.uint8)
        Image.fromarray(grey).save(tmp_path / f"{number}.png")
    folder, whole = tmp_path / "run", (tmp_path / "3.png").read_bytes()
    config = tmp_path / "pictures.gin"
    config.write_text(
        f"""include 'gan/digits.gin'
Experiment.source = @ImageFolder()
ImageFolder.folder = '{tmp_path}'
ImageFolder.channels = 1
Experiment.global_batch = 2
Experiment.checkpoint_every = 1
Experiment.samples = 4
ConvolutionalDecoder.width = 4
ConvolutionalEncoder.width = 4
ConvolutionalDecoder.group = 2
ConvolutionalEncoder.group = 2
"""
    )
    command = ["train", str(config), f"--workdir={folder}", "--strategy=one_device"]
    assert main.main([*command, "--gin_param=STEPS=2"]) == 0
    (tmp_path / "3.png").write_bytes(whole[:40])
    capsys.readouterr()
    assert main.main([*command, "--gin_param=Experiment.steps=9", "--gin_param=STEPS=2"]) == 65
    said = capsys.readouterr().err
    assert said.endswith(
        f"lockstep: {tmp_path}/3.png cannot be read (it is no picture, or damaged): mend or replace it\n"
    )
    assert "Traceback" not in said
    assert (folder / "checkpoints/step-00000002.safetensors").is_file()
    skip = ["--gin_param=ImageFolder.on_bad_record='skip'", "--gin_param=STEPS=2"]
    assert main.main([*command, "--gin_param=Experiment.steps=6", *skip]) == 0
    assert f"skipped: {tmp_path}/3.png cannot be read" in capsys.readouterr().err
    happened = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    bad = [event["file"] for event in happened if event["event"] == "bad_record"]
    assert bad == [f"{tmp_path}/3.png"]
    (tmp_path / "3.png").write_bytes(whole)
    assert main.main([*command, "--gin_param=Experiment.steps=9", "--gin_param=STEPS=2"]) == 0
    assert json.loads((folder / "DONE").read_text()) == {"steps": 9}


CLASSIFIER = """Experiment.objective = @Classifier
Experiment.global_batch = 2
Experiment.steps = 1
Experiment.samples = 0
Classifier.encoder = @MLPEncoder
MLPEncoder.widths = (4,)
"""


def dry_run(folder: Path, *lines: str) -> list[str]:
    """The command that says what a classifier's training would do, with these lines in its configuration."""
    config = folder / "classifier.gin"
    config.write_text(CLASSIFIER + "\n".join(lines))
    return ["train", str(config), "--strategy=one_device", "--dry_run"]


@pytest.mark.parametrize(
    ("held_out", "side", "more", "code", "says"),
    [
        (
            ["1.png"],
            8,
            [],
            65,
            'held-out examples have no feature "label", which Classifier evaluates with and training examples have: give '
            "Experiment.validation one that has it",
        ),
        (
            ["cat/1.png", "owl/1.png"],
            8,
            [],
            65,
            'label 1 is "owl" of held-out examples, and "dog" of training ones: give both the same classes, folders of the '
            "same names with at least one picture in each",
        ),
        (
            ["cat/1.png"],
            6,
            [],
            65,
            'feature "image" of held-out examples is float32 [6, 6, 1], and of training ones float32 [8, 8, 1]: make them '
            "alike, by the arguments of Experiment.validation or by Experiment.validation_transforms",
        ),
        (
            ["cat/1.png"],
            8,
            ["Experiment.validation_transforms = [@CentreCrop()]", "CentreCrop.size = 9"],
            78,
            'CentreCrop.size is 9×9, and feature "image" is 8×8: take a smaller size, or Resize before',
        ),
    ],
    ids=["not labelled", "other classes", "another size", "transforms"],
)
def test_held_out_pictures_that_do_not_fit_are_said_at_the_start(
    held_out, side, more, code, says, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Not at the first evaluation, which may be hours later."""
    written = {f"train/{name}/1.png": 8 for name in ("cat", "dog", "owl")}
    written |= {f"held_out/{name}": side for name in held_out}
    for name, length in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((length, length), np.uint8)).save(tmp_path / name)
    command = dry_run(
        tmp_path,
        "Experiment.source = @train/ImageFolder()",
        "Experiment.validation = @held_out/ImageFolder()",
        f"train/ImageFolder.folder = '{tmp_path}/train'",
        f"held_out/ImageFolder.folder = '{tmp_path}/held_out'",
        *more,
    )
    assert main.main(command) == code
    assert capsys.readouterr().err == f"lockstep: {says}\n"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            ["Experiment.source = @idx_images()", "idx_images.images = 'FOLDER/images'"],
            "FOLDER/images is no idx file (it begins with 89504e47, not with 0000, a type and the number of dimensions): "
            "name one such as train-images-idx3-ubyte.gz",
        ),
        (
            ["Experiment.source = @Packed()", "Packed.folder = 'FOLDER/packed'"],
            "by index.json: it was altered, copy or convert it again",
        ),
        (
            ["Experiment.source = @TFRecords()", "TFRecords.files = 'FOLDER/images'"],
            "FOLDER/images is no TFRecord file, or was altered at record 0: write it again",
        ),
    ],
    ids=["idx", "packed", "records"],
)
def test_data_that_are_damaged_are_said_at_the_start(
    lines, says, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images", "PNG")
    pack(Images(np.zeros((3, 8, 8), np.uint8), np.arange(3)), f"{tmp_path}/packed")
    damaged = tmp_path / "packed/images.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    command = dry_run(tmp_path, *(line.replace("FOLDER", str(tmp_path)) for line in lines))
    assert main.main(command) == 65
    said = capsys.readouterr().err
    assert said.startswith(f"lockstep: {tmp_path}/") and said.count("\n") == 1
    assert said.endswith(f"{says}\n".replace("FOLDER", str(tmp_path)))


def test_pictures_without_classes_for_a_model_of_classes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"pictures/{i}.png")
    command = dry_run(
        tmp_path,
        "Experiment.source = @ImageFolder()",
        f"ImageFolder.folder = '{tmp_path}/pictures'",
    )
    assert main.main(command) == 78
    assert capsys.readouterr().err == (
        "lockstep: a Classifier predicts labels, but the data has image but no label: give the source labels (a folder of pictures has "
        "a sub-folder for each class, arrays have labels, records label and classes)\n"
    )


def test_a_stream_trains_on_two_replicas_goes_on_and_is_said_to_be_inexact(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for shard in range(2):
        with tf.io.TFRecordWriter(f"{tmp_path}/train-{shard}") as writer:
            for number in range(8):
                pixels = tf.train.BytesList(value=[bytes([16 * number] * 64)])
                feature = {"image": tf.train.Feature(bytes_list=pixels)}
                record = tf.train.Example(features=tf.train.Features(feature=feature))
                writer.write(record.SerializeToString())
    config, folder = tmp_path / "stream.gin", tmp_path / "run"
    config.write_text(
        f"""Experiment.objective = @VAE
Experiment.source = @StreamedTFRecords()
Experiment.global_batch = 4
Experiment.samples = 4
StreamedTFRecords.files = '{tmp_path}/train-*'
StreamedTFRecords.image = 'image'
StreamedTFRecords.shape = (8, 8, 1)
StreamedTFRecords.buffer = 5
"""
    )
    command = ["train", str(config), f"--workdir={folder}"]
    command += ["--strategy=mirrored", "--replicas=2"]
    for steps, how in (
        (3, "training on MirroredStrategy, 2 ×"),
        (5, "going on from step 3 on Mir"),
    ):
        assert main.main([*command, f"--gin_param=Experiment.steps={steps}"]) == 0
        said = capsys.readouterr().err
        assert how in said and said.count("not exact") == 1
        assert (
            f"not exact: {tmp_path}/train-* is read as a stream, shuffled within 5 records" in said
        )
        assert json.loads((folder / "DONE").read_text()) == {"steps": steps}
    for held_out in ("@StreamedTFRecords()", "@Split()"):
        more = [f"--gin_param=Experiment.validation={held_out}"]
        more += ["--gin_param=Split.source=@StreamedTFRecords()"] * (held_out == "@Split()")
        more += ["--gin_param=Experiment.steps=1", "--dry_run"]
        assert main.main(["train", str(config), *more]) == 65
        assert (
            f"lockstep: {tmp_path}/train-* is read as a stream, of which" in capsys.readouterr().err
        )
    os.truncate(tmp_path / "train-1", 100)
    assert main.main([*command, "--gin_param=Experiment.steps=60"]) == 65
    said = capsys.readouterr().err
    assert said.endswith(
        f"lockstep: {tmp_path}/train-1 was cut off within record 1: copy or write it again\n"
    )
    assert "Traceback" not in said
