"""Where it runs: devices, workers and how the global batch is laid over them. Nothing here decides what is learnt."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence

import tensorflow as tf

from input_pipeline.batches import Slice
from trainer.exits import ConfigError, UsageError

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """The flags of a run.

    Attributes:
      strategy: one of `STRATEGIES`; "auto" takes a TPU if named, workers if there are several, else all devices.
      replicas: how many devices of this machine to use; None for all.
      virtual_devices: split the CPU in so many devices; 0 leaves it whole.
      hosts: "host:port" of every worker, the same list on each; empty reads TF_CONFIG.
      worker: index of this worker among them.
      tpu: name of a TPU, or "local".
      xla: "on", "off", or "auto": on for GPU and TPU, off for CPU, where oneDNN is faster.
      microbatch: examples a replica computes at a time; None for all of its examples of an update.
      steps_per_loop: most steps between two looks of the host at the device.
    """

    strategy: str = "auto"
    replicas: int | None = None
    virtual_devices: int = 0
    hosts: tuple[str, ...] = ()
    worker: int = 0
    tpu: str | None = None
    xla: str = "auto"
    microbatch: int | None = None
    steps_per_loop: int = 20


@dataclasses.dataclass(frozen=True)
class Layout:
    """global batch = replicas × microbatch × accumulation."""

    replicas: int
    microbatch: int
    accumulation: int

    @property
    def local_batch(self) -> int:
        """Examples an update on one replica."""
        return self.microbatch * self.accumulation

    @property
    def global_batch(self) -> int:
        return self.replicas * self.local_batch


def batch_layout(global_batch: int, replicas: int, microbatch: int | None) -> Layout:
    """Lays a global batch over replicas.

    Raises:
      ConfigError: if it does not divide.
    """
    if global_batch % replicas:
        below = global_batch - global_batch % replicas
        sizes = " or ".join(str(size) for size in (below, below + replicas) if size)
        fitting = max(r for r in range(1, replicas + 1) if global_batch % r == 0)
        raise ConfigError(
            f"global_batch {global_batch} is not divisible by {_replicas(replicas)}: "
            f"use {_replicas(fitting)}, or a global_batch of {sizes}"
        )
    local = global_batch // replicas
    microbatch = local if microbatch is None else microbatch
    if microbatch < 1 or local % microbatch:
        divisors = ", ".join(str(d) for d in range(1, local + 1) if local % d == 0)
        raise ConfigError(
            f"microbatch {microbatch} does not divide the {local} examples of a replica "
            f"(global_batch {global_batch} / {_replicas(replicas)}): choose one of {divisors}"
        )
    return Layout(replicas, microbatch, local // microbatch)


def _replicas(number: int) -> str:
    return f"{number} replica" + "s" * (number != 1)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A strategy and what the trainer needs to know of it."""

    strategy: tf.distribute.Strategy
    xla: bool
    workers: int = 1
    worker: int = 0

    @property
    def chief(self) -> bool:
        """Whether this worker writes checkpoints, metrics and samples."""
        return self.worker == 0

    @property
    def replicas(self) -> int:
        return self.strategy.num_replicas_in_sync

    def slice(self, context: tf.distribute.InputContext) -> Slice:
        """The part of each global batch that one input pipeline feeds."""
        count = self.replicas // context.num_input_pipelines
        return Slice(self.replicas, context.input_pipeline_id * count, count)

    def any_worker(self, flag: bool) -> bool:
        """Whether the flag is set on any worker: the same answer on all, which must all ask."""
        return flag if self.workers == 1 else self._sum(int(flag)) > 0

    def check_same(self, what: str, number: int) -> None:
        """Checks that a number is the same on all workers, which must all ask.

        Raises:
          ConfigError: on every worker alike, if it is not.
        """
        if self.workers == 1:
            return
        mean, squares = (
            self._sum(number) / self.replicas,
            self._sum(number * number) / self.replicas,
        )
        if squares != mean * mean:
            raise ConfigError(
                f"{what} is {number} on worker {self.worker} and another on others: "
                "--workdir must be the same folder for all workers, on a shared file system"
            )

    def _sum(self, number: int) -> int:
        return int(self._summed(tf.constant(number, tf.int64)))

    @functools.cached_property
    def _summed(self) -> Callable[[tf.Tensor], tf.Tensor]:
        def reduced(number: tf.Tensor) -> tf.Tensor:
            return tf.distribute.get_replica_context().all_reduce("SUM", tf.identity(number))

        def run(number: tf.Tensor) -> tf.Tensor:
            return self.strategy.experimental_local_results(self.strategy.run(reduced, (number,)))[
                0
            ]

        return tf.function(run, autograph=False)

    def describe(self) -> str:
        """One line for people."""
        devices = self.strategy.extended.worker_devices
        kind = tf.DeviceSpec.from_string(devices[0]).device_type if devices else "CPU"
        name = type(self.strategy).__name__.replace("V2", "").replace("V1", "")
        workers = f" on {self.workers} workers" if self.workers > 1 else ""
        return f"{name}, {self.replicas} × {kind}{workers}, XLA {'on' if self.xla else 'off'}"


