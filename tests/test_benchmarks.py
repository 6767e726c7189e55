"""scripts/benchmark: what its programs count, and that they run beside the trainer as it is."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import struct
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "scripts/benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for programs in that folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def program(name: str) -> ModuleType:
    """That of scripts/benchmark, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    from measuring import pytorch

    monkeypatch.setattr(pytorch, "installed", lambda: False)


def last_line(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


def test_operations_of_an_lstm() -> None:
    from measuring import flops

    # By hand: gates of 4 · 2 from 3 + 2 numbers, then of 4 · 5 from 2 + 5; 7 logits from 5.
    assert flops.lstm_layers(3, [2]) == 6 * 4 * 2 * 5
    assert flops.lstm_layers(3, [2, 5]) == 6 * (4 * 2 * 5 + 4 * 5 * 7)
    assert flops.lstm_language_model(3, [2, 5], 7) == 6 * (4 * 2 * 5 + 4 * 5 * 7 + 5 * 7)
    # Of the size that is measured: 20.6 million a character.
    assert flops.lstm_language_model(128, (512, 512), 65) == 20_646_912
    assert flops.square_product(10) == 2_000


def test_each_token_meets_each_weight_of_a_matrix_once() -> None:
    """Six operations of training for each, but for the embedding, which is looked up."""
    from measuring import flops

    from input_pipeline.noise import Noise
    from models.lstm_network import LSTMNetwork

    network = LSTMNetwork(
        7, noise=Noise(0, "weights", rows=1), name="network", embedding=3, widths=(2, 5)
    )
    sizes = {v.path: v.shape for v in network.trainable_variables if len(v.shape) == 2}
    products = sum(a * b for path, (a, b) in sizes.items() if not path.endswith("embedding"))
    assert flops.lstm_language_model(3, (2, 5), 7) == 6 * products


def test_rounds_are_taken_in_turn_and_compared_in_pairs(capsys: pytest.CaptureFixture) -> None:
    from measuring import rounds

    order: list[str] = []

    def contestant(name: str):
        def run() -> rounds.Cost:
            order.append(name)
            return rounds.Cost(len(order), 2 * len(order))

        return run

    costs = rounds.take_turns({"b": contestant("b"), "a": contestant("a")}, 3)
    assert "".join(order) == "baabba"
    assert [cost.seconds for cost in costs["a"]] == [2, 3, 6]
    assert [cost.seconds for cost in costs["b"]] == [1, 4, 5]
    # 1/2, 4/3 and 5/6 of the other's time: not 4/3, the ratio of the medians.
    ratios = rounds.compare(costs, "a", "b")
    assert ratios == pytest.approx({"ratio": 5 / 6, "ratio_of_best": 1 / 2})
    assert rounds.compared(ratios).startswith("0.83 times as fast")
    assert (rounds.best(costs["b"]), rounds.median(costs["b"])) == (1, 4)
    assert rounds.processor(costs["b"]) == 8
    assert "round 3 of 3" in capsys.readouterr().err


def test_lstm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Of small sizes: each row is there, and its figures fit together."""
    without_pytorch(monkeypatch)
    tiny = "--gin_param=STREAMS=4 --gin_param=WINDOW=8 --gin_param=LSTMNetwork.widths=(16,16)"
    lstm = program("lstm")
    layers = 6 * 4 * 16 * (128 + 16 + 16 + 16)
    for arguments, precision, operations in (
        (["--precision=float32"], "float32", layers + 6 * 16 * 65),
        (["--precision=bfloat16", "--layer"], "bfloat16", layers),
    ):
        lstm.main([*tiny.split(), "--rounds=2", "--steps=1", "--side=64", *arguments])
        out, err = capsys.readouterr()
        assert 'pip install -e ".[benchmark]"' in err
        found = last_line(out)
        peak = found[f"peak {precision}"]["flops_per_second"]
        for framework in ("lockstep", "Keras"):
            row = found[f"{framework} {precision}"]
            rate = row["flops_per_second"]
            assert rate == pytest.approx(row["best_tokens_per_second"] * operations)
            assert row["share_of_peak"] == pytest.approx(rate / peak)
            assert 0 < row["tokens_per_second"] <= row["best_tokens_per_second"]
            assert f"{framework} {precision}" in out
        assert found[f"lockstep / Keras {precision}"]["ratio"] > 0
        assert len(found) == 4


def test_other_ways_compute_our_layer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Outputs and gradients of two layers; and they are beside ours in the table."""
    lstm = program("lstm")
    settings = {"streams": 3, "window": 5, "embedding": 4, "widths": (6, 7)}
    drawn = {4: np.ones([3, 5, 4]) / 7, 7: np.ones([3, 5, 7])}
    with monkeypatch.context() as patch:
        patch.setattr(
            lstm.tf.random, "normal", lambda shape: lstm.tf.constant(drawn[shape[-1]], "float32")
        )
        ours, *others = (
            lstm.layers_step(way, settings, "float32", xla=False)()
            for way in ("lockstep", "block", "chunks", "loop", "unrolled")
        )
    assert np.abs(ours).min() > 1e-5
    for other in others:
        np.testing.assert_allclose(other, ours, rtol=1e-4)
    tiny = "--gin_param=STREAMS=4 --gin_param=WINDOW=8 --gin_param=LSTMNetwork.widths=(16,16)"
    command = [*tiny.split(), "--rounds=1", "--steps=1", "--side=64", "--only=lockstep"]
    others = [f"--only={way}" for way in lstm.RECURRENCES]
    lstm.main([*command, *others, "--layer", "--precision=float32"])
    found = last_line(capsys.readouterr().out)
    for way in ("block", "chunks", "loop", "unrolled"):
        assert found[f"{way} float32"]["tokens_per_second"] > 0
        assert found[f"lockstep / {way} float32"]["ratio"] > 0
    with pytest.raises(SystemExit, match="2"):
        lstm.main(["--only=block", "--layer"])
    assert "--only=block is a layer in float32: add --layer" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"LSTMNetwork.widths is \(8, 16\): layers of PyTorch's"):
        lstm.main(["--gin_param=LSTMNetwork.widths=(8,16)"])


