"""Where it runs: the batch over replicas, flags that contradict each other, workers and their parts."""

from __future__ import annotations

import json

import pytest
import tensorflow as tf

from input_pipeline.batches import Slice
from trainer import cluster as module
from trainer.cluster import Cluster, Layout, batch_layout, connect
from trainer.exits import ConfigError, UsageError
from trainer.hardware import Hardware

# ---------------------------------------------------------------------- batch


@pytest.mark.parametrize(
    ("global_batch", "replicas", "microbatch", "layout", "local"),
    [
        (64, 1, None, Layout(1, 64, 1), 64),
        (64, 4, None, Layout(4, 16, 1), 16),
        (64, 4, 16, Layout(4, 16, 1), 16),
        (64, 4, 2, Layout(4, 2, 8), 16),
        (6, 2, 1, Layout(2, 1, 3), 3),
        (1, 1, 1, Layout(1, 1, 1), 1),
    ],
)
def test_global_batch_is_replicas_by_microbatch_by_accumulation(
    global_batch, replicas, microbatch, layout, local
):
    assert batch_layout(global_batch, replicas, microbatch) == layout
    assert (layout.local_batch, layout.global_batch) == (local, global_batch)


@pytest.mark.parametrize(
    ("global_batch", "replicas", "microbatch", "line"),
    [
        (
            10,
            4,
            None,
            "global_batch 10 is not divisible by 4 replicas: use 2 replicas, or a global_batch of 8 or 12",
        ),
        (
            7,
            2,
            None,
            "global_batch 7 is not divisible by 2 replicas: use 1 replica, or a global_batch of 6 or 8",
        ),
        (
            3,
            4,
            None,
            "global_batch 3 is not divisible by 4 replicas: use 3 replicas, or a global_batch of 4",
        ),
        (
            24,
            2,
            5,
            "--microbatch=5 does not divide the 12 examples of a replica (global_batch 24 / 2 replicas): "
            "choose one of 1, 2, 3, 4, 6, 12",
        ),
        (
            4,
            1,
            8,
            "--microbatch=8 does not divide the 4 examples of a replica (global_batch 4 / 1 replica): "
            "choose one of 1, 2, 4",
        ),
        (
            4,
            2,
            -1,
            "--microbatch=-1 does not divide the 2 examples of a replica (global_batch 4 / 2 replicas): "
            "choose one of 1, 2",
        ),
        (
            4,
            2,
            0,
            "--microbatch=0 does not divide the 2 examples of a replica (global_batch 4 / 2 replicas): "
            "choose one of 1, 2",
        ),
    ],
)
def test_a_batch_that_does_not_divide(global_batch, replicas, microbatch, line):
    with pytest.raises(ConfigError if microbatch is None else UsageError) as error:
        batch_layout(global_batch, replicas, microbatch)
    assert str(error.value) == line


def test_streams_must_be_as_many_as_the_batch():
    with pytest.raises(ConfigError, match=r"use 1 replica, or a global_batch and streams of 2$"):
        batch_layout(1, 2, None, streams=1)


# ---------------------------------------------------------------------- devices of this machine


@pytest.mark.parametrize(
    ("hardware", "kind", "devices"),
    [
        (Hardware(), "MirroredStrategy", 4),
        (Hardware(virtual_devices=4), "MirroredStrategy", 4),
        (Hardware(virtual_devices=3), "MirroredStrategy", 3),
        (Hardware(replicas=2), "MirroredStrategy", 2),
        (Hardware(replicas=1), "OneDeviceStrategy", 1),
        (Hardware(strategy="one_device"), "OneDeviceStrategy", 1),
        (Hardware(strategy="one_device", virtual_devices=4), "OneDeviceStrategy", 1),
        (Hardware(strategy="mirrored", replicas=1), "MirroredStrategy", 1),
        (Hardware(strategy="mirrored", replicas=3), "MirroredStrategy", 3),
        (Hardware(hosts=("a:1",), worker=0), "MirroredStrategy", 4),
    ],
)
def test_devices_and_strategy(hardware, kind, devices):
    found = connect(hardware)
    assert type(found.strategy).__name__ == kind
    assert (found.replicas, found.workers, found.worker, found.chief) == (devices, 1, 0, True)
    names = [device.split("/")[-1] for device in found.strategy.extended.worker_devices]
    assert names == [f"device:CPU:{i}" for i in range(devices)]
    assert found.describe() == f"{kind}, {devices} × CPU, XLA off"


