"""Ways through a latent space, point by point."""

import numpy as np
import tensorflow as tf

from models.tables import arc, axes, line


def test_a_line_has_equal_steps():
    start, end = tf.constant([[0.0, 4.0], [1.0, 1.0]]), tf.constant([[3.0, 1.0], [1.0, 7.0]])
    expected = [[[0, 4], [1, 3], [2, 2], [3, 1]], [[1, 1], [1, 3], [1, 5], [1, 7]]]
    np.testing.assert_allclose(line(start, end, 4), expected, rtol=1e-6)


def test_an_arc_has_equal_angles_and_keeps_the_length():
    start, end = tf.constant([[2.0, 0.0]], tf.float64), tf.constant([[0.0, 2.0]], tf.float64)
    angles = np.linspace(0, np.pi / 2, 7)
    expected = 2 * np.stack([np.cos(angles), np.sin(angles)], 1)
    np.testing.assert_allclose(arc(start, end, 7)[0], expected, atol=1e-6)
    # Between equal points, where the angle is nothing, it stays there.
    np.testing.assert_allclose(arc(start, start, 3)[0], [[2, 0]] * 3, atol=1e-6)


def test_axes_go_through_the_point():
    found = axes(tf.constant([5.0, 6.0, 7.0]), tf.constant([2, 0]), reach=3.0, columns=3)
    expected = [
        [[5, 6, -3], [5, 6, 0], [5, 6, 3]],
        [[-3, 6, 7], [0, 6, 7], [3, 6, 7]],
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
