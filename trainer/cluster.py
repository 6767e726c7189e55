"""Devices, workers and how the global batch is laid over them. Nothing here decides what is learnt."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator

import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.eager import context

from input_pipeline.batches import Slice
from trainer.data_errors import abort_message, data_problem
from trainer.environment import Workers, attached_tpus
from trainer.exits import ConfigError, LostPeer, UsageError
from trainer.hardware import Hardware, workers
from trainer.heartbeat import Heartbeat
from trainer.listening import close_to_others
from trainer.peers import meet, split

REGISTER_SECONDS = 60
"""How long TensorFlow waits for workers that have met: they lack nothing but its server, or have died."""


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

    def describe(self) -> str:
        """The arithmetic in one line."""
        return (
            f"{self.global_batch} examples = {_replicas(self.replicas)} × {self.microbatch} microbatch "
            f"× {self.accumulation} accumulation"
        )


def batch_layout(
    global_batch: int, replicas: int, microbatch: int | None, streams: int = 0
) -> Layout:
    """Lays a global batch over replicas; of a source whose examples are of streams it must have as many.

    Raises:
      ConfigError: if the replicas do not divide it.
      UsageError: if the microbatch does not divide the part of a replica.
    """
    if global_batch % replicas:
        below = global_batch - global_batch % replicas
        sizes = " or ".join(str(size) for size in (below, below + replicas) if size)
        fitting = max(r for r in range(1, replicas + 1) if global_batch % r == 0)
        raise ConfigError(
            f"global_batch {global_batch} is not divisible by {_replicas(replicas)}: "
            f"use {_replicas(fitting)}, or a global_batch{' and streams' if streams else ''} of {sizes}"
        )
    local = global_batch // replicas
    microbatch = local if microbatch is None else microbatch
    if microbatch < 1 or local % microbatch:
        divisors = ", ".join(str(d) for d in range(1, local + 1) if local % d == 0)
        raise UsageError(
            f"--microbatch={microbatch} does not divide the {local} examples of a replica "
            f"(global_batch {global_batch} / {_replicas(replicas)}): choose one of {divisors}"
        )
    return Layout(replicas, microbatch, local // microbatch)


def _replicas(number: int) -> str:
    return f"{number} replica" + "s" * (number != 1)


SAME_WORKDIR = "--workdir must be the same folder for all workers, on a shared file system"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A strategy and what the trainer needs to know of it: how long it waited for other workers, too."""

    strategy: tf.distribute.Strategy
    xla: bool
    workers: int = 1
    worker: int = 0
    notes: tuple[str, ...] = ()
    waited_seconds: float = 0.0
    watch: Callable[
        [Callable[[LostPeer], None], Callable[[], int]], contextlib.AbstractContextManager
    ] = lambda last_act, stepping: contextlib.nullcontext()
    """Makes the context of a training, in which workers watch each other: see `last_act` and `stepping` of `Heartbeat`."""

    @property
    def chief(self) -> bool:
        """Whether this worker writes checkpoints, metrics and samples."""
        return self.worker == 0

    @property
    def replicas(self) -> int:
        return self.strategy.num_replicas_in_sync

    @property
    def device_type(self) -> str:
        """Of the replicas: "CPU", "GPU" or "TPU"."""
        devices = self.strategy.extended.worker_devices
        return tf.DeviceSpec.from_string(devices[0]).device_type if devices else "CPU"

    def iterate(self, dataset: Callable[[Slice], tf.data.Dataset]) -> Iterator:
        """Iterates over the elements of all replicas at once, each on its own device, as `strategy.run` takes them.

        Args:
          dataset: makes the data set of one worker's slice of each global batch: an element for each replica of it in turn.
        """
        if isinstance(self.strategy, tf.distribute.OneDeviceStrategy) and self.device_type == "CPU":
            # It is there already; the strategy's iterator would hand it on through threads, at 3 % of a step of 12 ms.
            return iter(dataset(Slice()))

        def worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
            count = self.replicas // context.num_input_pipelines
            return dataset(Slice(self.replicas, context.input_pipeline_id * count, count))

        return iter(self.strategy.distribute_datasets_from_function(worker))

    def any_worker(self, *flags: bool) -> tuple[bool, ...]:
        """Of each of at most three flags, whether it is set on any worker: the same answer on all, which must all ask."""
        if self.workers == 1:
            return flags
        # One sum for all: 16 bits count the replicas of each.
        total = self._sum(sum(int(flag) << 16 * place for place, flag in enumerate(flags)))
        return tuple(total >> 16 * place & 0xFFFF > 0 for place in range(len(flags)))

    def check_same(self, what: str, number: int, remedy: str = SAME_WORKDIR) -> None:
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
                f"{what} is {number} on worker {self.worker} and another on others: {remedy}"
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
        name = type(self.strategy).__name__.replace("V2", "").replace("V1", "")
        workers = f" on {self.workers} workers" if self.workers > 1 else ""
        count = tf.config.threading.get_intra_op_parallelism_threads()
        threads = f", {count} thread{'s' * (count > 1)} an operation" if count else ""
        xla = "on" if self.xla else "off"
        return f"{name}, {self.replicas} × {self.device_type}{workers}{threads}, XLA {xla}"