@pytest.mark.parametrize(
    ("hardware", "line"),
    [
        (
            Hardware(strategy="horovod"),
            "--strategy=horovod: choose one of auto, one_device, mirrored, multi_worker, tpu",
        ),
        (
            Hardware(replicas=5),
            "5 replicas need 5 devices, and there are 4: use --replicas=4, or --virtual_devices=5 to split the CPU",
        ),
        (
            Hardware(replicas=4, virtual_devices=2),
            "--replicas=4 needs as many --virtual_devices, not 2",
        ),
        (
            Hardware(virtual_devices=8),
            "virtual_devices is 8, but this process has split the CPU in 4 already: start another process",
        ),
        (
            Hardware(intra_op_threads=99),
            "intra_op_threads is 99, but this process has begun with another number: start another process",
        ),
        (
            Hardware(strategy="one_device", replicas=2),
            "--strategy=one_device has one replica: drop --replicas=2",
        ),
        (
            Hardware(strategy="multi_worker"),
            "--strategy=multi_worker needs its workers: --hosts=a:port,b:port --worker=i, or TF_CONFIG",
        ),
        (
            Hardware(strategy="multi_worker", hosts=("a:1", "b:1"), virtual_devices=2),
            "--virtual_devices and --strategy=multi_worker exclude each other: drop one",
        ),
        (
            Hardware(hosts=("a:1", "b:1"), replicas=2),
            "--hosts and --replicas exclude each other: drop one",
        ),
        (
            Hardware(hosts=("a:1", "b:1"), worker=2),
            "--worker=2 is not among the 2 hosts: number from 0",
        ),
        (
            Hardware(hosts=("a:1", "b:1"), worker=-1),
            "--worker=-1 is not among the 2 hosts: number from 0",
        ),
        (
            Hardware(strategy="mirrored", hosts=("a:1", "b:1")),
            "--hosts and --strategy=mirrored exclude each other: drop one",
        ),
        (Hardware(xla="yes"), "--xla=yes: choose one of auto, on, off"),
        (Hardware(steps_per_loop=0), "--steps_per_loop=0: it must be at least 1"),
        (Hardware(intra_op_threads=0), "--intra_op_threads=0: it must be at least 1"),
        (Hardware(replicas=0), "--replicas=0: it must be at least 1"),
        (Hardware(replicas=-2), "--replicas=-2: it must be at least 1"),
        (Hardware(virtual_devices=-1), "--virtual_devices=-1: it must be at least 0"),
    ],
)
def test_flags_that_contradict_each_other_or_the_machine(hardware, line):
    with pytest.raises(UsageError) as error:
        connect(hardware)
    assert str(error.value) == line


@pytest.mark.parametrize(("flag", "on"), [("auto", False), ("on", True), ("off", False)])
def test_xla_on_cpu(flag, on):
    found = connect(Hardware(strategy="one_device", xla=flag))
    assert found.xla is on
    assert found.describe().endswith("XLA on" if on else "XLA off")


def test_no_tpu_is_one_line(monkeypatch):
    def none(tpu):
        raise ValueError("Could not find TPU\nand a page of advice")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", none)
    for hardware in (Hardware(tpu="pod-1"), Hardware(strategy="tpu", tpu="pod-1")):
        with pytest.raises(UsageError) as error:
            connect(hardware)
        assert (
            str(error.value) == 'no TPU "pod-1" here (Could not find TPU): name one with --tpu=NAME'
        )
    with pytest.raises(UsageError, match='no TPU "local" here'):
        connect(Hardware(strategy="tpu"))


# ---------------------------------------------------------------------- workers


class Gang:
    """Stands in for MultiWorkerMirroredStrategy, which would wait for the other workers."""

    num_replicas_in_sync = 2

    def __init__(self, cluster_resolver):
        self.hosts = cluster_resolver.cluster_spec().job_tasks("worker")
        self.task = cluster_resolver.task_type, cluster_resolver.task_id


