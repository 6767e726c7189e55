"""Promise 2 over two worker processes on loopback."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.contract.families import FAMILIES
from tests.contract.runs import ONE, assert_close, results, train


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """The folder in which two workers have trained each family."""
    folder = tmp_path_factory.mktemp("workers")
    hosts = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    command = [sys.executable, "-m", "tests.contract.child", "worker"]
    gang = []
    for rank in range(2):
        with (folder / f"worker{rank}.log").open("w") as log:
            gang.append(
                subprocess.Popen([*command, str(rank), hosts, str(folder)], stdout=log, stderr=log)
            )
    try:
        codes = [process.wait(timeout=300) for process in gang]
    finally:
        for process in gang:
            process.kill()
    assert codes == [0, 0], (folder / "worker0.log").read_text()[-3000:]
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_two_workers_learn_the_same(family, workers, tmp_path):
    run, expected = results(workers / family), train(FAMILIES[family](), ONE, tmp_path)
    assert len(run.rows) == 50
    assert_close(run, expected, losses=1e-9, weights=1e-8)
