"""Where a training runs, as the flags say it: what contradicts what, and which worker this is. Needs no TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence

from trainer.exits import UsageError

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")
XLA = ("auto", "on", "off")

FITTING = {
    "hosts": ("auto", "multi_worker"),
    "tpu": ("auto", "tpu"),
    "virtual_devices": ("auto", "one_device", "mirrored"),
    "replicas": ("auto", "one_device", "mirrored"),
}
"""What is given -> the strategies that use it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """The flags of a run.

    Attributes:
      strategy: one of `STRATEGIES`; "auto" takes a TPU if named, workers if there are several, else all devices.
      replicas: how many devices of this machine to use; None for all.
      virtual_devices: split the CPU in so many devices; 0 leaves it whole.
      hosts: "host:port" of every worker, the same list on each; empty reads TF_CONFIG.
      worker: index of this worker among `hosts`; None without them.
      tpu: name of a TPU, or "local".
      xla: "on", "off", or "auto": on for GPU and TPU, off for CPU, where oneDNN is faster.
      microbatch: examples a replica computes at a time; None for all of its examples of an update.
      steps_per_loop: most steps between two looks of the host at the device.
    """

    strategy: str = "auto"
    replicas: int | None = None
    virtual_devices: int = 0
    hosts: tuple[str, ...] = ()
    worker: int | None = None
    tpu: str | None = None
    xla: str = "auto"
    microbatch: int | None = None
    steps_per_loop: int = 20


def workers(hardware: Hardware, environ: Mapping[str, str]) -> tuple[tuple[str, ...], int]:
    """Checks the hardware; whether its devices are there, the cluster will tell.

    Args:
      hardware: as asked for.
      environ: environment variables, of which TF_CONFIG counts where there are no `hosts`.

    Returns:
      The hosts of all workers, none for this machine alone, and which of them this is.

    Raises:
      UsageError: in one line, the first contradiction.
    """
    _check_values(hardware)
    _check_flags(hardware)
    if hardware.hosts:
        return hardware.hosts, _check_hosts(hardware.hosts, hardware.worker)
    if hardware.worker is not None:
        raise UsageError("--worker needs --hosts=a:port,b:port, the same list on every worker")
    hosts, worker = _tf_config(environ.get("TF_CONFIG") or "{}")
    if hardware.strategy == "multi_worker" and not hosts:
        raise UsageError(
            "--strategy=multi_worker needs its workers: --hosts=a:port,b:port --worker=i, or TF_CONFIG"
        )
    if len(hosts) > 1:
        _check_fits_workers(hardware, len(hosts))
    return hosts, worker


def _check_values(hardware: Hardware) -> None:
    for name, known in (("strategy", STRATEGIES), ("xla", XLA)):
        value = getattr(hardware, name)
        if value not in known:
            raise UsageError(f"--{name}={value}: choose one of {', '.join(known)}")
    for name, least in (
        ("replicas", 1),
        ("virtual_devices", 0),
        ("microbatch", 1),
        ("steps_per_loop", 1),
    ):
        value = getattr(hardware, name)
        if value is not None and value < least:
            raise UsageError(f"--{name}={value}: it must be at least {least}")


def _check_flags(hardware: Hardware) -> None:
    given = {name: getattr(hardware, name) for name in FITTING}
    for name, strategies in FITTING.items():
        if given[name] and hardware.strategy not in strategies:
            raise UsageError(
                f"--{name} and --strategy={hardware.strategy} exclude each other: drop one"
            )
    for one, other in (
        ("hosts", "tpu"),
        ("hosts", "virtual_devices"),
        ("hosts", "replicas"),
        ("tpu", "virtual_devices"),
        ("tpu", "replicas"),
    ):
        if given[one] and given[other]:
            raise UsageError(f"--{one} and --{other} exclude each other: drop one")
    replicas, devices = hardware.replicas or 1, hardware.virtual_devices
    if hardware.strategy == "one_device" and replicas > 1:
        raise UsageError(f"--strategy=one_device has one replica: drop --replicas={replicas}")
    if devices and replicas > devices:
        raise UsageError(f"--replicas={replicas} needs as many --virtual_devices, not {devices}")


def _check_hosts(hosts: Sequence[str], worker: int | None) -> int:
    wrong = [host for host in hosts if not re.fullmatch(r"[^\s:]+:\d+|\[[0-9a-fA-F:]+\]:\d+", host)]
    if wrong:
        raise UsageError(f'--hosts names "{wrong[0]}": write host:port')
    if len(set(hosts)) < len(hosts):
        raise UsageError("--hosts names a worker twice: give each its own host:port")
    if worker is None:
        raise UsageError(f"--hosts needs --worker: which of them this is, 0 to {len(hosts) - 1}")
    _check_number("--worker=", worker, hosts)
    return worker


def _check_number(kind: str, number: int, hosts: Sequence[str]) -> None:
    if hosts and not 0 <= number < len(hosts):
        raise UsageError(f"{kind}{number} is not among the {len(hosts)} hosts: number from 0")


def _check_fits_workers(hardware: Hardware, count: int) -> None:
    """Else each of the machines would be the chief of a training of its own, all in one workdir."""
    there = f"TF_CONFIG names {count} workers"
    if hardware.strategy not in FITTING["hosts"]:
        raise UsageError(
            f"{there}, and --strategy={hardware.strategy} has one: "
            "use --strategy=multi_worker, or unset TF_CONFIG"
        )
    for name in ("tpu", "virtual_devices", "replicas"):
        if getattr(hardware, name):
            raise UsageError(
                f"{there}, each with all of its devices: drop --{name}, or unset TF_CONFIG"
            )


def _tf_config(text: str) -> tuple[tuple[str, ...], int]:
    """The hosts that TF_CONFIG names, and which of them this is. A chief is the first worker."""
    try:
        described = json.loads(text)
        jobs, task = described.get("cluster", {}), described.get("task", {})
        chiefs, others = jobs.get("chief", []), jobs.get("worker", [])
        if not isinstance(chiefs, list) or not isinstance(others, list):
            raise TypeError("hosts must be a list")
        kind, index = task.get("type", "worker"), int(task.get("index", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"TF_CONFIG is not a cluster description ({error}): mend or unset it"
        ) from None
    if kind not in ("chief", "worker"):
        raise UsageError(f"TF_CONFIG says that this is a task {kind}: only chief and worker train")
    _check_number(f"{kind} ", index, chiefs if kind == "chief" else others)
    return (*chiefs, *others), index if kind == "chief" else len(chiefs) + index
