"""What a training would find here: workers, devices, TensorFlow's build, memory, storage; and the first thing that stops it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer import backend, lock, workdir
from trainer.environment import Workers, attached_tpus, vertex_folders
from trainer.exits import CannotCreate, UserError, WorkdirInUse, one_line
from trainer.hardware import Hardware, workers
from trainer.peers import listen, own_address, resolve, wait_for_names

LEAST_BYTES = 100 * 2**20
"""Free space below which no training starts."""
TICK_SECONDS = 0.01
"""File systems stamp files by a clock that ticks so coarsely."""


@dataclasses.dataclass
class Report:
    """What was found.

    Attributes:
      facts: for programs: what JSON can hold.
      rows: for people: name and text.
      problem: the first thing that would keep a training from starting.
    """

    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    problem: UserError | None = None

    def add(self, name: str, fact: Any, text: str) -> None:
        self.facts[name] = fact
        self.rows.append((name, text))

    @contextlib.contextmanager
    def checking(self, name: str) -> Iterator[None]:
        """Notes a problem and goes on."""
        try:
            yield
        except UserError as error:
            self.rows.append((name, f"PROBLEM: {one_line(error)}"))
            self.problem = self.problem or error

    def print(self) -> None:
        """The table, and a line of JSON."""
        from rich.table import Table
        from rich.text import Text

        from trainer.tables import show

        table = Table(show_header=False)
        for name, text in self.rows:
            table.add_row(Text(name), Text(text))
        show(table)
        problem = {
            "problem": one_line(self.problem) if self.problem else None,
            "code": self.problem.code if self.problem else 0,
        }
        print(json.dumps({**self.facts, **problem}))


def examine(hardware: Hardware, environ: Mapping[str, str], folder: Path | None) -> Report:
    """Looks at everything, changes nothing and waits for nobody.

    Args:
      hardware: as the flags of a training say it.
      environ: environment variables.
      folder: the workdir, which need not be there; None leaves storage out.
    """
    report = Report()
    found = Workers()
    with report.checking("workers"):
        found = workers(hardware, environ, attached_tpus())
    _workers(report, found)
    with report.checking("tensorflow"):
        backend.start()
        _tensorflow(report, environ)
        _devices(report, hardware, found)
    _peers(report, found)
    _machine(report)
    with report.checking("workdir"):
        _storage(report, folder)
    for name, path in vertex_folders(environ).items():
        report.add(
            name, path, f"{environ[name]}, mounted as {path}: give a folder in it as --workdir"
        )
    return report


def _workers(report: Report, found: Workers) -> None:
    report.add("platform", found.platform, found.platform)
    report.facts |= {"workers": list(found.hosts), "worker": found.worker, "tpu": found.tpu}
    several = len(found.hosts) > 1
    this = f"{len(found.hosts)}, this is worker {found.worker}" if several else "this machine alone"
    report.rows.append(("workers", this))
    report.rows += [("note", note) for note in found.notes]


def _peers(report: Report, found: Workers) -> None:
    if len(found.hosts) < 2:
        return
    addresses = {host: resolve(host) for host in found.hosts}
    report.facts["peers"] = addresses
    for host, address in addresses.items():
        text = f"{host} is {address}" if address else f"{host} does not resolve"
        report.rows.append(("peer", text))
    report.rows.append(("peer", "whether they answer shows at the start: no port is open before"))
    with report.checking("peers"):
        known = wait_for_names(found.hosts, 0, resolve=addresses.get)
        with report.checking("port"):
            listen(found.hosts[found.worker], own_address(known, found.worker)).close()


def _tensorflow(report: Report, environ: Mapping[str, str]) -> None:
    import keras
    import tensorflow as tf
    from tensorflow.python.util import _pywrap_util_port as port

    build = tf.sysconfig.get_build_info()
    onednn = bool(port.IsMklEnabled()) and environ.get("TF_ENABLE_ONEDNN_OPTS", "1") != "0"
    facts = {
        "version": tf.__version__,
        "keras": keras.__version__,
        "cuda": str(build.get("cuda_version")) if build.get("is_cuda_build") else None,
        "rocm": bool(build.get("is_rocm_build")),
        "onednn": onednn,
        "xla": tf.test.is_built_with_xla(),
    }
    parts = [
        f"CUDA {facts['cuda']}" if facts["cuda"] else "no CUDA",
        *(["ROCm"] if facts["rocm"] else []),
        f"oneDNN {'on' if onednn else 'off'}",
        "XLA" if facts["xla"] else "no XLA",
    ]
    text = f"{facts['version']} ({', '.join(parts)}), Keras {facts['keras']}"
    report.add("tensorflow", facts, text)
    schemes = sorted(scheme for scheme in tf.io.gfile.get_registered_schemes() if scheme)
    report.facts["gs"] = "gs" in schemes
    text = "gs:// is known" if "gs" in schemes else "no gs://: mount the bucket, as with gcsfuse"
    report.rows.append(("storage", f"{text}; schemes: {', '.join(schemes)}"))


def _devices(report: Report, hardware: Hardware, found: Workers) -> None:
    import tensorflow as tf

    kinds: dict[str, int] = {}
    for device in tf.config.list_physical_devices():
        kinds[device.device_type] = kinds.get(device.device_type, 0) + 1
    report.add("devices", kinds, ", ".join(f"{n} × {kind}" for kind, n in sorted(kinds.items())))
    drivers = Path("/proc/driver/nvidia/gpus")
    if drivers.is_dir() and any(drivers.iterdir()) and not kinds.get("GPU"):
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = (
            'pip install "lockstep-training[gpu]" brings CUDA'
            if hidden is None
            else f'CUDA_VISIBLE_DEVICES is "{hidden}"'
        )
        report.rows.append(("note", f"NVIDIA GPUs that TensorFlow does not see: {why}"))
    if found.tpu or len(found.hosts) > 1 or hardware.strategy == "multi_worker":
        return  # Making the strategy would take the TPU from its user, or wait for the others.
    from trainer.cluster import connect

    cluster = connect(hardware)
    report.facts["replicas"] = cluster.replicas
    report.rows.append(("strategy", cluster.describe()))


# ---------------------------------------------------------------------- machine


def _machine(report: Report) -> None:
    count = cores()
    report.add("cores", count, f"{count:g}")
    total, available = memory()
    report.facts["memory_bytes"], report.facts["memory_available_bytes"] = total, available
    report.rows.append(("memory", f"{_size(available)} available of {_size(total)}"))


def cores(root: Path = Path("/")) -> float:
    """Processor cores that this process may use: those it is bound to, or the share that its control group has."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota, period = [*_words(root / "sys/fs/cgroup/cpu.max"), "max", "max"][:2]
    if quota.isdecimal() and period.isdecimal() and int(period):
        return min(bound or 1, int(quota) / int(period))
    return bound or 1


