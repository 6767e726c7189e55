"""Four virtual CPU devices for every test that uses TensorFlow, and `--full` for the tests that take long."""

from __future__ import annotations

import gc
import os
import sys

import pytest

from trainer import backend

# Before TensorFlow is imported, and for the processes that tests start.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
backend.prepare()

DEVICES = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the tests marked full too: hours")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        for item in items:
            if "full" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="only with --full"))


def pytest_collection_finish(session: pytest.Session) -> None:
    # Tests without TensorFlow do not wait for it; modules that use it have imported it by now.
    if "tensorflow" in sys.modules:
        split_cpu()
    # A tenth of tracing's time goes into looking for garbage among the objects of what was imported.
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether `--full` was given, for tests that do more of the same then."""
    return request.config.getoption("--full")


@pytest.fixture(scope="session")
def devices() -> list[str]:
    """Names of the virtual devices; for tests that import TensorFlow themselves."""
    split_cpu()
    return [f"CPU:{i}" for i in range(DEVICES)]


def split_cpu() -> None:
    """Makes `DEVICES` logical devices of the CPU; once a process, before anything uses it."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    configured = tf.config.get_logical_device_configuration(cpu)
    if configured is None or len(configured) != DEVICES:
        one = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [one] * DEVICES)


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that cannot be read is tried again soon, as often as else."""
    monkeypatch.setattr("input_pipeline.retrying.DELAYS_SECONDS", (0.01, 0.02, 0.02, 0.05))
