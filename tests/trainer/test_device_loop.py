"""The device's loop brings back when each step began and how long it waited for its data (TRAPS 19a)."""

from __future__ import annotations

import time

import numpy as np
import pytest
import tensorflow as tf

from tests.contract.families import Fingerprint, Move, Numbered
from trainer.experiment import Experiment
from trainer.hardware import Hardware
from trainer.trainer import Trainer

SECONDS = 0.03


class Slow(Numbered):
    """A source that takes a while for each read."""

    def read(self, ids):
        def late(ids):
            time.sleep(SECONDS)
            return ids

        found = tf.numpy_function(late, [ids], tf.int64)
        return {"id": tf.ensure_shape(found, ids.shape)}


@pytest.mark.parametrize("source", [Slow, Numbered])
def test_waiting_for_data_is_seen(source):
    experiment = Experiment(
        objective=Fingerprint,
        source=source(37),
        transforms=(Move(),),
        global_batch=4,
        steps=100,
        precision="float64",
        samples=0,
    )
    trainer = Trainer(experiment, Hardware(strategy="one_device"), note=lambda line: None)
    data = trainer.data(0)
    trainer._run_steps(data, tf.constant(1))
    before = time.time()
    starts, waits = trainer._run_steps(data, tf.constant(40)).numpy().T
    assert np.all(np.diff([before, *starts, time.time()]) >= 0)
    assert np.all((waits[:-1] >= 0) & (waits[:-1] <= np.diff(starts)))
    # Two reads a step of the slow source; several steps are read at once.
    assert (np.mean(waits) > SECONDS / 8) == (source is Slow), waits