def connect(hardware: Hardware, note: Callable[[str], None] = lambda line: None) -> Cluster:
    """Makes the strategy, once all workers are there; to be called before anything else uses a device.

    Args:
      hardware: as asked for.
      note: is told, in a line, that it waits for others.

    Raises:
      UsageError: if the flags contradict each other or ask for devices that are not there.
      LostPeer: if a worker does not come, or this one's port is taken.
    """
    found = workers(hardware, os.environ, attached_tpus())
    if os.environ.get("TF_CONFIG") == "":
        del os.environ["TF_CONFIG"]  # MirroredStrategy reads it too, and cannot read nothing.
    if hardware.intra_op_threads:
        _use_threads(hardware.intra_op_threads)
    # It loses what makes a variable be read before it is assigned (TRAPS 29).
    tf.config.optimizer.set_experimental_options({"dependency_optimization": False})
    name = hardware.strategy
    if name == "auto":
        name = "tpu" if found.tpu else "multi_worker" if len(found.hosts) > 1 else "local"
    if name == "tpu":
        return _tpu(hardware, found)
    if name == "multi_worker":
        return _multi_worker(hardware, found, note)
    devices = _local_devices(hardware)
    wanted = hardware.replicas or (1 if name == "one_device" else len(devices))
    if wanted > len(devices):
        raise UsageError(
            f"{wanted} replicas need {wanted} devices, and there are {len(devices)}: use --replicas={len(devices)}, "
            f"or --virtual_devices={wanted} to split the CPU"
        )
    devices = devices[:wanted]
    accelerator = "GPU" in devices[0]
    if name == "mirrored" or wanted > 1:
        # Collectives between virtual CPUs would fix the group's size for the whole process.
        reduction = None if accelerator else tf.distribute.ReductionToOneDevice()
        strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)
    else:
        strategy = tf.distribute.OneDeviceStrategy(devices[0])
    return Cluster(strategy, _xla(hardware, accelerator), notes=found.notes)


def _use_threads(count: int) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(count)
    except RuntimeError:
        raise UsageError(
            f"intra_op_threads is {count}, but this process has begun with another number: start another process"
        ) from None


def _local_devices(hardware: Hardware) -> list[str]:
    if hardware.virtual_devices:
        cpu = tf.config.list_physical_devices("CPU")[0]
        # Refused once devices are in use, as by a second trainer in a process; what there is then is counted below.
        with contextlib.suppress(RuntimeError):
            configuration = [tf.config.LogicalDeviceConfiguration()] * hardware.virtual_devices
            tf.config.set_logical_device_configuration(cpu, configuration)
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


def _multi_worker(hardware: Hardware, found: Workers, note: Callable[[str], None]) -> Cluster:
    hosts, worker = found.hosts, found.worker
    note(f"worker {worker} of {len(hosts)}, {hosts[worker]}: waiting for all of them")
    began = time.monotonic()
    connections = meet(hosts, worker, hardware.start_seconds)
    waited = time.monotonic() - began
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(hosts)}),
        task_type="worker",
        task_id=worker,
        rpc_layer="grpc",
    )
    accelerator = bool(tf.config.list_physical_devices("GPU"))
    if accelerator:
        _deterministic()
    _configure_service(len(hosts), hardware.heartbeat_seconds)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    _close_server(hosts[worker], {one.getsockname()[0] for one in connections.values()}, note)
    watch = functools.partial(
        Heartbeat,
        connections,
        hosts,
        worker,
        float(hardware.heartbeat_seconds),
        data_problem=data_problem,
        abort=_abort_collectives,
    )
    return Cluster(
        strategy, _xla(hardware, accelerator), len(hosts), worker, found.notes, waited, watch
    )


def _close_server(host: str, met_at: Collection[str], note: Callable[[str], None]) -> None:
    """Leaves TensorFlow's server to all addresses of this worker's name, and to those at which it has met the others."""
    name, port = split(host)
    own = set(met_at)
    with contextlib.suppress(OSError):
        own |= {str(found[4][0]) for found in socket.getaddrinfo(name, port)}
    if not close_to_others(port, own):
        note(
            f"TensorFlow's port {port} is open on all interfaces of this machine: keep it in a private network"
        )


def _abort_collectives(line: str) -> None:
    context.context().abort_collective_ops(tf.errors.ABORTED, abort_message(line))


def _configure_service(workers: int, heartbeat_seconds: int) -> None:
    """TensorFlow's coordination of workers, as its strategy sets it, but that it waits for nobody for ever.

    The wait for those that register has no end on the first worker, and holds Python's lock: nothing else could end it.
    Its heartbeat is slower than ours, which names who is missing; it serves evaluations, where ours is not.
    """
    if context.context().coordination_service is not None:
        return  # Once a process: it cannot be changed any more.
    job = coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=workers)
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=1000 * REGISTER_SECONDS,
        heartbeat_timeout_in_ms=2000 * heartbeat_seconds,
        coordinated_jobs=[job],
    )
    context.context().coordination_service.cluster_register_with_barrier = True


def _tpu(hardware: Hardware, found: Workers) -> Cluster:
    name = found.tpu or "local"
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        line = str(error).strip().split("\n")[0]
        raise UsageError(f'no TPU "{name}" here ({line}): name one with --tpu=NAME') from None
    return Cluster(
        tf.distribute.TPUStrategy(resolver), _xla(hardware, accelerator=True), notes=found.notes
    )


def _deterministic() -> None:
    # Without it GPU kernels add in any order, and no resume is exact (TRAPS 28).
    tf.config.experimental.enable_op_determinism()


def _xla(hardware: Hardware, accelerator: bool) -> bool:
    return {"on": True, "off": False, "auto": accelerator}[hardware.xla]
