"""scripts/benchmark lstm and transformer: what they count, and that they run beside the trainer as it is."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from types import ModuleType

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
