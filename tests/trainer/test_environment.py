"""Which workers the environment names: what schedulers set, and what is expected of it."""

from __future__ import annotations

import itertools
import json

import pytest

from trainer import slurm
from trainer.environment import Workers, attached_tpus, read, vertex_folders
from trainer.exits import UsageError
from trainer.hardware import Hardware, workers


def tf_config(kind, index, **jobs):
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})}


def vertex(kind, index, **pools):
    spec = {
        "cluster": pools,
        "environment": "cloud",
        "task": {"type": kind, "index": index, "trial": ""},
        "job": '{"worker_pool_specs": []}',
    }
    return {"CLUSTER_SPEC": json.dumps(spec), "CLOUD_ML_JOB_ID": "7312459287124967424"}


POOL0 = ["cmle-training-workerpool0-6c1f2a-0:2222"]
POOL1 = [f"cmle-training-workerpool1-6c1f2a-{i}:2222" for i in range(2)]


def step(rank, nodes, tasks, **more):
    """The variables of a task of `srun` in job 4711."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_NTASKS": "9",
    } | more


FIRST = slurm.first_port(4711, 0, 0)


def ports(*nodes, first=FIRST):
    return tuple(f"{node}:{first + i}" for i, node in enumerate(nodes))


def pod(index, count, **more):
    return {"JOB_COMPLETION_INDEX": str(index), "LOCKSTEP_WORKERS": str(count)} | more


JOBSET = {"JOBSET_NAME": "vae", "REPLICATED_JOB_NAME": "workers"}
SKY = {"SKYPILOT_NODE_IPS": "10.164.0.5\n10.164.0.9", "SKYPILOT_NUM_NODES": "2"}

GOLDEN = {
    "laptop": ({"HOME": "/root", "PATH": "/bin"}, Workers()),
    "empty TF_CONFIG": ({"TF_CONFIG": ""}, Workers()),
    "TF_CONFIG": (
        tf_config("worker", 1, worker=["a:1", "b:1", "c:1"]),
        Workers(("a:1", "b:1", "c:1"), 1, "TF_CONFIG"),
    ),
    "TF_CONFIG, chief": (
        tf_config("chief", 0, worker=["b:1", "c:1"], chief=["a:1"]),
        Workers(("a:1", "b:1", "c:1"), 0, "TF_CONFIG"),
    ),
    "TF_CONFIG, worker after a chief": (
        tf_config("worker", 1, chief=["a:1"], worker=["b:1", "c:1"]),
        Workers(("a:1", "b:1", "c:1"), 2, "TF_CONFIG"),
    ),
    "TF_CONFIG, evaluator and ps are dropped": (
        tf_config("worker", 0, worker=["a:1", "b:1"], ps=["p:1"], evaluator=["e:1"]),
        Workers(
            ("a:1", "b:1"),
            0,
            "TF_CONFIG",
            notes=("TF_CONFIG: ps and evaluator left out, since all workers train",),
        ),
    ),
    "TF_CONFIG, one worker": (
        tf_config("worker", 0, worker=["a:1"]),
        Workers(("a:1",), 0, "TF_CONFIG"),
    ),
    "TF_CONFIG, IPv6": (
        tf_config("worker", 0, worker=["[fd00::5]:2222", "[fd00::9]:2222"]),
        Workers(("[fd00::5]:2222", "[fd00::9]:2222"), 0, "TF_CONFIG"),
    ),
    "Vertex, chief": (
        vertex("workerpool0", 0, workerpool0=POOL0, workerpool1=POOL1),
        Workers((*POOL0, *POOL1), 0, "CLUSTER_SPEC of Vertex AI"),
    ),
    "Vertex, worker": (
        vertex("workerpool1", 1, workerpool0=POOL0, workerpool1=POOL1),
        Workers((*POOL0, *POOL1), 2, "CLUSTER_SPEC of Vertex AI"),
    ),
    "Vertex, pool of evaluators": (
        vertex("workerpool0", 0, workerpool0=POOL0, workerpool1=POOL1, workerpool3=["e:2222"]),
        Workers(
            (*POOL0, *POOL1),
            0,
            "CLUSTER_SPEC of Vertex AI",
            notes=("CLUSTER_SPEC: workerpool3 left out, since all workers train",),
        ),
    ),
    "Vertex gives TF_CONFIG too": (
        vertex("workerpool1", 0, workerpool0=POOL0, workerpool1=POOL1)
        | tf_config("worker", 0, chief=POOL0, worker=POOL1),
        Workers((*POOL0, *POOL1), 1, "TF_CONFIG"),
    ),
    "SkyPilot": (
        SKY | {"SKYPILOT_NODE_RANK": "1"},
        Workers(("10.164.0.5:2222", "10.164.0.9:2222"), 1, "SkyPilot"),
    ),
    "SkyPilot, IPv6 and a port": (
        {
            "SKYPILOT_NODE_IPS": "fd00::5\nfd00::9\n",
            "SKYPILOT_NODE_RANK": "0",
            "LOCKSTEP_PORT": "99",
        },
        Workers(("[fd00::5]:99", "[fd00::9]:99"), 0, "SkyPilot"),
    ),
    "SkyPilot, one node": (
        {"SKYPILOT_NODE_IPS": "10.164.0.5", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1"},
        Workers(platform="SkyPilot"),
    ),
    "Slurm, two nodes": (
        step(1, "node[1-2]", "1(x2)", SLURMD_NODENAME="node2"),
        Workers(ports("node1", "node2"), 1, "Slurm"),
    ),
    "Slurm, compressed list, uneven": (
        step(4, "n[1-3,07]", "2(x3),1", SLURM_DISTRIBUTION="block"),
        Workers(ports("n1", "n1", "n2", "n2", "n3", "n3", "n07"), 4, "Slurm"),
    ),
    "Slurm, cyclic": (
        step(2, "n[1-2]", "2,1", SLURM_DISTRIBUTION="cyclic:block", SLURMD_NODENAME="n1"),
        Workers(ports("n1", "n2", "n1"), 2, "Slurm"),
    ),
    "Slurm, one task": (step(0, "node1", "1"), Workers(platform="Slurm")),
    "Slurm, array of one-task jobs": (
        step(0, "node1", "1", SLURM_ARRAY_TASK_ID="3"),
        Workers(platform="Slurm"),
    ),
    "Slurm, restarted": (
        step(0, "n[1-2]", "1(x2)", SLURM_RESTART_COUNT="1"),
        Workers(ports("n1", "n2", first=slurm.first_port(4711, 0, 1)), 0, "Slurm"),
    ),
    "Slurm, chosen port": (
        step(0, "n[1-2]", "1(x2)", LOCKSTEP_PORT="5000"),
        Workers(("n1:5000", "n2:5001"), 0, "Slurm"),
    ),
    "Slurm, batch script without srun": (
        {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
        Workers(
            platform="Slurm",
            notes=("not a step of srun: trains alone, though the Slurm job has 2 tasks",),
        ),
    ),
    "TF_CONFIG within Slurm": (
        step(1, "n[1-2]", "1(x2)") | tf_config("worker", 0, worker=["a:1", "b:1"]),
        Workers(("a:1", "b:1"), 0, "TF_CONFIG"),
    ),
    "TF_CONFIG that names nobody, within Slurm": (
        step(1, "n[1-2]", "1(x2)") | {"TF_CONFIG": "{}"},
        Workers(ports("n1", "n2"), 1, "Slurm"),
    ),
    "Slurm submitted from a pod": (
        step(0, "n[1-2]", "1(x2)") | pod(3, 8, **JOBSET),
        Workers(ports("n1", "n2"), 0, "Slurm"),
    ),
    "one task of Slurm submitted from a pod": (
        step(0, "n1", "1") | pod(3, 8, **JOBSET),
        Workers(platform="Slurm"),
    ),
    "SkyPilot on Slurm": (
        step(0, "n[1-2]", "1(x2)") | SKY | {"SKYPILOT_NODE_RANK": "1"},
        Workers(("10.164.0.5:2222", "10.164.0.9:2222"), 1, "SkyPilot"),
    ),
    "JobSet": (
        pod(1, 2, **JOBSET),
        Workers(("vae-workers-0-0.vae:2222", "vae-workers-0-1.vae:2222"), 1, "Kubernetes"),
    ),
    "JobSet, service of another name": (
        pod(0, 2, **JOBSET, LOCKSTEP_SERVICE="gang.ml.svc.cluster.local", LOCKSTEP_PORT="3333"),
        Workers(
            (
                "vae-workers-0-0.gang.ml.svc.cluster.local:3333",
                "vae-workers-0-1.gang.ml.svc.cluster.local:3333",
            ),
            0,
            "Kubernetes",
        ),
    ),
    "Indexed Job": (
        pod(2, 3, JOB_NAME="gan"),
        Workers(("gan-0.gan:2222", "gan-1.gan:2222", "gan-2.gan:2222"), 2, "Kubernetes"),
    ),
    "Indexed Job as a sweep": (pod(5, 1), Workers(platform="Kubernetes")),
    "TPU by name": (
        {"TPU_NAME": "pod-1"},
        Workers(platform="Cloud TPU", tpu="pod-1"),
    ),
    "TPU in the only pod of a JobSet": (
        pod(0, 1, **JOBSET) | {"TPU_NAME": "local"},
        Workers(platform="Kubernetes", tpu="local"),
    ),
    "TPU of several workers": (
        pod(0, 2, JOB_NAME="gan") | {"TPU_NAME": "local"},
        Workers(
            ("gan-0.gan:2222", "gan-1.gan:2222"),
            0,
            "Kubernetes",
            notes=("TPU local is not used: Kubernetes names 2 workers",),
        ),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    environ, expected = GOLDEN[name]
    assert read(environ) == expected


WRONG = {
    "SLURM_PROCID=x is not a whole number 0 to 1: start the tasks with srun, or name the workers with --hosts and "
    "--worker": step("x", "n[1-2]", "1(x2)"),
    "SLURM_PROCID=2 is not a whole number 0 to 1: start the tasks with srun, or": step(
        2, "n[1-2]", "1(x2)"
    ),
    'SLURM_STEP_NODELIST=n[1-2 cannot be read ("n[1-2" is no name of a node): start': step(
        0, "n[1-2", "1(x2)"
    ),
    'SLURM_STEP_NODELIST=n[3-1] cannot be read ("3-1" is no range of nodes): start': step(
        0, "n[3-1]", "1(x2)"
    ),
    'SLURM_STEP_TASKS_PER_NODE=2x3 cannot be read ("2x3" is no number of tasks): start': step(
        0, "n[1-2]", "2x3"
    ),
    "SLURM_STEP_TASKS_PER_NODE is not set: start the tasks with srun": step(0, "n[1-2]", ""),
    "SLURM_STEP_NODELIST=n[1-3] names 3 nodes and SLURM_STEP_TASKS_PER_NODE=1(x2) 2: start": step(
        0, "n[1-3]", "1(x2)"
    ),
    "SLURM_JOB_ID=abc is not a whole number from 0: start": step(
        0, "n[1-2]", "1(x2)", SLURM_JOB_ID="abc"
    ),
    "SLURM_DISTRIBUTION=plane=2: the order of tasks is not known: use srun --distribution=block, or": step(
        0, "n[1-2]", "2(x2)", SLURM_DISTRIBUTION="plane=2"
    ),
    "SLURM_DISTRIBUTION=: task 1 is on n2, not on n1: use srun --distribution=block, or": step(
        1, "n[1-2]", "2(x2)", SLURMD_NODENAME="n2"
    ),
    "LOCKSTEP_PORT=70000 is not a whole number 1 to 65535: choose one, the same for all workers, or unset it": step(
        0, "n[1-2]", "1(x2)", LOCKSTEP_PORT="70000"
    ),
    "JOB_COMPLETION_INDEX=3 is one pod of an Indexed Job, and LOCKSTEP_WORKERS does not say of how many: set it in the "
    "manifest, to 1 if each pod trains by itself": {"JOB_COMPLETION_INDEX": "3"},
    "JOB_COMPLETION_INDEX=4 is not a whole number 0 to 3: mend the manifest": pod(4, 4, **JOBSET),
    "LOCKSTEP_WORKERS=two is not a whole number from 1: mend the manifest": pod(0, "two"),
    "LOCKSTEP_WORKERS=2 pods have no names: set JOBSET_NAME and REPLICATED_JOB_NAME, or JOB_NAME": pod(
        0, 2
    ),
    "JOBSET_NAME is set and REPLICATED_JOB_NAME is not: mend": pod(0, 2, JOBSET_NAME="vae"),
    "SKYPILOT_NODE_RANK is not set: let SkyPilot start the process, or": SKY,
    "SKYPILOT_NODE_IPS names 2 nodes and SKYPILOT_NUM_NODES is 3: let": SKY
    | {"SKYPILOT_NUM_NODES": "3"},
    'CLUSTER_SPEC is not a cluster description (Expecting value: line 1 column 1 (char 0)): mend or unset it; it is "a:1"': {
        "CLUSTER_SPEC": "a:1"
    },
    "CLUSTER_SPEC says that this is a task workerpool2: only workerpool0 and workerpool1 train": vertex(
        "workerpool2", 0, workerpool0=POOL0, workerpool2=["p:2222"]
    ),
    'TF_CONFIG names "b": write host:port': tf_config("worker", 0, worker=["a:1", "b"]),
    "TF_CONFIG names a worker twice: give each its own host:port": tf_config(
        "worker", 0, worker=["a:1", "a:1"]
    ),
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_value_is_one_line(line):
    with pytest.raises(UsageError) as error:
        read(WRONG[line])
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- flags


def test_flags_win_and_nothing_else_is_read():
    environ = step("x", "n[", "") | {"TF_CONFIG": "{"}
    found = workers(Hardware(hosts=("x:1", "y:2"), worker=1), environ)
    assert found == Workers(("x:1", "y:2"), 1, "--hosts")


@pytest.mark.parametrize(
    ("environ", "alone"),
    [
        (step(0, "n[1-2]", "1(x2)"), "Slurm names 2 workers, {}start one task (srun --ntasks=1)"),
        (pod(0, 2, **JOBSET), "Kubernetes names 2 workers, {}set LOCKSTEP_WORKERS=1"),
        (
            SKY | {"SKYPILOT_NODE_RANK": "0"},
            "SkyPilot names 2 workers, {}unset SKYPILOT_NODE_IPS",
        ),
        (
            vertex("workerpool0", 0, workerpool0=POOL0, workerpool1=POOL1[:1]),
            "CLUSTER_SPEC of Vertex AI names 2 workers, {}unset CLUSTER_SPEC",
        ),
    ],
)
def test_no_worker_of_several_trains_alone(environ, alone):
    for hardware, said in (
        (
            Hardware(strategy="mirrored"),
            "and --strategy=mirrored has one: use --strategy=multi_worker, or ",
        ),
        (Hardware(replicas=1), "each with all of its devices: drop --replicas, or "),
    ):
        with pytest.raises(UsageError) as error:
            workers(hardware, environ)
        assert str(error.value) == alone.format(said)


@pytest.mark.parametrize(
    ("hardware", "environ", "attached", "tpu"),
    [
        (Hardware(), {}, 0, None),
        (Hardware(), {}, 4, "local"),
        (Hardware(), {"TPU_NAME": "pod-1"}, 4, "pod-1"),
        (Hardware(tpu="pod-2"), {"TPU_NAME": "pod-1"}, 0, "pod-2"),
        (Hardware(strategy="tpu"), {"TPU_NAME": "pod-1"}, 0, "pod-1"),
        (Hardware(strategy="tpu"), {}, 0, "local"),
        (Hardware(strategy="one_device"), {"TPU_NAME": "pod-1"}, 4, None),
        (Hardware(virtual_devices=2), {}, 4, None),
        (Hardware(replicas=1), {}, 4, None),
        (Hardware(hosts=("a:1", "b:1"), worker=0), {"TPU_NAME": "pod-1"}, 4, None),
        (Hardware(), step(0, "n[1-2]", "1(x2)"), 4, None),
        (Hardware(), step(0, "n1", "1"), 4, "local"),
    ],
)
def test_which_tpu(hardware, environ, attached, tpu):
    assert workers(hardware, environ, attached).tpu == tpu


def test_a_slice_of_several_machines_is_named():
    environ = {"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "1"}
    for hardware, more in ((Hardware(), {"TPU_NAME": "local"}), (Hardware(tpu="local"), {})):
        with pytest.raises(UsageError) as error:
            workers(hardware, environ | more)
        assert str(error.value) == (
            "TPU_WORKER_HOSTNAMES=t0,t1 names the 2 machines of a slice, which one process drives: start on one of them, "
            "with the slice's name in --tpu or TPU_NAME"
        )
    assert workers(Hardware(), environ | {"TPU_NAME": "pod-1"}).tpu == "pod-1"
    assert workers(Hardware(strategy="one_device"), environ, 4).tpu is None
    assert workers(Hardware(), {"TPU_WORKER_HOSTNAMES": "t0"}, 4).tpu == "local"


def test_tpus_on_the_bus(tmp_path):
    """Two chips of v5e beside a network card of Google's, a card of another maker and a device that says nothing."""
    kinds = [("0x1ae0", "0x0063")] * 2 + [("0x1ae0", "0x0042"), ("0x10de", "0x0063")]
    for number, (vendor, device) in enumerate(kinds):
        folder = tmp_path / f"0000:00:0{number}.0"
        folder.mkdir()
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "device").write_text(f"{device}\n")
    (tmp_path / "0000:00:09.0").mkdir()
    assert attached_tpus(tmp_path) == 2
    assert attached_tpus(tmp_path / "nowhere") == 0