def connect(hardware: Hardware) -> Cluster:
    """Makes the strategy; to be called before anything else uses a device.

    Raises:
      UsageError: if the flags contradict each other or ask for devices that are not there.
    """
    _check(hardware)
    hosts, worker = _hosts(hardware)
    name = hardware.strategy
    if name == "auto":
        name = "tpu" if hardware.tpu else "multi_worker" if len(hosts) > 1 else "local"
    if name == "tpu":
        return _tpu(hardware)
    if name == "multi_worker":
        return _multi_worker(hardware, hosts, worker)
    devices = _local_devices(hardware)
    wanted = hardware.replicas or (1 if name == "one_device" else len(devices))
    if wanted > len(devices):
        raise UsageError(
            f"{wanted} replicas need {wanted} devices, and there are {len(devices)}: use --replicas={len(devices)}, "
            f"or --virtual_devices={wanted} to split the CPU"
        )
    if name == "one_device" and wanted != 1:
        raise UsageError(
            f"strategy one_device has one replica, not {wanted}: use --strategy=mirrored"
        )
    devices = devices[:wanted]
    accelerator = "GPU" in devices[0]
    if name == "mirrored" or wanted > 1:
        # Collectives between virtual CPUs would fix the group's size for the whole process.
        reduction = None if accelerator else tf.distribute.ReductionToOneDevice()
        strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)
    else:
        strategy = tf.distribute.OneDeviceStrategy(devices[0])
    return Cluster(strategy, _xla(hardware, accelerator))


def _check(hardware: Hardware) -> None:
    for name, known in (("strategy", STRATEGIES), ("xla", ("auto", "on", "off"))):
        if getattr(hardware, name) not in known:
            raise UsageError(
                f'{name} "{getattr(hardware, name)}" is unknown: choose one of {", ".join(known)}'
            )
    for name, least in (("replicas", 1), ("virtual_devices", 0), ("steps_per_loop", 1)):
        value = getattr(hardware, name)
        if value is not None and value < least:
            raise UsageError(f"{name} is {value}: it must be at least {least}")
    if hardware.strategy in ("one_device", "mirrored") and len(hardware.hosts) > 1:
        raise UsageError(
            f"strategy {hardware.strategy} has one worker, not {len(hardware.hosts)}: "
            "use --strategy=multi_worker, or drop --hosts"
        )


def _hosts(hardware: Hardware) -> tuple[tuple[str, ...], int]:
    if not hardware.hosts:
        return _tf_config()
    _check_number("worker", hardware.worker, hardware.hosts)
    return tuple(hardware.hosts), hardware.worker


def _tf_config() -> tuple[tuple[str, ...], int]:
    """The hosts that TF_CONFIG names, and which of them this is. A chief is the first worker."""
    if os.environ.get("TF_CONFIG") == "":
        del os.environ["TF_CONFIG"]  # MirroredStrategy reads it too, and cannot read nothing.
    try:
        described = json.loads(os.environ.get("TF_CONFIG", "{}"))
        jobs, task = described.get("cluster", {}), described.get("task", {})
        chiefs, workers = jobs.get("chief", []), jobs.get("worker", [])
        if not isinstance(chiefs, list) or not isinstance(workers, list):
            raise TypeError("hosts must be a list")
        kind, index = task.get("type", "worker"), int(task.get("index", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"TF_CONFIG is not a cluster description ({error}): mend or unset it"
        ) from None
    if kind not in ("chief", "worker"):
        raise UsageError(f"TF_CONFIG says that this is a task {kind}: only chief and worker train")
    _check_number(kind, index, chiefs if kind == "chief" else workers)
    return (*chiefs, *workers), index if kind == "chief" else len(chiefs) + index


def _check_number(kind: str, number: int, hosts: Sequence[str]) -> None:
    if hosts and not 0 <= number < len(hosts):
        raise UsageError(f"{kind} {number} is not among the {len(hosts)} hosts: number them from 0")


def _local_devices(hardware: Hardware) -> list[str]:
    if hardware.virtual_devices:
        cpu = tf.config.list_physical_devices("CPU")[0]
        try:
            configuration = [tf.config.LogicalDeviceConfiguration()] * hardware.virtual_devices
            tf.config.set_logical_device_configuration(cpu, configuration)
        except RuntimeError:  # devices are in use; enough of them is good enough
            pass
        count = len(tf.config.list_logical_devices("CPU"))
        if count < hardware.virtual_devices:
            raise UsageError(
                f"virtual_devices is {hardware.virtual_devices}, but this process has split the CPU in {count} already: "
                "start another process"
            )
        return [f"CPU:{i}" for i in range(hardware.virtual_devices)]
    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        _deterministic()
        return [f"GPU:{i}" for i in range(len(gpus))]
    return [f"CPU:{i}" for i in range(len(tf.config.list_logical_devices("CPU")))]


def _multi_worker(hardware: Hardware, hosts: tuple[str, ...], worker: int) -> Cluster:
    if not hosts:
        raise UsageError(
            "strategy multi_worker needs its workers: set TF_CONFIG, or --hosts=a:port,b:port --worker=i"
        )
    if hardware.virtual_devices or hardware.replicas:
        raise UsageError(
            "strategy multi_worker uses every device of a worker: drop --virtual_devices and --replicas"
        )
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(hosts)}),
        task_type="worker",
        task_id=worker,
        rpc_layer="grpc",
    )
    accelerator = bool(tf.config.list_physical_devices("GPU"))
    if accelerator:
        _deterministic()
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    return Cluster(strategy, _xla(hardware, accelerator), workers=len(hosts), worker=worker)


def _tpu(hardware: Hardware) -> Cluster:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=hardware.tpu or "local")
        if hardware.tpu not in (None, "local"):
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        line = str(error).strip().split("\n")[0]
        raise UsageError(
            f'no TPU "{hardware.tpu or "local"}" here ({line}): name one with --tpu=NAME'
        ) from None
    return Cluster(tf.distribute.TPUStrategy(resolver), _xla(hardware, accelerator=True))


def _deterministic() -> None:
    # Without it GPU kernels add in any order, and no resume is exact (TRAPS 28).
    tf.config.experimental.enable_op_determinism()


def _xla(hardware: Hardware, accelerator: bool) -> bool:
    return {"on": True, "off": False, "auto": accelerator}[hardware.xla]
