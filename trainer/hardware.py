"""Where a training runs, as the flags say it: what contradicts what, and which worker this is. Needs no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from trainer.environment import ALONE, FLAGS, Workers, check_whole_slice, is_address, read
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
      strategy: one of `STRATEGIES`; "auto" takes a TPU if there is one, workers if there are several, else all devices.
      replicas: how many devices of this machine to use; None for all.
      virtual_devices: split the CPU in so many devices; 0 leaves it whole.
      hosts: "host:port" of every worker, the same list on each; empty reads the environment.
      worker: index of this worker among `hosts`; None without them.
      tpu: name of a TPU, or "local".
      xla: "on", "off", or "auto": on for GPU and TPU, off for CPU, where oneDNN is faster.
      microbatch: examples a replica computes at a time; None for all of its examples of an update. On CPU without XLA
        several are computed side by side, if there are threads.
      intra_op_threads: threads of one operation on CPU; None for TensorFlow's choice, all cores. With one for each, small
        networks train faster if as many microbatches as there are cores are computed side by side.
      steps_per_loop: most steps between two looks of the host at the device; see `schedule.Pace`.
      start_seconds: how long a worker waits for the others to start.
      heartbeat_seconds: after how long a worker that is stopped or cut off is missing.
      check_replicas_every: steps between two looks whether replicas are alike, beside those at saves; 0 for these alone.
      max_rollbacks: how often in one start the run goes back to a checkpoint because they were not.
    """

    strategy: str = "auto"
    replicas: int | None = None
    virtual_devices: int = 0
    hosts: tuple[str, ...] = ()
    worker: int | None = None
    tpu: str | None = None
    xla: str = "auto"
    microbatch: int | None = None
    intra_op_threads: int | None = None
    steps_per_loop: int = 20
    start_seconds: int = 600
    heartbeat_seconds: int = 60
    check_replicas_every: int = 0
    max_rollbacks: int = 3


def workers(hardware: Hardware, environ: Mapping[str, str], attached_tpus: int = 0) -> Workers:
    """Checks the hardware; whether its devices are there, the cluster will tell.

    Args:
      hardware: as asked for.
      environ: environment variables, which count where there are no `hosts`, see `trainer.environment`.
      attached_tpus: TPU chips of this machine, which are used where nothing else is asked for.

    Returns:
      All workers, and which of them this is; `tpu` only if it is to be used.

    Raises:
      UsageError: in one line, the first contradiction.
    """
    _check_values(hardware)
    _check_flags(hardware)
    if hardware.hosts:
        return Workers(hardware.hosts, _check_hosts(hardware.hosts, hardware.worker), FLAGS)
    if hardware.worker is not None:
        raise UsageError("--worker needs --hosts=a:port,b:port, the same list on every worker")
    found = read(environ, attached_tpus)
    if hardware.strategy == "multi_worker" and not found.hosts:
        raise UsageError(
            "--strategy=multi_worker needs its workers: --hosts=a:port,b:port --worker=i, or TF_CONFIG"
        )
    if len(found.hosts) > 1:
        _check_fits_workers(hardware, found)
    tpu = _tpu(hardware, found)
    if tpu == "local":
        check_whole_slice(environ)
    return dataclasses.replace(found, tpu=tpu)


def _tpu(hardware: Hardware, found: Workers) -> str | None:
    """What the flags name, else what is there, unless the flags ask for other devices."""
    if hardware.tpu or hardware.strategy == "tpu":
        return hardware.tpu or found.tpu or "local"
    others = hardware.strategy != "auto" or hardware.virtual_devices or hardware.replicas
    return None if others or len(found.hosts) > 1 else found.tpu


def _check_values(hardware: Hardware) -> None:
    for name, known in (("strategy", STRATEGIES), ("xla", XLA)):
        value = getattr(hardware, name)
        if value not in known:
            raise UsageError(f"--{name}={value}: choose one of {', '.join(known)}")
    for name, least in (
        ("replicas", 1),
        ("virtual_devices", 0),
        ("microbatch", 1),
        ("intra_op_threads", 1),
        ("steps_per_loop", 1),
        ("start_seconds", 1),
        ("heartbeat_seconds", 1),
        ("check_replicas_every", 0),
        ("max_rollbacks", 0),
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
    wrong = [host for host in hosts if not is_address(host)]
    if wrong:
        raise UsageError(f'--hosts names "{wrong[0]}": write host:port')
    if len(set(hosts)) < len(hosts):
        raise UsageError("--hosts names a worker twice: give each its own host:port")
    if worker is None:
        raise UsageError(f"--hosts needs --worker: which of them this is, 0 to {len(hosts) - 1}")
    if not 0 <= worker < len(hosts):
        raise UsageError(f"--worker={worker} is not among the {len(hosts)} hosts: number from 0")
    return worker


def _check_fits_workers(hardware: Hardware, found: Workers) -> None:
    """Else each of the machines would be the chief of a training of its own, all in one workdir."""
    there, alone = f"{found.platform} names {len(found.hosts)} workers", ALONE[found.platform]
    if hardware.strategy not in FITTING["hosts"]:
        raise UsageError(
            f"{there}, and --strategy={hardware.strategy} has one: "
            f"use --strategy=multi_worker, or {alone}"
        )
    for name in ("tpu", "virtual_devices", "replicas"):
        if getattr(hardware, name):
            raise UsageError(f"{there}, each with all of its devices: drop --{name}, or {alone}")