@pytest.fixture
def gang(monkeypatch):
    """connect, with the environment variable TF_CONFIG, where all workers are there."""
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", Gang)
    monkeypatch.setattr(module, "meet", lambda hosts, worker, seconds: {})
    monkeypatch.setattr(module, "_configure_service", lambda workers, seconds: None)
    monkeypatch.setattr(module, "_close_server", lambda host, met_at, note: None)

    def run(config=None, hardware=None):
        text = config if isinstance(config, str) else json.dumps(config)
        monkeypatch.setenv("TF_CONFIG", text) if config is not None else monkeypatch.delenv(
            "TF_CONFIG", raising=False
        )
        return connect(hardware or Hardware())

    return run


def described(index, kind="worker", **jobs):
    return {"cluster": jobs, "task": {"type": kind, "index": index}}


def test_workers_of_tf_config(gang):
    found = gang(described(1, worker=["a:1", "b:1", "c:1"]))
    assert found.strategy.hosts == ["a:1", "b:1", "c:1"]
    assert found.strategy.task == ("worker", 1)
    assert (found.workers, found.worker, found.chief, found.xla) == (3, 1, False, False)
    assert gang(described(0, worker=["a:1", "b:1"])).chief
    # An index in quotes is what some launchers write.
    assert gang(described("1", worker=["a:1", "b:1"])).worker == 1


def test_a_chief_of_tf_config_is_the_first_worker(gang):
    """Clusters of TensorFlow's tradition name one worker the chief, and number the others from 0."""
    jobs = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    chief = gang(described(0, "chief", **jobs))
    assert (chief.strategy.task, chief.chief) == (("worker", 0), True)
    last = gang(described(1, "worker", **jobs))
    assert (last.strategy.task, last.chief) == (("worker", 2), False)
    assert chief.strategy.hosts == last.strategy.hosts == ["a:1", "b:1", "c:1"]


def test_hosts_win_over_tf_config(gang):
    config = described(0, worker=["a:1", "b:1", "c:1"])
    found = gang(config, Hardware(hosts=("x:1", "y:2"), worker=1))
    assert (found.strategy.hosts, found.worker) == (["x:1", "y:2"], 1)


def test_one_worker_is_this_machine(gang):
    for config in (described(0, worker=["a:1"]), {}, "", {"task": {"index": 0}}):
        found = gang(config)
        assert (type(found.strategy).__name__, found.workers) == ("MirroredStrategy", 1)


def test_multi_worker_may_have_one_worker(gang):
    found = gang(described(0, worker=["a:1"]), Hardware(strategy="multi_worker"))
    assert (found.strategy.hosts, found.workers) == (["a:1"], 1)


