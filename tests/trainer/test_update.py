"""One update: clipping, learning rates, every Keras rule against Keras itself, refusals, the moving average."""

from __future__ import annotations

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.objective import Average, Optimizer, Phase
from tests.trainer.objectives import (
    ONE,
    SGD,
    TWO,
    Scripted,
    Weights,
    experiment,
    quiet,
    script,
    take,
)
from trainer.exits import ConfigError
from trainer.precision import PRECISIONS
from trainer.update import Update, make_rule

RATE = 2.0**-6
"""Exact in float32, which Keras keeps learning rates in."""
DECAY = 2.0**-4


def phase(*variables, name="only", **optimizer):
    return Phase(name=name, variables=variables, loss=None, optimizer=Optimizer(**optimizer))


class Runner:
    """One phase's updates without a trainer, on one device."""

    def __init__(self, make_phase, precision="float64"):
        self.strategy = tf.distribute.OneDeviceStrategy("CPU:0")
        with self.strategy.scope():
            self.phase = make_phase()
            self.update = Update(
                self.phase,
                metrics=("loss",),
                statistics=(),
                precision=PRECISIONS[precision],
                max_bad=3,
            )

    def __call__(self, step, *gradients, loss=0.0):
        step, loss = tf.constant(step, tf.int64), tf.constant(loss, self.update.sums.dtype)
        pairs = zip(gradients, self.phase.variables, strict=True)
        gradients = [tf.constant(gradient, variable.dtype) for gradient, variable in pairs]
        self.strategy.run(self.update, args=(step, gradients, [loss], []))
        return [variable.numpy() for variable in self.phase.variables]


def variables(dtype="float64"):
    """A matrix, which Muon and Adafactor treat in their own ways, and a vector."""
    chance = np.random.default_rng(1)
    return [
        keras.Variable(chance.normal(size=[3, 4]), dtype=dtype, name="kernel"),
        keras.Variable(chance.normal(size=[4]), dtype=dtype, name="bias"),
    ]


# ---------------------------------------------------------------------- clipping


def test_the_sum_is_clipped_and_not_what_a_replica_has():
    """Gradients of ±1000 on two replicas cancel to a small one, which stays as it is."""
    gradients = [[1000, 0, 1]] * 2 + [[-1000, 0, 1]] * 2
    objective = functools.partial(
        Scripted, optimizer=Optimizer(rule=keras.optimizers.SGD, learning_rate=1.0, clip_norm=2.0)
    )
    trainer = quiet(experiment(objective, script(gradients)), TWO)
    before, after = take(trainer, 1)
    for old, new in zip(before["only/w"], after["only/w"], strict=True):
        np.testing.assert_array_equal(new - old, [0, 0, -1])


def test_the_sum_is_clipped_to_the_norm_exactly():
    """In NumPy: the mean of the four rows has norm 13, of which 0.3 is left; on two replicas as on one."""
    gradients = np.array([[3.0, 0, 24], [3, 8, 0], [6, 8, 12], [0, 0, 12]])
    mean = gradients.mean(0)
    assert math.sqrt((mean**2).sum()) == 13.0
    for hardware in (ONE, TWO):
        objective = functools.partial(
            Scripted,
            optimizer=Optimizer(rule=keras.optimizers.SGD, learning_rate=1.0, clip_norm=0.3),
        )
        trainer = quiet(experiment(objective, script(gradients), steps=2, log_every=2), hardware)
        before, after = take(trainer, 1)
        moved = before["only/w"][0] - after["only/w"][0]
        np.testing.assert_allclose(moved, mean * 0.3 / 13, rtol=1e-13)
        # The norm that is logged is that before clipping.
        assert trainer.step.updates[0].read()["gradient_norm"] == 13.0


def test_a_gradient_of_exactly_the_norm_or_less_is_not_touched():
    for clip_norm, factor in ((5.0, 1.0), (5.0 + 1e-9, 1.0), (2.5, 0.5)):
        runner = Runner(
            lambda clip_norm=clip_norm: phase(
                keras.Variable([0.0, 0.0], dtype="float64"),
                keras.Variable([0.0], dtype="float64"),
                rule=keras.optimizers.SGD,
                learning_rate=1.0,
                clip_norm=clip_norm,
            )
        )
        # One norm over all variables of the phase: 3, 0, 4 -> 5.
        first, second = runner(0, [3.0, 0.0], [4.0])
        np.testing.assert_array_equal(first, [-3.0 * factor, 0.0])
        np.testing.assert_array_equal(second, [-4.0 * factor])


# ---------------------------------------------------------------------- learning rates


