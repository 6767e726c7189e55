"""Bits that flip on one replica: the checksum that finds them, and the run that goes back and ends as if nothing had been."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.contract.runs import assert_equal, results
from tests.trainer.objectives import (
    FOUR,
    ONE,
    TWO,
    Regression,
    Scripted,
    experiment,
    points,
    quiet,
    script,
    values,
)
from trainer import main
from trainer.exits import Unreliable
from trainer.hardware import Hardware
from trainer.replicas import Difference, checksum, compare
from trainer.trainer import Outcome

# ---------------------------------------------------------------------- checksum


def bits_of(array):
    return array.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[array.dtype.itemsize])


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "int64", "uint8"])
def test_every_flip_of_a_bit_and_every_swap_changes_the_checksum(dtype):
    """Against the sum in Python's integers; of values that are alike too: zeros, and opposite ones."""
    dtype = tf.as_dtype(dtype).as_numpy_dtype
    for numbers in ([0, 0, 0], [1, 2, 3, 1, -1 if dtype != np.uint8 else 255]):
        array = np.asarray(numbers).astype(dtype)
        before = int(checksum(tf.constant(array)))
        parts = array.view(np.uint32 if array.dtype == np.float64 else bits_of(array).dtype)
        parts = [int(part) for part in parts]
        expected = sum((2 * i + 1) * part for i, part in enumerate(parts)) % 2**64
        assert before % 2**64 == expected
        bits = bits_of(array)
        for i in range(len(array)):
            for bit in range(8 * array.dtype.itemsize):
                bits[i] ^= bits.dtype.type(1 << bit)
                assert int(checksum(tf.constant(array))) != before, (i, bit)
                bits[i] ^= bits.dtype.type(1 << bit)
            for j in range(i):
                swapped = bits.copy()
                swapped[[i, j]] = bits[[j, i]]
                same = int(checksum(tf.constant(swapped.view(dtype)))) == before
                assert same == (bits[i] == bits[j]), (i, j)


@pytest.mark.parametrize(
    ("sums", "workers", "line"),
    [
        ([[1, 2], [1, 2]], 1, None),
        (
            [[1, 2], [1, 3]],
            1,
            "b differs between the 2 replicas, and no majority tells which is right",
        ),
        ([[1, 2], [1, 3], [1, 2]], 1, "b differs on replica 1 from most of 3 replicas"),
        (
            [[1, 2], [1, 2], [0, 3], [1, 2]],
            2,
            "a and 1 more variable differ on replica 2 (worker 1) from most of 4 replicas",
        ),
        (
            [[1, 2], [4, 2], [1, 9]],
            1,
            "a and 1 more variable differ on replica 1, 2 from most of 3 replicas",
        ),
        (
            [[1, 2], [1, 2], [0, 2], [0, 2]],
            1,
            "a differs between the 4 replicas, and no majority tells which is right",
        ),
    ],
)
def test_what_differs_where(sums, workers, line):
    found = compare(["a", "b"], np.array(sums), workers)
    assert found is None if line is None else str(found) == line


# ---------------------------------------------------------------------- a run


def regression(**fields):
    """12 steps, a row every 4, a checkpoint every 6."""
    usual = {"steps": 12, "log_every": 4, "checkpoint_every": 6, "seed": 5}
    usual |= {"validation": points(7, seed=4), "evaluate_every": 3}
    return experiment(Regression, points(21), **(usual | fields))


def flip(trainer, name, replica, bit):
    """Flips a bit of the first value of a variable of one replica."""
    variable = trainer.strategy.experimental_local_results(trainer.state[name])[replica]
    array = np.atleast_1d(variable.numpy())
    bits_of(array).ravel()[0] ^= np.uint64(1 << bit)
    variable.assign(array.reshape(variable.shape))


def planted(trainer, *plants):
    """Has bits flip, one each time that the training is at its step: (step, variable, replica, bit)."""
    run_steps, left = trainer._run_steps, list(plants)

    def run(data, count):
        times = run_steps(data, count)
        step = int(trainer.step.number.numpy())
        plant = next((plant for plant in left if plant[0] == step), None)
        if plant:
            left.remove(plant)
            flip(trainer, *plant[1:])
        return times

    trainer.__dict__["_run_steps"] = run
    return left