def test_folders_of_vertex():
    environ = {
        "AIP_MODEL_DIR": "gs://bucket/job/model/",
        "AIP_CHECKPOINT_DIR": "gs://bucket/job/checkpoints/",
        "AIP_TENSORBOARD_LOG_DIR": "",
        "AIP_DATA_FORMAT": "jsonl",
    }
    assert vertex_folders(environ) == {
        "AIP_CHECKPOINT_DIR": "/gcs/bucket/job/checkpoints/",
        "AIP_MODEL_DIR": "/gcs/bucket/job/model/",
    }


# ---------------------------------------------------------------------- Slurm's notation


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("login", ["login"]),
        ("a,b,a1", ["a", "b", "a1"]),
        ("n[1-3,07]", ["n1", "n2", "n3", "n07"]),
        ("gpu-[008-011]", ["gpu-008", "gpu-009", "gpu-010", "gpu-011"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("n[1-2]-ib,login", ["n1-ib", "n2-ib", "login"]),
        ("rack[0-1]node[8-9]", ["rack0node8", "rack0node9", "rack1node8", "rack1node9"]),
        ("a[1,3],b[2-3]", ["a1", "a3", "b2", "b3"]),
    ],
)
def test_lists_of_nodes(text, names):
    assert slurm.expand(text) == names


@pytest.mark.parametrize("text", ["", "n[]", "n]", "n[1", "a,,b", "n[1-]", "n[a-b]", "n[[1]]"])
def test_no_lists_of_nodes(text):
    with pytest.raises(ValueError):
        slurm.expand(text)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1", [1]), ("2(x3),1", [2, 2, 2, 1]), ("4(x2)", [4, 4]), ("1,3", [1, 3])],
)
def test_tasks_of_nodes(text, numbers):
    assert slurm.counts(text) == numbers


def test_ports_are_scattered_and_safe():
    """Jobs of neighbouring numbers do not get each other's ports, and none is one of outgoing connections."""
    first = [slurm.first_port(job, 0, 0) for job in range(1250)]
    assert min(first) == 10_000 and max(first) + 2_700 < 32_768
    assert len(set(first)) == 1250
    assert all(abs(a - b) >= 16 * 400 for a, b in itertools.pairwise(first))
    # By hand: 773 × 4711 + 101 + 37 × 2 = 3,641,778 = 2,913 × 1,250 + 528, and 10,000 + 16 × 528 = 18,448.
    assert slurm.first_port(4711, 1, 2) == 18_448
