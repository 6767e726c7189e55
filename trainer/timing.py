"""How long steps take, from the times that the device's loop brings back."""

from __future__ import annotations

import numpy as np


class StepTimes:
    """Times of the steps since the last row of metrics."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._seconds: list[float] = []
        self._waits: list[float] = []

    def add(self, starts_and_waits: np.ndarray, end: float) -> None:
        """Adds the steps of one loop, which ended at `end`."""
        self._seconds += np.diff(starts_and_waits[:, 0], append=end).tolist()
        self._waits += starts_and_waits[:, 1].tolist()

    def examples_per_second(self, examples_per_step: int) -> float:
        return examples_per_step * len(self._seconds) / self._total

    def metrics(self, examples_per_step: int) -> dict[str, float]:
        """perf/ metrics."""
        half, most = np.percentile(self._seconds, [50, 90])
        return {
            "perf/examples_per_second": self.examples_per_second(examples_per_step),
            "perf/step_seconds_p50": float(half),
            "perf/step_seconds_p90": float(most),
            "perf/data_wait_share": sum(self._waits) / self._total,
        }

    @property
    def _total(self) -> float:
        # Wall clocks are corrected now and then; a window of no time has no rate.
        total = sum(self._seconds)
        return total if total > 0 else float("nan")