@pytest.mark.parametrize(
    ("hardware", "line"),
    [
        (
            Hardware(strategy="one_device"),
            "TF_CONFIG names 2 workers, and --strategy=one_device has one: "
            "use --strategy=multi_worker, or unset TF_CONFIG",
        ),
        (
            Hardware(strategy="mirrored"),
            "TF_CONFIG names 2 workers, and --strategy=mirrored has one: "
            "use --strategy=multi_worker, or unset TF_CONFIG",
        ),
        (
            Hardware(replicas=1),
            "TF_CONFIG names 2 workers, each with all of its devices: drop --replicas, or unset TF_CONFIG",
        ),
        (
            Hardware(virtual_devices=2),
            "TF_CONFIG names 2 workers, each with all of its devices: "
            "drop --virtual_devices, or unset TF_CONFIG",
        ),
        (
            Hardware(tpu="local"),
            "TF_CONFIG names 2 workers, each with all of its devices: drop --tpu, or unset TF_CONFIG",
        ),
    ],
)
def test_workers_of_tf_config_are_not_each_a_chief(gang, hardware, line):
    """All of them would write in one workdir."""
    with pytest.raises(UsageError) as error:
        gang(described(1, worker=["a:1", "b:1"]), hardware)
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "TF_CONFIG is not a cluster description (Expecting property name"),
        ("[1]", "TF_CONFIG is not a cluster description ("),
        ({"cluster": []}, "TF_CONFIG is not a cluster description ("),
        (described(None, worker=["a:1", "b:1"]), "TF_CONFIG is not a cluster description ("),
        (described("x", worker=["a:1", "b:1"]), "TF_CONFIG is not a cluster description ("),
        (described(0, worker="a:1,b:1"), "TF_CONFIG is not a cluster description ("),
        (
            described(2, worker=["a:1", "b:1"]),
            "TF_CONFIG: worker 2 is not among the 2 hosts of worker: number from 0",
        ),
        (
            described(-1, worker=["a:1", "b:1"]),
            "TF_CONFIG: worker -1 is not among the 2 hosts of worker: number from 0",
        ),
        (
            described(1, "chief", chief=["a:1"], worker=["b:1"]),
            "TF_CONFIG: chief 1 is not among the 1 hosts of chief: number from 0",
        ),
        (
            described(1, chief=["a:1"], worker=["b:1"]),
            "TF_CONFIG: worker 1 is not among the 1 hosts of worker: number from 0",
        ),
        (
            described(0, "evaluator", worker=["a:1", "b:1"]),
            "TF_CONFIG says that this is a task evaluator: only chief and worker train",
        ),
        (
            described(0, "ps", worker=["a:1", "b:1"], ps=["c:1"]),
            "TF_CONFIG says that this is a task ps: only chief and worker train",
        ),
    ],
)
def test_a_wrong_tf_config_is_one_line(gang, config, says):
    with pytest.raises(UsageError) as error:
        gang(config)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_gpus_are_made_repeatable_and_xla_is_on(gang, monkeypatch):
    asked = []
    config = described(0, worker=["a:1", "b:1"])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    monkeypatch.setattr(
        tf.config.experimental, "enable_op_determinism", lambda: asked.append("determinism")
    )
    assert gang(config, Hardware(xla="auto")).xla
    assert not gang(config, Hardware(xla="off")).xla
    assert asked == ["determinism"] * 2


@pytest.mark.parametrize(
    ("pipelines", "number", "part"),
    [
        (1, 0, Slice(4, 0, 4)),
        (2, 0, Slice(4, 0, 2)),
        (2, 1, Slice(4, 2, 2)),
        (4, 3, Slice(4, 3, 1)),
    ],
)
def test_each_input_pipeline_feeds_its_replicas(pipelines, number, part, monkeypatch):
    context = tf.distribute.InputContext(pipelines, number, num_replicas_in_sync=4)
    cluster, asked = connect(Hardware(replicas=4)), []
    distribute = "distribute_datasets_from_function"
    monkeypatch.setattr(cluster.strategy, distribute, lambda worker: [worker(context)])
    cluster.iterate(asked.append)
    assert asked == [part]


@pytest.mark.parametrize("replicas", [1, 2])
def test_each_replica_gets_its_element(replicas):
    cluster = connect(Hardware(replicas=replicas))
    data = cluster.iterate(lambda part: tf.data.Dataset.range(8).batch(2))
    for step in range(2):
        found = cluster.strategy.experimental_local_results(next(data))
        first = 2 * replicas * step
        rows = [[first + 2 * r, first + 2 * r + 1] for r in range(replicas)]
        assert [x.numpy().tolist() for x in found] == rows


def test_workers_agree():
    """Two replicas of this process stand in for two workers of one replica each."""
    strategy = connect(Hardware(replicas=2)).strategy
    workers = Cluster(strategy, xla=False, workers=2, worker=0)
    for flags in ((True,), (False,), (True, False, True), (False, True, False)):
        assert workers.any_worker(*flags) == flags
    for step in (0, 1, 3, 10**9 + 7):
        workers.check_same("the step", step)

    class Differing(Cluster):
        def _sum(self, number):
            return number + {7: 5, 49: 25}[number]

    with pytest.raises(ConfigError) as error:
        Differing(strategy, xla=False, workers=2, worker=1).check_same("the step", 7)
    assert str(error.value) == (
        "the step is 7 on worker 1 and another on others: "
        "--workdir must be the same folder for all workers, on a shared file system"
    )


def test_a_single_worker_asks_nobody():
    alone = Cluster(strategy=None, xla=False)
    assert (alone.any_worker(True), alone.any_worker(False, True)) == ((True,), (False, True))
    alone.check_same("the step", 3)