def test_a_schedule_is_a_function_of_our_step_also_after_skipped_updates():
    """Warm-up then cosine (Loshchilov and Hutter 2017), in closed form; updates 2 and 5 are skipped."""
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, 8, alpha=0.25, warmup_target=0.5, warmup_steps=4
    )

    def rate(step):
        if step < 4:
            return 0.5 * step / 4
        return 0.5 * (0.75 * 0.5 * (1 + math.cos(math.pi * (step - 4) / 8)) + 0.25)

    runner = Runner(
        lambda: phase(
            keras.Variable([0.0], dtype="float64"),
            rule=keras.optimizers.SGD,
            learning_rate=schedule,
        )
    )
    expected = 0.0
    for step in range(12):
        bad = step in (2, 5)
        expected -= 0.0 if bad else rate(step)
        (weight,) = runner(step, [np.nan if bad else 1.0])
        np.testing.assert_allclose(weight, [expected], rtol=1e-6)  # Schedules compute in float32.
    assert runner.update.rule.iterations.numpy() == 10


def test_a_number_is_the_rate_to_the_last_bit():
    """Neither rounded to float32 nor the rule's own rate."""
    runner = Runner(
        lambda: phase(
            keras.Variable([0.0], dtype="float64"),
            rule=functools.partial(keras.optimizers.SGD, learning_rate=7.0),
            learning_rate=0.1,
        )
    )
    assert runner(0, [1.0])[0].tolist() == [-0.1]
    assert runner.update.read()["learning_rate"] == 0.1


def test_a_schedule_gets_the_step_through_the_trainer():
    """A rate of step + 1, with an update skipped in the middle: 1 + 2 + 4."""
    optimizer = Optimizer(
        rule=keras.optimizers.SGD, learning_rate=lambda step: tf.cast(step + 1, tf.float64)
    )
    objective = functools.partial(Scripted, initial=[0.0], optimizer=optimizer)
    source = script([[1]] * 2, [[1]] * 2, [[np.inf]] * 2, [[1]] * 2)
    trainer = quiet(experiment(objective, source, steps=4, global_batch=2), TWO)
    seen = [step["only/w"][0].item() for step in take(trainer, 4)]
    assert seen == [0.0, -1.0, -3.0, -3.0, -7.0]


# ---------------------------------------------------------------------- rules


RULES = {
    "SGD": keras.optimizers.SGD,
    "SGD with momentum": functools.partial(keras.optimizers.SGD, momentum=0.9, nesterov=True),
    "SGD with decay": functools.partial(keras.optimizers.SGD, weight_decay=DECAY),
    "RMSprop": functools.partial(keras.optimizers.RMSprop, momentum=0.5, centered=True),
    "Adam": functools.partial(keras.optimizers.Adam, beta_1=0.5),
    "Adam with amsgrad": functools.partial(keras.optimizers.Adam, amsgrad=True),
    "Adam with decay": functools.partial(keras.optimizers.Adam, weight_decay=DECAY),
    "AdamW": functools.partial(keras.optimizers.AdamW, weight_decay=DECAY),
    "Adagrad": keras.optimizers.Adagrad,
    "Adadelta": keras.optimizers.Adadelta,
    "Adamax": keras.optimizers.Adamax,
    "Adafactor": keras.optimizers.Adafactor,
    "Ftrl": keras.optimizers.Ftrl,
    "Lamb": keras.optimizers.Lamb,
    "Lion": functools.partial(keras.optimizers.Lion, weight_decay=DECAY),
    "Muon": functools.partial(
        keras.optimizers.Muon, weight_decay=DECAY, adam_weight_decay=DECAY / 2
    ),
}
if hasattr(keras.optimizers, "ScheduleFreeAdamW"):
    RULES["ScheduleFreeAdamW"] = functools.partial(
        keras.optimizers.ScheduleFreeAdamW, weight_decay=DECAY, warmup_steps=3
    )


@pytest.mark.parametrize("name", RULES)
def test_a_rule_moves_weights_as_keras_itself(name):
    """Six updates in float64: weights and every slot as `optimizer.apply` makes them."""
    # Keras 3.15 cannot compute Muon in float64.
    dtype, tolerance = ("float32", 1e-5) if name == "Muon" else ("float64", 1e-12)
    expected = variables(dtype)
    keras_rule = RULES[name](learning_rate=RATE)
    keras_rule.build(expected)
    runner = Runner(lambda: phase(*variables(dtype), rule=RULES[name], learning_rate=RATE), dtype)
    chance = np.random.default_rng(2)
    for step in range(6):
        gradients = [chance.normal(size=v.shape) for v in expected]
        keras_rule.apply([tf.constant(gradient, dtype) for gradient in gradients])
        moved = runner(step, *gradients)
        for ours, theirs in zip(moved, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=tolerance, atol=tolerance)
    assert np.abs(expected[0].numpy() - variables()[0].numpy()).max() > 1e-4
    for ours, theirs in zip(runner.update.rule.variables, keras_rule.variables, strict=True):
        if ours.path.split("/")[-1] != "learning_rate":
            np.testing.assert_allclose(
                ours.numpy(), theirs.numpy(), rtol=tolerance, err_msg=ours.path
            )


