"""The contract catches wrong builds: each mutant is planted in the running code, and a test of the contract must fail on it."""

from __future__ import annotations

import functools
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

import input_pipeline.noise
from input_pipeline.batches import Batches
from input_pipeline.noise import Noise
from models.objective import Optimizer, Phase
from tests.contract.families import FAMILIES, Numbered, fingerprint
from tests.contract.runs import ONE, ContractBroken, assert_close, assert_equal, train
from trainer.experiment import Experiment
from trainer.hardware import Hardware
from trainer.step import Step
from trainer.trainer import Trainer
from trainer.update import Update

TWO = Hardware(replicas=2)
STEPS = {"steps": 4, "evaluate_every": 2}


def check_layouts(family, folder):
    """The contract between one and two replicas."""
    one = train(FAMILIES[family](**STEPS), ONE, folder / "one")
    two = train(FAMILIES[family](**STEPS), TWO, folder / "two")
    assert_close(two, one, losses=1e-9, weights=1e-8)


def check_fingerprint(folder):
    """The contract on ids and bits between one and two replicas."""
    one = train(fingerprint(), ONE, folder / "one")
    assert_equal(
        replace(train(fingerprint(), TWO, folder / "two"), weights={}), replace(one, weights={})
    )


def check_resume(folder):
    """The contract on a run that ends at step 6 and goes on."""
    whole = train(fingerprint(), ONE, folder / "whole")
    train(fingerprint(steps=6), ONE, folder / "parts")
    assert_equal(train(fingerprint(), ONE, folder / "parts"), whole)


class Line:
    """Moves one weight vector along a known gradient: loss = w · example number, for which AdamW can be done by hand."""

    def __init__(self, element_spec):
        pass

    def build(self, noise):
        self.weight = keras.layers.Dense(
            1, use_bias=False, kernel_initializer="ones", name="weight"
        )
        self.weight.build((None, 3))
        self.networks = {"weight": self.weight}
        rule = functools.partial(keras.optimizers.AdamW, weight_decay=0.1)
        optimizer = Optimizer(rule=rule, learning_rate=0.01)
        self.phases = [
            Phase(name="line", variables=[self.weight.kernel], loss=self.loss, optimizer=optimizer)
        ]

    def loss(self, batch, noise, step):
        scale = tf.cast(batch["id"] + 1, noise.dtype)
        return scale * tf.reduce_sum(
            self.weight.kernel * tf.constant([[1.0], [-2.0], [0.5]], noise.dtype)
        ), {}


def check_adamw(folder):
    """The trainer's AdamW (Loshchilov and Hutter 2019) against NumPy."""
    experiment = Experiment(
        objective=Line, source=Numbered(4), global_batch=4, steps=20, precision="float64", samples=0
    )
    learnt = train(experiment, TWO, folder / "run").weights["weight/kernel"][:, 0]
    weight, first, second = np.ones(3), np.zeros(3), np.zeros(3)
    gradient = 2.5 * np.array([1.0, -2.0, 0.5])
    for step in range(1, 21):
        weight -= 0.01 * 0.1 * weight
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weight -= 0.01 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-7)
    if not np.allclose(learnt, weight, rtol=1e-5):  # Keras computes beta ** step in float32.
        raise ContractBroken((learnt, weight))


@pytest.fixture
def native_noise(monkeypatch):
    """Each replica draws as if it held the first examples, as Keras does (TRAPS 1)."""
    original = Noise._padded_bits
    monkeypatch.setattr(
        Noise, "_padded_bits", lambda self, numbers: original(_at_zero(self), numbers)
    )


def _at_zero(noise):
    return replace(noise, first=0)


@pytest.fixture
def clipped_before_the_reduce(monkeypatch):
    """Each replica clips its own gradient, as Keras does (TRAPS 3)."""
    original = Step._phase_gradients

    def clipped(self, phase, *args):
        gradients, *others = original(self, phase, *args)
        limit = phase.optimizer.clip_norm or 1e9
        return tf.clip_by_global_norm(gradients, limit / self._layout.replicas)[0], *others

    monkeypatch.setattr(Step, "_phase_gradients", clipped)


@pytest.fixture
def unaligned_counter(monkeypatch):
    """Rows are not padded to whole Philox blocks, so that a slice begins within one (TRAPS 9e)."""
    monkeypatch.setattr(input_pipeline.noise, "ROW_MULTIPLE", 1)


@pytest.fixture
def weight_decay_dropped(monkeypatch):
    """Only the update rule is called, which does not decay (TRAPS 3)."""
    monkeypatch.setattr(
        Update,
        "_rule_for",
        lambda self, variable: (
            lambda component, gradient, rate, *slots: self.rule.update_step(
                gradient, variable, rate
            )
        ),
    )


@pytest.fixture
def statistics_of_one_replica(monkeypatch):
    """Moving averages see the examples of the first replica alone (TRAPS 2)."""
    original = Step._phase_gradients

    def of_the_first(self, phase, names, variables, batch, first, *args):
        gradients, metrics, statistics, carry = original(
            self, phase, names, variables, batch, first, *args
        )
        alone = [
            tf.where(first == 0, s * self._layout.replicas, tf.zeros_like(s)) for s in statistics
        ]
        return gradients, metrics, alone, carry

    monkeypatch.setattr(Step, "_phase_gradients", of_the_first)


@pytest.fixture
def one_example_skipped_on_resume(monkeypatch):
    """After a restart the data goes on one example too late."""
    original = Batches.ids

    def late(self, positions):
        return original(self, positions + self.__dict__.get("late", 0))

    training = Batches.training

    def training_late(self, worker, *, step=0, updates=1):
        self.__dict__["late"] = int(step > 0)
        return training(self, worker, step=step, updates=updates)

    monkeypatch.setattr(Batches, "ids", late)
    monkeypatch.setattr(Batches, "training", training_late)


MUTANTS = {
    "native_noise": (functools.partial(check_layouts, "vae"), check_fingerprint),
    "clipped_before_the_reduce": (functools.partial(check_layouts, "lstm"),),
    "unaligned_counter": (check_fingerprint,),
    "weight_decay_dropped": (check_adamw,),
    "statistics_of_one_replica": (functools.partial(check_layouts, "gan"),),
    "one_example_skipped_on_resume": (check_resume,),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_caught(mutant, request, tmp_path):
    request.getfixturevalue(mutant)
    for number, check in enumerate(MUTANTS[mutant]):
        with pytest.raises(ContractBroken):
            check(tmp_path / str(number))


def test_without_a_mutant_the_same_checks_pass(tmp_path):
    """Those of layouts do so in tests/contract/test_layouts.py."""
    for number, check in enumerate((check_fingerprint, check_resume, check_adamw)):
        check(tmp_path / str(number))


def test_a_keras_random_layer_in_a_loss_is_refused():
    """Its seed state would be moved by the loss; the trainer names the remedy."""

    class Dropping(Line):
        def build(self, noise):
            super().build(noise)
            self.dropout = keras.layers.Dropout(0.5, seed=1)
            self.networks = {**self.networks, "dropout": self.dropout}

        def loss(self, batch, noise, step):
            loss, metrics = super().loss(batch, noise, step)
            return self.dropout(loss, training=True), metrics

    from trainer.exits import ConfigError

    experiment = Experiment(objective=Dropping, source=Numbered(4), global_batch=4, steps=1)
    with pytest.raises(
        ConfigError, match="draws the same numbers on every replica: draw from `noise` instead"
    ):
        Trainer(experiment, ONE)
