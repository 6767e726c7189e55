"""perf/ metrics from given clock times, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.timing import StepTimes


def test_steps_of_two_loops_by_hand():
    """Steps of 1, 2 and 3 s, then, after 90 s in which the host evaluates, of 4 and 10 s; a quarter of it all was waiting."""
    times = StepTimes()
    times.add(np.array([[100.0, 0.5], [101.0, 0.0], [103.0, 1.5]]), end=106.0)
    assert times.examples_per_second(8) == 8 * 3 / 6
    times.add(np.array([[196.0, 1.0], [200.0, 2.0]]), end=210.0)
    assert times.metrics(8) == {
        "perf/examples_per_second": 8 * 5 / 20,
        "perf/step_seconds_p50": 3.0,
        # Between the 4th, 4 s, and the 5th, 10 s: at 0.9 · 4 = 3.6 of the way from the first.
        "perf/step_seconds_p90": pytest.approx(4 + 0.6 * 6, rel=1e-15),
        "perf/data_wait_share": 0.25,
    }


def test_after_clear_only_new_steps_count():
    times = StepTimes()
    times.add(np.array([[0.0, 5.0]]), end=100.0)
    times.clear()
    times.add(np.array([[200.0, 0.0]]), end=200.5)
    assert times.metrics(4) == {
        "perf/examples_per_second": 8.0,
        "perf/step_seconds_p50": 0.5,
        "perf/step_seconds_p90": 0.5,
        "perf/data_wait_share": 0.0,
    }


def test_a_clock_that_stands_still_or_is_put_back_ends_no_run():
    """Wall clocks are corrected now and then; the row is odd then, and the next one right."""
    times = StepTimes()
    times.add(np.array([[10.0, 0.0], [10.0, 0.0]]), end=10.0)
    odd = times.metrics(4)
    assert np.isnan([odd["perf/examples_per_second"], odd["perf/data_wait_share"]]).all()
    assert odd["perf/step_seconds_p50"] == 0.0
    times.clear()
    times.add(np.array([[10.0, 0.0], [11.0, 0.0]]), end=9.0)
    assert np.isnan(times.examples_per_second(4))
    times.clear()
    times.add(np.array([[9.0, 0.0]]), end=11.0)
    assert times.examples_per_second(4) == 2.0