def test_transformer(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Trained to the end by itself, where PyTorch is not installed; its loss is that of the trainer's own evaluation."""
    without_pytorch(monkeypatch)
    transformer = program("transformer")
    # Other tests have begun with TensorFlow's threads.
    monkeypatch.setattr(transformer, "side_by_side", lambda batch: {"microbatch": batch // 2})
    with pytest.raises(SystemExit, match="2"):
        transformer.main(["--full"])
    text = tmp_path / "text.txt"
    text.write_text("ab" * 5000)
    values = """STEPS=40 TransformerNetwork.layers=1 TransformerNetwork.width=8 TransformerNetwork.heads=2
        CosineDecay.warmup_steps=1 CosineDecay.warmup_target=0.05"""
    parameters = [f"--gin_param={value}" for value in values.split()]
    arguments = ["--full", f"--data={text}", *parameters]
    with pytest.raises(SystemExit, match="--steps=7 does not divide 40 steps"):
        transformer.main([*arguments, "--steps=7"])
    transformer.main(arguments)
    out, err = capsys.readouterr()
    assert 'pip install -e ".[benchmark]"' in err
    row = last_line(out)["lockstep"]
    # From ln 2 for one of two characters.
    assert 0 < row["nats"] < 0.6
    assert 0 < row["best_milliseconds_per_step"] <= row["milliseconds_per_step"]
    assert "2 rounds of 20 steps" in out


def test_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Each source is there; memory does not grow with the set, nor time with the index."""
    without_pytorch(monkeypatch)
    inputs = program("input")
    monkeypatch.setattr(inputs, "SMALL", (64, 28, 28, 1))
    tiny = (
        "--pictures=40 --photographs=8 --side=16 --batch=8 --rounds=1 --seconds=0.05 --sizes 200000"
    )
    inputs.main(tiny.split())
    out, err = capsys.readouterr()
    assert 'pip install -e ".[benchmark]"' in err
    rates = dict(re.findall(r"^ *(.+): +([\d,]+) images/s", out, re.MULTILINE))
    assert set(rates) == {
        "ImageFolder",
        "ImageFolder, no cache",
        "TensorFlowDataset, no cache",
        "Keras",
        "Keras, cached",
        "ImageFolder of photographs",
        "ImageFolder of photographs, no cache",
        "Keras of photographs",
        "TFRecords, no cache",
        "StreamedTFRecords",
        "Packed",
        "Images",
        "Packed 28×28",
        "Images 28×28",
    }
    assert all(int(rate.replace(",", "")) > 0 for rate in rates.values())
    # The set has 12 MiB of pictures.
    own = re.search(r" 200,000 packed 8×8 pictures, 400 batches: (-?[\d.]+) MiB", out)
    assert own and float(own[1]) < 8
    seconds = re.findall(r"100,000,000 ids, first batch from step [\d,]+ on: ([\d.]+) s", out)
    assert len(seconds) == 3 and max(map(float, seconds)) < 2


def test_dcgan(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Both models of a small set are judged, the tutorial's after the time that is asked for."""
    from trainer.main import main

    random = np.random.default_rng(0)
    for part, count in (("train", 32), ("t10k", 12)):
        for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            head = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
            data = random.integers(0, 256 if len(shape) > 1 else 10, shape, np.uint8)
            (tmp_path / f"{part}-{kind}-ubyte").write_bytes(head + data.tobytes())
    values = ["STEPS=1", f"DATA='{tmp_path}'", "ConvolutionalEncoder.width=4"]
    small = ["--strategy=one_device", *(f"--gin_param={value}" for value in values)]
    decoder = "--gin_param=ConvolutionalDecoder.width=4"
    for name, more in (("classifier/mnist", ()), ("gan/fashion", (decoder,))):
        assert main(["train", name, f"--workdir={tmp_path}/{name}", *small, *more]) == 0
    dcgan = program("dcgan")
    monkeypatch.setattr(dcgan, "BATCH", 8)
    runs = [f"--workdir={tmp_path}/gan/fashion", f"--features={tmp_path}/classifier/mnist"]
    capsys.readouterr()
    dcgan.main([*runs, "--seconds=0.2", f"--picture={tmp_path}/samples.png"])
    out = capsys.readouterr().out
    assert int(re.search(r"^0 seconds each, the tutorial's (\d+) steps of 8", out)[1]) > 0
    distances = dict(re.findall(r"^ *(\w+): frechet_distance ([\d.e+]+), ", out, re.MULTILINE))
    ratio = float(distances["ours"]) / float(distances["tutorial"])
    assert float(re.search(r"ours / tutorial: ([\d.]+)", out)[1]) == pytest.approx(ratio, rel=1e-2)
    assert float(distances["real"]) > 0 and (tmp_path / "samples.png").exists()


def test_dcgan_of_a_folder_without_a_run(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        program("dcgan").main([f"--workdir={tmp_path}", f"--features={tmp_path}"])
    assert ended.value.code == 78
    assert capsys.readouterr().err.startswith(f"lockstep: workdir {tmp_path} holds no run (")