def events(workdir, kind):
    found = [json.loads(line) for line in (workdir / "events.jsonl").open()]
    return [
        {k: v for k, v in e.items() if k not in ("time", "event")}
        for e in found
        if e["event"] == kind
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run on so many replicas that nothing happened to, made once."""
    made = {}

    def get(hardware):
        if hardware not in made:
            workdir = tmp_path_factory.mktemp("undisturbed")
            assert quiet(regression(), hardware, workdir).train() is Outcome.DONE
            made[hardware] = results(workdir)
        return made[hardware]

    return get


SLOT = "fit/optimizer/network_kernel_momentum"
BETWEEN_2 = "between the 2 replicas, and no majority tells which is right"


@pytest.mark.parametrize(
    ("hardware", "plants", "rollbacks"),
    [
        (TWO, [(8, "network/kernel", 1, 40)], [(12, 6)]),
        (FOUR, [(9, "average/bias", 2, 51)], [(12, 6)]),
        (FOUR, [(8, SLOT, 0, 50)], [(12, 6)]),
        (TWO, [(8, "step", 0, 7)], [(8, 6)]),
        # Found before the row that would have told the sums of replica 0 and begun them anew.
        (TWO, [(9, "fit/metric_sums", 0, 30)], [(12, 6)]),
        # No checkpoint is there yet.
        (TWO, [(3, "network/kernel", 0, 62)], [(6, 0)]),
    ],
)  # fmt: skip
def test_a_flip_on_one_replica_is_found_and_changes_no_bit(
    hardware, plants, rollbacks, undisturbed, tmp_path
):
    trainer = quiet(regression(), hardware, tmp_path)
    left = planted(trainer, *plants)
    assert trainer.train() is Outcome.DONE
    assert left == []
    assert_equal(results(tmp_path), undisturbed(hardware))
    assert [(e["step"], e["to"]) for e in events(tmp_path, "rollback")] == rollbacks
    first = events(tmp_path, "rollback")[0]["reason"]
    _, name, replica, _ = plants[0]
    assert name in first or "more variable" in first
    where = BETWEEN_2 if hardware is TWO else f"on replica {replica} from most of 4 replicas"
    assert first.endswith(where)


def test_before_the_first_checkpoint_it_goes_back_to_the_beginning(tmp_path, undisturbed):
    """With a workdir and without; `check_replicas_every` looks between saves, and what it finds is not in any row."""
    hardware = Hardware(strategy="mirrored", replicas=2, check_replicas_every=2)
    notes = []
    for workdir in (tmp_path, None):
        trainer = quiet(regression(), hardware, workdir)
        trainer._note = notes.append
        planted(trainer, (2, SLOT, 1, 20))
        assert trainer.train() is Outcome.DONE
        for name, value in undisturbed(TWO).weights.items():
            np.testing.assert_array_equal(trainer.snapshot().arrays[name], value, err_msg=name)
    assert_equal(results(tmp_path), undisturbed(TWO))
    line = f"going back from step 2 to step 0: {SLOT} differs {BETWEEN_2}"
    assert notes[1] == line and notes.count(line) == 2
    assert trainer._kept.beginning.step == 0  # It has no other.


def test_a_machine_that_is_wrong_again_and_again_ends_the_run(tmp_path, monkeypatch, capsys):
    """With exit code 70 and a line, and the last good checkpoint in place."""
    hardware = Hardware(strategy="mirrored", replicas=4, max_rollbacks=2)
    trainer = quiet(regression(), hardware, tmp_path)
    planted(trainer, *[(9, "network/kernel", 3, 40)] * 3)
    with pytest.raises(Unreliable) as error:
        trainer.train()
    assert str(error.value) == (
        "step 12: network/kernel and 1 more variable differ on replica 3 from most of 4 replicas, after 2 rollbacks (--max_rollbacks): a "
        "device or its memory is not reliable; leave that machine out and start again to go on from the last checkpoint"
    )
    assert trainer.checkpoints.steps() == [6]
    assert [e["to"] for e in events(tmp_path, "rollback")] == [6, 6]

    def ending(*_):
        raise error.value

    capsys.readouterr()
    monkeypatch.setattr(main, "_line", ending)
    assert main.main([]) == 70
    assert capsys.readouterr().err == f"lockstep: {error.value}\n"


def test_divergence_by_one_replica_is_not_blamed_on_the_training(tmp_path):
    """NaN in a weight of one replica makes every update bad: three in a row would end the run."""
    source = script(*[[[1, 1, 1]] * 4] * 12)
    wanted = experiment(
        Scripted, source, steps=12, checkpoint_every=4, log_every=12, max_bad_updates=3
    )
    trainer = quiet(wanted, TWO, tmp_path)

    def spoil(data, count, run_steps=trainer._run_steps):
        times = run_steps(data, count)
        if int(trainer.step.number.numpy()) == 8 and not events(tmp_path, "rollback"):
            flip(trainer, "only/w", 1, 62)
            bad = trainer.step.updates[0].bad
            bad.assign([3, 5, 3])
        return times

    trainer.__dict__["_run_steps"] = spoil
    assert trainer.train() is Outcome.DONE
    assert values(trainer)["only/w"][1].tolist() == [1 - 12, 2 - 12, -3 - 12]
    assert values(trainer)["only/bad_updates"][0].tolist() == [0, 0, 0]
    (rollback,) = events(tmp_path, "rollback")
    assert (rollback["step"], rollback["to"]) == (8, 4)


def test_one_replica_has_nothing_to_compare_with(tmp_path):
    trainer = quiet(regression(), ONE, tmp_path)
    flip(trainer, "network/kernel", 0, 40)
    assert trainer._guard._replicas.difference() is None
    assert "_sums" not in trainer._guard._replicas.__dict__


def test_what_is_sharded_by_nobody_is_all_compared():
    """Every variable that a checkpoint holds, on whichever replica it is wrong."""
    trainer = quiet(regression(), FOUR)
    assert trainer._guard._replicas.difference() is None
    for number, name in enumerate(trainer.state):
        replica, before = number % 4, values(trainer)[name][0]
        flip(trainer, name, replica, 0)
        assert trainer._guard._replicas.difference() == Difference((name,), (replica,), 4)
        trainer.state[name].assign(before if replica else values(trainer)[name][1])
    assert trainer._guard._replicas.difference() is None
