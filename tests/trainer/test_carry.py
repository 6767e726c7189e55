"""What examples carry along their streams: alike on any layout, left alone by a skipped update."""

import numpy as np
import pytest
import tensorflow as tf

from tests.trainer.objectives import FOUR, ONE, TWO, Scripted, Table, experiment, quiet
from trainer.exits import ConfigError
from trainer.hardware import Hardware
from trainer.rollback import LossSpike
from trainer.trainer import Outcome

LAYOUTS = {
    "one": ONE,
    "two": TWO,
    "four": FOUR,
    "accumulation": Hardware(strategy="one_device", microbatch=1),
    "two_accumulation": Hardware(replicas=2, microbatch=1),
    "two_xla": Hardware(replicas=2, xla="on"),
}
STREAMS, WINDOWS = 4, 3


class Streams(Table):
    """4 streams, of 3 parts each unless told otherwise, whose numbers are 1, 2, 3, …; their losses are given."""

    streams = STREAMS

    def __init__(self, losses=0.0, streams=STREAMS, windows=WINDOWS):
        self.streams, count = streams, streams * windows
        super().__init__(
            {
                "number": np.arange(1.0, count + 1),
                "begins": np.arange(count) < streams,
                "loss": losses * np.ones(count),
                "gradient": np.zeros([count, 3]),
            }
        )


class Adding(Scripted):
    """Each stream carries the sum of its numbers, and twice the last of them."""

    def build(self, noise):
        super().build(noise)
        self.carry = {"sum": (), "pair": (2,)}

    def _loss(self, network):
        plain = super()._loss(network)

        def loss(batch, noise, step):
            return plain(batch, noise, step)[0], self._added(batch)

        return loss

    def evaluate(self, batch, noise, step):
        return self._added(batch)

    def _added(self, batch):
        total = (
            tf.where(batch["begins"], tf.zeros_like(batch["sum"]), batch["sum"]) + batch["number"]
        )
        last = batch["number"][:, tf.newaxis] * tf.ones([1, 2], batch["number"].dtype)
        return {"sum": total, "pair": last, "total": total, "before": batch["pair"][:, 1]}


def train(losses, hardware, steps):
    trainer = quiet(experiment(Adding, Streams(losses), steps=100, log_every=100), hardware)
    rows = []
    for step in range(steps):
        trainer.run(trainer.data(step), step, until=step + 1)
        rows.append(trainer.step.read_metrics())
    return trainer, rows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stream_finds_what_it_left(layout):
    """After the third part the first follows, which begins anew."""
    trainer, rows = train(0.0, LAYOUTS[layout], steps=4)
    numbers = np.arange(1.0, 13).reshape(WINDOWS, STREAMS)
    totals = [*np.cumsum(numbers, 0), numbers[0]]
    assert [row["train/total"] for row in rows] == [total.mean() for total in totals]
    befores = [np.zeros(STREAMS), *numbers]
    assert [row["train/before"] for row in rows] == [before.mean() for before in befores]
    np.testing.assert_array_equal(trainer.state["carry/sum"], numbers[0])
    np.testing.assert_array_equal(trainer.state["carry/pair"], np.stack([numbers[0]] * 2, 1))


@pytest.mark.parametrize("layout", ["one", "two_accumulation"])
def test_a_skipped_update_carries_nothing_on(layout):
    losses = np.zeros(STREAMS * WINDOWS)
    losses[STREAMS + 1] = np.nan  # The second part of the second stream.
    trainer, _ = train(losses, LAYOUTS[layout], steps=3)
    numbers = np.arange(1.0, 13).reshape(WINDOWS, STREAMS)
    np.testing.assert_array_equal(trainer.state["carry/sum"], numbers[0] + numbers[2])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_held_out_streams_carry_too(layout):
    """3 of them, which are no multiple of the replicas; a pass leaves nothing for the next."""
    held_out = Streams(streams=3)
    wanted = experiment(Adding, Streams(), validation=held_out, steps=1)
    trainer = quiet(wanted, LAYOUTS[layout])
    numbers = np.arange(1.0, 10).reshape(WINDOWS, 3)
    for _ in range(8):  # What was carried is read before it is replaced, each time (TRAPS 29).
        found = trainer.evaluate()
        assert found["total"] == np.cumsum(numbers, 0).mean()
        assert found["before"] == np.concatenate([np.zeros([1, 3]), numbers[:-1]]).mean()


def test_a_value_of_another_form_is_refused():
    class Short(Adding):
        def _added(self, batch):
            return super()._added(batch) | {"pair": batch["number"]}

    with pytest.raises(ConfigError) as error:
        quiet(experiment(Short, Streams(), steps=1))
    assert str(error.value) == (
        "pair is carried along a stream as float64 (4, 2), and the loss gives float64 (4,)"
    )


def test_a_step_of_several_updates_cannot_carry():
    with pytest.raises(ConfigError, match="carries sum, pair along streams, which takes a step of"):
        quiet(experiment(lambda spec: Adding(spec, updates=2), Streams(), steps=1))


def test_a_stream_begins_anew_behind_examples_that_a_rollback_left_out(tmp_path):
    """The loss of part 5 spikes, seen at 6: back to step 4, and on with part 6, without what was carried from part 3."""
    losses = np.random.default_rng(0).normal(1, 0.1, size=[20, STREAMS])
    losses[5] = 100
    source = Streams(losses.ravel(), windows=20)
    rule = LossSpike(rows=2, max_rollbacks=1)
    intervals = {"log_every": 2, "checkpoint_every": 4, "steps": 8}
    trainer = quiet(experiment(Adding, source, rollback=rule, **intervals), ONE, tmp_path)
    assert trainer.train() is Outcome.DONE
    numbers = np.arange(1.0, 20 * STREAMS + 1).reshape(20, STREAMS)
    np.testing.assert_array_equal(trainer.state["carry/sum"], numbers[6:10].sum(0))
