"""What the phases of every objective must hold, run as the trainer runs them."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from input_pipeline.noise import Noise

NOISE_DTYPE = {"float32": tf.float32, "float64": tf.float64, "mixed_bfloat16": tf.float32}
WAYS = [("float32", True), ("float64", False), ("mixed_bfloat16", False)]
"""Each Keras policy once, and with XLA or without: a policy that is wrong shows when a loss is traced, which both begin with.

For what `tests/contract/test_lowering.py` does not compile, in float64."""


@contextlib.contextmanager
def dtype_policy(name):
    """Layers made within have this Keras policy, as when the trainer builds."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build(make, policy="float32"):
    """`make()`, built under a Keras dtype policy as the trainer does."""
    with dtype_policy(policy):
        objective = make()
        objective.build(Noise(1, "init", rows=1, dtype=NOISE_DTYPE[policy]))
    return objective


def variables(objective):
    """path -> variable, of all networks."""
    return {v.path: v for network in objective.networks.values() for v in network.variables}


def phase_function(objective, phase, dtype=tf.float32, jit=False):
    """`(batch, step, first) -> loss, metrics, gradients, moved {path: value}` of one phase, a tf.function."""

    @tf.function(jit_compile=jit)
    def run(batch, step, first):
        rows = next(iter(batch.values())).shape[0]
        noise = Noise(1, phase.name, rows=rows, first=first, step=step, dtype=dtype)
        with keras.StatelessScope() as scope, tf.GradientTape() as tape:
            loss, metrics = phase.loss(batch, noise, step)
            total = tf.reduce_sum(loss)
        moved = {
            path: scope.get_current_value(v)
            for path, v in variables(objective).items()
            if scope.get_current_value(v) is not None
        }
        return loss, metrics, tape.gradient(total, [v.value for v in phase.variables]), moved

    return run


def phase_runner(objective, phase, dtype=tf.float32, jit=False):
    """`phase_function` for a few calls: without XLA they are eager, since tracing takes several times as long."""
    run = phase_function(objective, phase, dtype, jit)
    return run if jit else run.python_function


def run_phase(objective, phase, batch, dtype=tf.float32, jit=False, step=3, first=0):
    run = phase_runner(objective, phase, dtype, jit)
    return run(batch, tf.constant(step, tf.int64), tf.constant(first, tf.int64))


def check_phase(objective, phase, batch, policy, jit=False, still=()):
    """Finite connected gradients, metrics of one number an example, and nothing assigned.

    Args:
      still: paths of variables whose gradient is zero by the mathematics.

    Returns:
      Paths of the untrained variables that the loss would have assigned.
    """
    dtype = NOISE_DTYPE[policy]
    rows = next(iter(batch.values())).shape[0]
    before = {path: v.numpy() for path, v in variables(objective).items()}
    loss, metrics, gradients, moved = run_phase(objective, phase, batch, dtype, jit)
    for name, value in {"loss": loss, **metrics}.items():
        assert value.shape == (rows,) and value.dtype == dtype, name
        assert np.all(np.isfinite(value)), name
    for variable, gradient in zip(phase.variables, gradients, strict=True):
        assert gradient is not None, f"{variable.path} is not connected"
        assert gradient.dtype.name == variable.dtype, variable.path
        assert np.all(np.isfinite(gradient)), variable.path
        assert np.any(gradient != 0) == (variable.path not in still), variable.path
    for path, variable in variables(objective).items():
        np.testing.assert_array_equal(before[path], variable.numpy(), err_msg=path)
    return set(moved)


def check_rows_are_their_own(objective, phase, batch):
    """In float64 the second half of a batch, run alone, gives the second half of the losses: what a replica does."""
    rows = next(iter(batch.values())).shape[0]
    loss, metrics, _, _ = run_phase(objective, phase, batch, tf.float64)
    half = {name: value[rows // 2 :] for name, value in batch.items()}
    half_loss, half_metrics, _, _ = run_phase(objective, phase, half, tf.float64, first=rows // 2)
    np.testing.assert_allclose(half_loss, loss[rows // 2 :], rtol=1e-12)
    for name, value in metrics.items():
        np.testing.assert_allclose(half_metrics[name], value[rows // 2 :], rtol=1e-12, err_msg=name)


def check_builds_alike_twice(make):
    """Equal paths and bits in one process."""
    first, second = variables(build(make)), variables(build(make))
    assert list(first) == list(second)
    for path in first:
        np.testing.assert_array_equal(first[path].numpy(), second[path].numpy(), err_msg=path)


def check_learns_a_cycle(model, first, window):
    """Tokens that follow one another in a ring: the loss falls below that of a guess, and samples go round.

    Args:
      model: a language model whose samples are the likeliest `window` - 1 tokens after token 3.
      first: of the texts, int32 `[b, 1]`.
      window: targets of a text.
    """
    ring = (first + np.arange(window + 1)) % model.vocabulary
    batch = {"tokens": tf.constant(ring.astype(np.int32))}
    (phase,) = model.phases
    run, optimizer = phase_function(model, phase), keras.optimizers.Adam(0.02)
    optimizer.build(phase.variables)

    @tf.function(autograph=False)
    def update(step):
        loss, _, gradients, _ = run(batch, step, tf.constant(0, tf.int64))
        optimizer.apply_gradients(zip(gradients, phase.variables, strict=True))
        return loss

    for step in range(60):
        loss = update(tf.constant(step, tf.int64))
    assert np.mean(loss) < 0.3
    samples = model.sample(Noise(0, "sample", rows=3))
    expected = (4 + np.arange(window - 1)) % model.vocabulary
    np.testing.assert_array_equal(samples, np.tile(expected, [3, 1]))