def test_adam_is_one_operation_a_variable():
    """But not its variant that keeps a maximum, which that operation does not know."""

    def operations(rule):
        runner = Runner(lambda: phase(*variables(), rule=rule))
        zeros = [tf.zeros(v.shape, v.dtype) for v in runner.phase.variables]
        arguments = tf.constant(0, tf.int64), zeros, [tf.constant(0.0, tf.float64)], []
        update = tf.function(lambda: runner.strategy.run(runner.update, args=arguments))
        graph = update.get_concrete_function().graph.as_graph_def()
        nodes = [n.op for function in graph.library.function for n in function.node_def]
        return nodes.count("ResourceApplyAdam"), nodes.count("Sqrt")

    # Keras' rule has two roots a variable, of the velocity and of 1 - β₂ᵗ.
    assert operations(RULES["Adam"]) == (2, 0)
    assert operations(RULES["AdamW"]) == (2, 0)
    assert operations(RULES["Adam with amsgrad"]) == (0, 4)


@pytest.mark.parametrize("name", RULES)
def test_every_slot_is_kept_under_a_name_of_its_own(name):
    """Also where a rule gives two the same name, as Adafactor does."""
    dtype = "float32" if name == "Muon" else "float64"
    update = Runner(lambda: phase(*variables(dtype), rule=RULES[name]), dtype).update
    kept = {id(v) for key, v in update.state.items() if key.startswith("optimizer/")}
    assert kept == {id(v.value) for v in update.rule.variables}


def test_every_keras_rule_is_compared_or_refused():
    refused = {"Nadam", "MultiOptimizer", "LossScaleOptimizer"}
    rules = {
        name
        for name, kind in vars(keras.optimizers).items()
        if isinstance(kind, type) and issubclass(kind, keras.optimizers.Optimizer)
    }
    compared = {name.split(" ")[0] for name in RULES}
    assert rules - {"Optimizer"} == compared | (refused & rules)


def test_excluded_weights_do_not_decay():
    """With gradients of zero AdamW only decays: by (1 - rate · decay)³ what is not excluded."""

    def rule():
        adamw = keras.optimizers.AdamW(weight_decay=DECAY)
        adamw.exclude_from_weight_decay(var_names=["bias"])
        return adamw

    runner = Runner(lambda: phase(*variables(), rule=rule, learning_rate=RATE))
    for step in range(3):
        kernel, bias = runner(step, np.zeros([3, 4]), np.zeros([4]))
    before = [variable.numpy() for variable in variables()]
    np.testing.assert_allclose(kernel, before[0] * (1 - RATE * DECAY) ** 3, rtol=1e-14)
    np.testing.assert_array_equal(bias, before[1])


def test_vectors_can_be_left_out_of_decay():
    """As above by `decay_vectors`: matrices decay, the bias does not."""
    rule = functools.partial(keras.optimizers.AdamW, weight_decay=DECAY)
    runner = Runner(lambda: phase(*variables(), rule=rule, learning_rate=RATE, decay_vectors=False))
    kernel, bias = runner(0, np.zeros([3, 4]), np.zeros([4]))
    before = [variable.numpy() for variable in variables()]
    np.testing.assert_allclose(kernel, before[0] * (1 - RATE * DECAY), rtol=1e-14)
    np.testing.assert_array_equal(bias, before[1])


def test_weights_in_float32_under_float64_rates():
    """Decay and rate are cast to the weight's own dtype."""
    rule = functools.partial(keras.optimizers.SGD, weight_decay=DECAY)
    runner = Runner(lambda: phase(*variables("float32"), rule=rule, learning_rate=RATE))
    before = variables("float32")[0].numpy()
    kernel, _ = runner(0, np.ones([3, 4]), np.ones([4]))
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, before * (1 - RATE * DECAY) - RATE, rtol=1e-6)


# ---------------------------------------------------------------------- refusals