def memory(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """Bytes of memory of this machine, or of its control group if that has less, and those available; None if not known."""
    lines = {}
    with contextlib.suppress(OSError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            lines[name] = int(value.split()[0]) * 1024
    total, available = lines.get("MemTotal"), lines.get("MemAvailable")
    limit, used = (
        _words(root / "sys/fs/cgroup" / name) for name in ("memory.max", "memory.current")
    )
    if limit and limit[0].isdecimal() and (total is None or int(limit[0]) < total):
        total = int(limit[0])
        free = total - int(used[0]) if used else total
        available = free if available is None else min(available, free)
    return total, available


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    unit = min(max(int(math.log2(max(count, 1)) // 10), 0), 5)
    return f"{count / 1024**unit:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[unit]}"


# ---------------------------------------------------------------------- storage


def _storage(report: Report, folder: Path | None) -> None:
    if folder is None:
        report.add("clock_skew_seconds", None, "not measured: needs --workdir")
        return
    # What is not there yet is made in the nearest folder that is.
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    workdir.prepare(there)
    free = shutil.disk_usage(there).free
    run = ""
    if there == folder:
        steps = workdir.steps_trained(folder)
        run = f", a run of {steps} steps" if steps else ""
    facts = {"path": str(folder), "exists": there == folder, "free_bytes": free}
    report.add("workdir", facts, f"{folder}{run}: {_size(free)} free")
    skew = clock_skew(there)
    report.add(
        "clock_skew_seconds", skew, f"{skew:g} s, the workdir's file system to this machine's"
    )
    if free < LEAST_BYTES:
        raise CannotCreate(
            f"workdir {folder} has {_size(free)} free: make room, at least {_size(LEAST_BYTES)}, or choose another --workdir"
        )
    owner = lock.holder(there) if there == folder else None
    if owner is not None and owner.alive():
        raise WorkdirInUse(
            f"workdir {folder} is in use by {owner}: let it end, or choose another --workdir"
        )


def clock_skew(folder: Path) -> float:
    """Seconds by which a folder's file system, another machine's where it is shared, is ahead of this machine; to 0.01."""
    before = time.time()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        written = os.stat(file.name).st_mtime
    return skew_of(before, written, time.time())


def skew_of(before: float, written: float, after: float) -> float:
    """How far the time of a file is outside of the times, in seconds, between which it was written; to 0.01."""
    if before - TICK_SECONDS <= written <= after + TICK_SECONDS:
        return 0.0
    return round(written - (before if written < before else after), 2)
