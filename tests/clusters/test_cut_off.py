"""A worker whose network is cut off in the middle of a training: both sides notice, and the gang goes on without loss.

Each worker has a network namespace with an address of its own, which needs root and `ip`.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.clusters.tiny import tiny
from tests.contract.runs import assert_equal, results

ROOT = pathlib.Path(__file__).parents[2]
NAMES = [f"lockstep{os.getpid()}n{i}" for i in range(2)]
LINKS = [f"ls{os.getpid()}"[:12] + f"v{i}" for i in range(2)]
ADDRESSES = ["10.78.0.1", "10.78.0.2"]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def reason() -> str:
    """Why there can be no network namespaces here; empty if there can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "no ip command"
    if os.geteuid():
        return "network namespaces need root"
    made = subprocess.run(["ip", "netns", "add", NAMES[0]], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespaces: {made.stderr.strip()}"
    ip("netns", "delete", NAMES[0])
    return ""


@pytest.fixture
def network() -> Iterator[None]:
    """Two namespaces and a link between them."""
    if why := reason():
        pytest.skip(why)
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", LINKS[0], "netns", NAMES[0], "type", "veth", "peer", "name", LINKS[1], "netns", NAMES[1])  # fmt: skip
        for name, link, address in zip(NAMES, LINKS, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", link, "up")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def start(workdir: pathlib.Path) -> list[subprocess.Popen[str]]:
    hosts = ",".join(f"{address}:2222" for address in ADDRESSES)
    command = [sys.executable, "-m", "trainer.main", "train", "vae/digits_mlp"]
    command += [f"--workdir={workdir}", f"--hosts={hosts}", "--heartbeat_seconds=5"]
    command += tiny(1200, checkpoint_every=40)
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", name, *command, f"--worker={worker}"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for worker, name in enumerate(NAMES)
    ]


@pytest.mark.full
def test_a_worker_that_is_cut_off_is_missed_and_nothing_is_lost(network, tmp_path):
    undisturbed = start(tmp_path / "undisturbed")
    assert [process.communicate()[1] and process.returncode for process in undisturbed] == [0, 0]

    gang = start(tmp_path / "run")
    try:
        while not list(tmp_path.glob("run/checkpoints/step-*")):
            assert gang[0].poll() is None, gang[0].communicate()
            time.sleep(0.002)
        ip("-n", NAMES[1], "link", "set", LINKS[1], "down")
        began = time.monotonic()
        said = [process.communicate(timeout=120)[1] for process in gang]
        seconds = time.monotonic() - began
    finally:
        for process in gang:
            process.kill()
    assert [process.returncode for process in gang] == [75, 75], said
    for worker, text in enumerate(said):
        other = 1 - worker
        assert [line for line in text.splitlines() if line.startswith("lockstep:")] == [
            f"lockstep: worker {other} ({ADDRESSES[other]}:2222) did not beat for 5 seconds, stopped or cut off: see its "
            "log, and start all workers again; they go on from the last checkpoint"
        ]
    assert 3.5 < seconds < 10
    print(f"both had ended {seconds:.1f} seconds after the cut")

    ip("-n", NAMES[1], "link", "set", LINKS[1], "up")
    gang = start(tmp_path / "run")
    said = [process.communicate()[1] for process in gang]
    assert [process.returncode for process in gang] == [0, 0], said
    (step,) = re.findall(r"going on from step (\d+) on .* on 2 workers", said[0])
    assert 40 <= int(step) < 1200
    assert_equal(results(tmp_path / "run"), results(tmp_path / "undisturbed"))