ADAM = keras.optimizers.Adam
REFUSALS = {
    "nadam": (
        keras.optimizers.Nadam,
        "phase only uses Nadam, whose update rule cannot be used alone: use Adam or AdamW",
    ),
    "a kind of nadam": (
        type("MyNadam", (keras.optimizers.Nadam,), {}),
        "phase only uses MyNadam, whose update rule cannot be used alone: use Adam or AdamW",
    ),
    "loss scale": (
        lambda: keras.optimizers.LossScaleOptimizer(ADAM()),
        "phase only uses LossScaleOptimizer, whose update rule cannot be used alone: use Adam or AdamW",
    ),
    "clipnorm": (
        functools.partial(ADAM, clipnorm=1.0),
        "Adam.clipnorm of phase only is 1.0: use Optimizer.clip_norm, which clips the reduced gradient",
    ),
    "clipvalue": (
        functools.partial(ADAM, clipvalue=0.5),
        "Adam.clipvalue of phase only is 0.5: use Optimizer.clip_norm, which clips the reduced gradient",
    ),
    "global_clipnorm": (
        functools.partial(keras.optimizers.SGD, global_clipnorm=2.0),
        "SGD.global_clipnorm of phase only is 2.0: use Optimizer.clip_norm, which clips the reduced gradient",
    ),
    "use_ema": (
        functools.partial(ADAM, use_ema=True),
        "Adam.use_ema of phase only is True: use Phase.average",
    ),
    "accumulation": (
        functools.partial(ADAM, gradient_accumulation_steps=2),
        "Adam.gradient_accumulation_steps of phase only is 2: use the microbatch, which accumulates by itself",
    ),
    "loss_scale_factor": (
        functools.partial(ADAM, loss_scale_factor=8.0),
        "Adam.loss_scale_factor of phase only is 8.0: use precision = float16, which has its own loss scale",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_keras_does_behind_our_back_is_refused(name):
    rule, line = REFUSALS[name]
    with pytest.raises(ConfigError) as error:
        make_rule(phase(keras.Variable([0.0]), rule=rule))
    assert str(error.value) == line


def test_several_optimisers_in_one_are_refused():
    pytest.importorskip("keras.src.optimizers.multi_optimizer")
    from keras.src.optimizers.multi_optimizer import MultiOptimizer

    class Several(MultiOptimizer):
        def __init__(self):
            """Without its parts: it is refused before anything is asked of it."""

    with pytest.raises(ConfigError) as error:
        make_rule(phase(keras.Variable([0.0]), rule=Several))
    assert str(error.value) == (
        "phase only uses Several, whose update rule cannot be used alone: use Adam or AdamW"
    )


def test_a_constraint_is_refused():
    objective = functools.partial(Scripted, constraint=keras.constraints.NonNeg())
    with pytest.raises(ConfigError) as error:
        quiet(experiment(objective, script([[1, 1, 1]] * 4)))
    assert str(error.value) == (
        "variable only/w has a constraint, which the trainer does not apply: remove it"
    )


# ---------------------------------------------------------------------- moving average


def test_the_average_follows_its_formula():
    """copy += (1 - d)(source - copy), d = min(decay, n / (10 + n)): in NumPy, with one skipped update that counts not."""

    def make():
        source, copy = Weights([1.0, -1.0], "source"), Weights([1.0, -1.0], "copy")
        source.w.assign([2.0, 5.0])
        return Phase(
            name="only",
            variables=[source.w],
            loss=None,
            optimizer=SGD,
            average=Average(source=source, copy=copy, decay=0.3),
        )

    keras.config.set_dtype_policy("float64")
    try:
        runner = Runner(make)
    finally:
        keras.config.set_dtype_policy("float32")
    chance, good = np.random.default_rng(4), 0
    source, copy = np.array([2.0, 5.0]), np.array([1.0, -1.0])
    for step in range(9):
        gradient = chance.normal(size=2)
        if step == 2:
            runner(step, gradient * np.inf)
        else:
            runner(step, gradient)
            good += 1
            source = source - gradient
            copy = copy + (1 - min(0.3, good / (10 + good))) * (source - copy)
        np.testing.assert_allclose(runner.phase.average.source.w.numpy(), source, rtol=1e-14)
        np.testing.assert_allclose(runner.phase.average.copy.w.numpy(), copy, rtol=1e-14)
    assert min(0.3, good / (10 + good)) == 0.3 > 1 / 11


def test_the_average_is_the_same_on_replicas():
    """One update: d = min(0.9, 1 / 11), so the copy goes 10/11 of the way."""
    objective = functools.partial(Scripted, average_decay=0.9)
    trainer = quiet(experiment(objective, script([[1, 2, 3]] * 4)), TWO)
    _, after = take(trainer, 1)
    for copy in after["average/w"]:
        np.testing.assert_allclose(
            copy, np.array([1, 2, -3]) - 10 / 11 * np.array([1, 2, 3]), rtol=1e-14
        )
