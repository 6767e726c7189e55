"""Adam's rule as one operation a variable.

Keras writes it as ten, each of which reads and writes whole arrays: on a CPU they take as long as the products of a small
network. The formulas, slots and their names are Keras'.
"""

from __future__ import annotations

import keras
import tensorflow as tf


def slots(rule: keras.optimizers.Optimizer, variable: keras.Variable) -> list[tf.Variable]:
    """What `move` needs of the rule's state; nothing if it does not know how to move by the rule."""
    if type(rule) not in (keras.optimizers.Adam, keras.optimizers.AdamW) or rule.amsgrad:
        return []
    number = rule._get_variable_index(variable)
    return [rule._momentums[number].value, rule._velocities[number].value]


def move(
    rule: keras.optimizers.Adam,
    component: tf.Variable,
    gradient: tf.Tensor,
    rate: tf.Tensor,
    momentum: tf.Variable,
    velocity: tf.Variable,
) -> None:
    """`rule.update_step` of one variable (Kingma & Ba 2015, algorithm 1 with the order of section 2), without decay.

    Args:
      rule: whose β, ε and count of updates they are.
      component: the variable on one device.
      gradient: of its shape.
      rate: scalar.
      momentum: the first moment, on the same device.
      velocity: the second raw moment, likewise.
    """
    dtype = component.dtype
    update = tf.cast(rule.iterations.value + 1, dtype)
    powers = [keras.ops.cast(beta, dtype) ** update for beta in (rule.beta_1, rule.beta_2)]
    tf.raw_ops.ResourceApplyAdam(
        var=component.handle,
        m=momentum.handle,
        v=velocity.handle,
        beta1_power=powers[0],
        beta2_power=powers[1],
        lr=tf.cast(rate, dtype),
        beta1=tf.constant(rule.beta_1, dtype),
        beta2=tf.constant(rule.beta_2, dtype),
        epsilon=tf.constant(rule.epsilon, dtype),
        grad=tf.cast(gradient, dtype),
        use_locking=True,
    )
