"""What is submitted: golden files, the fields that Kubernetes and the clouds read, shell that bash can read, and errors of one line.

    python -m tests.clusters.test_submit

writes the golden files anew; read what changed before it is committed.
"""

from __future__ import annotations

import configparser
import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import kubernetes_validate
import pytest

from clusters import submit
from clusters.job import Job
from clusters.shell import RESTARTING
from clusters.submit import planned, shown
from tests.clusters.jobset_schema import JOBSET
from trainer.exits import UsageError

GOLDEN = pathlib.Path(__file__).with_name("golden")
ODD = "a 'b' \"c\" $HOME $(d) `e` \\ é; #"

DIGITS = Job(name="digits", arguments=("vae/digits",), workdir="/runs/digits")
RUNS = (("runs", "/runs"),)
JOBS = {
    "slurm": ("slurm", dataclasses.replace(DIGITS, nodes=2, venv="/opt/venv", minutes=90)),
    "slurm_sweep": (
        "slurm",
        dataclasses.replace(
            DIGITS,
            arguments=("gan/digits", "--gin_param=STEPS=500"),
            data="/data/digits",
            devices=8,
            accelerator="h100",
            cpus=16,
            memory=200,
            queue="gpu",
            image="lockstep:1",
            mounts=(("/data", "/data"), ("/runs", "/runs")),
            directory="/home/me/my trainings",
            env=(("ODD", ODD),),
            sweep=(("--gin_param=SEED=0",), ("--gin_param=SEED=1", "--gin_param=NAME='x y'")),
        ),
    ),
    "jobset": (
        "jobset",
        dataclasses.replace(DIGITS, image="lockstep:1", nodes=2, mounts=RUNS),
    ),
    "jobset_gpu": (
        "jobset",
        dataclasses.replace(
            DIGITS,
            image="lockstep:1",
            nodes=4,
            devices=8,
            accelerator="nvidia-h100-80gb",
            cpus=64,
            memory=512,
            minutes=600,
            queue="research",
            namespace="me",
            data="/data/digits",
            mounts=(("runs", "/runs"), ("gs://a-bucket", "/data")),
            env=(("ODD", ODD),),
            secrets=(("HF_TOKEN", "hugging-face", "token"),),
            restarts=100,
            grace=120,
            spot=True,
        ),
    ),
    "jobset_tpu": (
        "jobset",
        dataclasses.replace(
            DIGITS,
            image="lockstep:1",
            devices=8,
            accelerator="tpu-v5-lite-podslice",
            topology="2x4",
            mounts=RUNS,
        ),
    ),
    "vertex": (
        "vertex",
        dataclasses.replace(
            DIGITS,
            workdir="/gcs/a-bucket/runs/digits",
            image="lockstep:1",
            nodes=3,
            devices=2,
            accelerator="NVIDIA_L4",
            machine="g2-standard-24",
            region="europe-west4",
            project="a-project",
            minutes=60,
            spot=True,
            env=(("ODD", ODD),),
            service_account="me@a-project.iam.gserviceaccount.com",
            tensorboard="projects/1/locations/europe-west4/tensorboards/2",
        ),
    ),
    "tpu": (
        "tpu",
        dataclasses.replace(
            DIGITS,
            image="lockstep:1",
            accelerator="v5litepod-16",
            runtime="tpu-vm-tf-2.20.0-pod-pjrt",
            zone="europe-west4-b",
            project="a-project",
            mounts=(("gs://a-bucket", "/runs"),),
            env=(("ODD", ODD),),
            spot=True,
        ),
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_what_is_submitted_is_as_it_was(name):
    assert shown(planned(*JOBS[name])) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_there_is_a_job_for_every_golden_file():
    assert {path.stem for path in GOLDEN.iterdir()} == set(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_bash_can_read_every_script(name):
    for file, text in planned(*JOBS[name]).files.items():
        if not file.endswith(".json"):
            done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, ""), file


# ---------------------------------------------------------------------- Slurm

SLURM = {
    # What it would start on each node is started here.
    "srun": 'while [ "$1" != bash ]; do shift; done; exec "$@"',
    "scontrol": 'echo "$@" >>requeued',
    "squeue": "echo RUNNING",
}


@pytest.fixture
def node(tmp_path):
    """Starts a batch script as Slurm would, with a lockstep that runs the given shell."""

    def start(job: Job, program: str, **environ: str) -> subprocess.Popen[str]:
        programs = tmp_path / "bin"
        programs.mkdir(exist_ok=True)
        for name, text in (SLURM | {"lockstep": program}).items():
            (programs / name).write_text(f"#!/bin/bash\n{text}\n")
            (programs / name).chmod(0o755)
        script = tmp_path / "script"
        script.write_text(planned("slurm", job).files[f"{job.name}.sbatch"])
        environ |= {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
        return subprocess.Popen(
            ["bash", script], cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True
        )

    return start


def requeued(folder: pathlib.Path) -> str:
    file = folder / "requeued"
    return file.read_text() if file.exists() else ""


@pytest.mark.parametrize(
    ("program", "restarts", "code", "said"),
    [
        ("exit 0", "0", 0, ""),
        ("exit 75", "0", 75, "requeue 17\n"),
        ("exit 75", "9", 75, "requeue 17\n"),
        ("exit 75", "10", 75, ""),
        ("kill -KILL $$", "0", 137, "requeue 17\n"),
        ("exit 65", "0", 65, ""),
        ("exit 1", "0", 70, ""),
        ("exit 3", "0", 70, ""),
    ],
)
def test_a_job_of_slurm_is_queued_again_if_that_helps(
    program, restarts, code, said, node, tmp_path
):
    process = node(DIGITS, program, SLURM_RESTART_COUNT=restarts)
    assert process.wait(timeout=60) == code
    assert requeued(tmp_path) == said


def test_a_job_that_srun_cannot_start_is_not_queued_again(node, monkeypatch, tmp_path):
    monkeypatch.setitem(SLURM, "srun", "exit 1")
    assert node(DIGITS, "exit 0").wait(timeout=60) == 1
    assert requeued(tmp_path) == ""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_warning_of_slurm_comes_to_the_training_as_sigterm(number, node, tmp_path):
    """USR1, which srun forwards to every process of a task, must not end the training."""
    program = (
        "trap 'echo saved; exit 75' TERM; kill -USR1 $$; touch waits; "
        "for i in $(seq 600); do sleep 0.05; done"
    )
    process = node(DIGITS, program)
    while not (tmp_path / "waits").exists():
        time.sleep(0.01)
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("saved\n", None)
    assert process.returncode == 75
    assert requeued(tmp_path) == "requeue 17\n"


def test_odd_values_come_to_the_training_as_they_are(node, tmp_path):
    """Each task of an array has its own arguments and workdir; tasks are named, since the number of the last is the array's."""
    job = dataclasses.replace(
        DIGITS,
        arguments=("vae/digits", f"--gin_param=A={ODD}"),
        data="/my data",
        env=(("ODD", ODD),),
        sweep=(("--gin_param=B=0",), (f"--gin_param=B={ODD}\n",)),
    )
    program = r"""printf '<%s>' "$@" "$ODD"; exit 75"""
    process = node(job, program, SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_JOB_ID="17")
    said, _ = process.communicate(timeout=60)
    words = ["train", "vae/digits", f"--gin_param=A={ODD}", '--gin_param=DATA="/my data"']
    words += [f"--gin_param=B={ODD}\n", "--workdir=/runs/digits/0001", ODD]
    assert said == "".join(f"<{word}>" for word in words)
    assert requeued(tmp_path) == "requeue 17_1\n"


# ---------------------------------------------------------------------- containers that start their training again


@pytest.mark.parametrize(
    ("program", "code", "lives"),
    [
        ("exit 0", 0, 1),
        ("exit 70", 70, 1),
        ("exit 75", 75, 4),
        ("kill -KILL $$", 137, 4),
        ("[ $(wc -l <lives) = 2 ] || exit 75", 0, 2),
    ],
)
def test_a_container_starts_its_training_again_if_that_helps(program, code, lives, tmp_path):
    script = RESTARTING.format(restarts=3) + 'exit "$code"'
    command = ["bash", "-c", script, "lockstep", "bash", "-c", f"echo >>lives; {program}"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == code
    assert len((tmp_path / "lives").read_text()) == lives


def test_a_container_that_is_stopped_saves_and_does_not_start_again(tmp_path):
    training = "trap 'exit 75' TERM; echo >>lives; for i in $(seq 600); do sleep 0.05; done"
    script = RESTARTING.format(restarts=3) + 'exit "$code"'
    command = ["bash", "-c", script, "lockstep", "bash", "-c", training]
    process = subprocess.Popen(command, cwd=tmp_path)
    while not (tmp_path / "lives").exists():
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=60) == 75
    assert (tmp_path / "lives").read_text() == "\n"


# ---------------------------------------------------------------------- JobSet


def jobset(job: Job) -> dict:
    return json.loads(planned("jobset", job).files[f"{job.name}.json"])


def job_of(made: dict) -> dict:
    """The Job that the controller makes of a JobSet."""
    (replicated,) = made["spec"]["replicatedJobs"]
    name = f"{made['metadata']['name']}-{replicated['name']}-0"
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": replicated["template"]["spec"],
    }


@pytest.mark.parametrize("name", [name for name in JOBS if name.startswith("jobset")])
def test_a_jobset_has_the_fields_of_its_kind(name):
    job = JOBS[name][1]
    made = jobset(job)
    jsonschema.validate(made, JOBSET)
    kubernetes_validate.validate(job_of(made), kubernetes_validate.latest_version(), strict=True)
    (replicated,) = made["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    # Each worker is a pod of one Job, which makes none of them again.
    assert replicated["replicas"] == 1
    assert spec["completions"] == spec["parallelism"] == job.nodes
    assert spec["backoffLimit"] == 0
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert env["LOCKSTEP_WORKERS"] == str(job.nodes)
    assert env["JOBSET_NAME"] == made["metadata"]["name"]
    assert env["REPLICATED_JOB_NAME"] == replicated["name"]
    # 75 restarts the gang, other codes that are no signal end it: rules name the container, and mounts their volumes.
    evicted, failed = spec["podFailurePolicy"]["rules"]
    assert evicted["action"] == "Ignore"
    assert failed["onExitCodes"]["containerName"] == container["name"]
    assert {75, 137, 143} <= set(failed["onExitCodes"]["values"])
    assert not {1, 2, 64, 65, 69, 70, 73, 77, 78} & set(failed["onExitCodes"]["values"])
    (rule,) = made["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet" and "PodFailurePolicy" in rule["onJobFailureReasons"]
    assert "BackoffLimitExceeded" not in rule["onJobFailureReasons"]
    assert [mount["name"] for mount in container["volumeMounts"]] == [
        volume["name"] for volume in pod.get("volumes", [])
    ]


def test_only_the_pods_of_a_jobset_reach_each_other():
    job = JOBS["jobset_gpu"][1]
    made = json.loads(planned("jobset", job).files[f"{job.name}-network.json"])
    kubernetes_validate.validate(made, kubernetes_validate.latest_version(), strict=True)
    # The label that the JobSet's controller gives its pods.
    gang = {"podSelector": {"matchLabels": {"jobset.sigs.k8s.io/jobset-name": job.name}}}
    assert made["metadata"] == {"name": job.name, "namespace": job.namespace}
    assert made["spec"] == gang | {"policyTypes": ["Ingress"], "ingress": [{"from": [gang]}]}


WRONG = [
    # A path in a JobSet, and what somebody may write there by mistake.
    ("apiVersion", "jobset.x-k8s.io/v1"),
    ("metadata.name", "Digits"),
    ("spec.replicas", 1),
    ("spec.network.enableDNSHostnames", "true"),
    ("spec.failurePolicy.maxRestarts", "3"),
    ("spec.failurePolicy.rules.0.action", "Fail"),
    ("spec.failurePolicy.rules.0.onJobFailureReasons.0", "Deadline"),
    ("JOB.completionMode", "indexed"),
    ("JOB.backofLimit", 0),
    ("JOB.podFailurePolicy.rules.1.onExitCodes.operator", "Not"),
    ("JOB.podFailurePolicy.rules.1.onExitCodes.values.0", 256),
    ("JOB.podFailurePolicy.rules.0.onExitCodes", {}),
    ("POD.restartPolicy", "Always"),
    ("POD.containers.0.command", "lockstep"),
    ("POD.containers.0.env.0.value", 2),
    ("POD.containers.0.env.0.name", "A B"),
    ("POD.containers.0.resources.limits.memory", "512 GB"),
    ("POD.containers.0.volumeMounts.0.mountPath", "runs"),
    ("POD.volumes.0.emptyDir", {}),
    ("POD.tolerations.0.value", "x"),
    ("POD.nodeSelector.a b", "x"),
]
PLACES = {"JOB": "spec.replicatedJobs.0.template.spec"}
PLACES["POD"] = f"{PLACES['JOB']}.template.spec"


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_the_schema_of_jobsets_finds_mistakes(path, value):
    made = jobset(JOBS["jobset_gpu"][1])
    first, _, rest = path.partition(".")
    *keys, last = f"{PLACES[first]}.{rest}".split(".") if first in PLACES else path.split(".")
    place = made
    for key in keys:
        place = place[int(key) if isinstance(place, list) else key]
    place[int(last) if isinstance(place, list) else last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(made, JOBSET)


def test_the_schema_of_kubernetes_finds_mistakes():
    made = job_of(jobset(JOBS["jobset"][1]))
    made["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolice"):
        kubernetes_validate.validate(made, kubernetes_validate.latest_version(), strict=True)


def test_a_jobset_keeps_dollars():
    """Kubernetes reads $(NAME) in arguments and variables, and $$ as $."""
    job = dataclasses.replace(
        DIGITS,
        image="i",
        mounts=RUNS,
        arguments=("a", "--gin_param=A='$(HOME) $$ $b'"),
        env=(("B", "$(C)"),),
    )
    (replicated,) = jobset(job)["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    assert container["args"][1] == "--gin_param=A='$$(HOME) $$$$ $$b'"
    assert {"name": "B", "value": "$$(C)"} in container["env"]


# ---------------------------------------------------------------------- Vertex AI and Cloud TPU


def test_a_custom_job_has_a_chief_and_workers_alike():
    spec = json.loads(planned(*JOBS["vertex"]).files["digits.json"])
    chief, workers = spec["workerPoolSpecs"]
    assert (chief["replicaCount"], workers["replicaCount"]) == (1, 2)
    assert chief["containerSpec"] == workers["containerSpec"]
    assert chief["machineSpec"] == {
        "machineType": "g2-standard-24",
        "acceleratorType": "NVIDIA_L4",
        "acceleratorCount": 2,
    }
    assert spec["scheduling"] == {
        "restartJobOnWorkerRestart": True,
        "timeout": "3600s",
        "strategy": "SPOT",
    }
    assert spec["baseOutputDirectory"] == {"outputUriPrefix": "gs://a-bucket/runs/digits"}
    single = dataclasses.replace(JOBS["vertex"][1], nodes=1)
    assert len(json.loads(planned("vertex", single).files["digits.json"])["workerPoolSpecs"]) == 1


GCLOUD = r"""#!/bin/bash
# Answers from files: states has a line for each time it is asked for the state, codes for each look at the exit code.
[ "$4" = describe ] || { printf '%q ' "$@"; echo; } >>calls
case "$*" in
    *describe*--format*)
        state=$(head -n 1 states)
        sed -i 1d states
        echo "$state" >last
        case $state in NONE | TIMEOUT) exit 1 ;; esac
        echo "$state" ;;
    *describe*)
        case $(cat last) in NONE) echo "NOT_FOUND: no such resource" >&2 ;; *) echo "timeout" >&2 ;; esac
        exit 1 ;;
    *ssh*)
        code=$(head -n 1 codes)
        sed -i 1d codes
        [ -n "$code" ] && echo "$code" ;;
esac
"""


def watched(
    folder: pathlib.Path, job: Job, states: str, codes: list[str]
) -> tuple[int, list[list[str]]]:
    """Exit code of a TPU's watch, and what it calls gcloud with, but for asking for the state."""
    for name, text in planned("tpu", job).files.items():
        (folder / name).write_text(text)
    programs = folder / "bin"
    programs.mkdir()
    (programs / "gcloud").write_text(GCLOUD)
    (programs / "gcloud").chmod(0o755)
    (folder / "states").write_text(states.replace(" ", "\n"))
    (folder / "codes").write_text("\n".join(codes))
    environ = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "LOCKSTEP_WATCH_SECONDS": "0",
    }
    command = ["bash", f"{job.name}-watch.sh"]
    code = subprocess.run(command, cwd=folder, env=environ, timeout=60).returncode
    lines = (folder / "calls").read_text().splitlines()
    return code, [shlex.split(line) for line in lines]


@pytest.mark.parametrize(
    ("states", "codes", "restarts", "code", "verbs"),
    [
        ("NONE WAITING_FOR_RESOURCES ACTIVE ACTIVE", ["", "0"], 0, 0, "create ssh ssh delete"),
        ("ACTIVE", ["65"], 0, 65, "ssh delete"),
        ("NONE ACTIVE SUSPENDED NONE FAILED NONE ACTIVE", ["", "0"], 2, 0, "create ssh delete create delete create ssh delete"),
        ("NONE SUSPENDED NONE", [], 0, 75, "create delete"),
        ("TIMEOUT ACTIVE", ["0"], 0, 0, "ssh delete"),  # No answer does not mean that there is none.
    ],
)  # fmt: skip
def test_the_watch_of_a_tpu_makes_it_again_until_it_is_done(
    states, codes, restarts, code, verbs, tmp_path
):
    job = dataclasses.replace(JOBS["tpu"][1], restarts=restarts)
    ended, calls = watched(tmp_path, job, states, codes)
    assert ended == code
    assert [call[3] for call in calls] == verbs.split()


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
@pytest.mark.parametrize("name", ["vertex", "tpu"])
def test_gcloud_reads_the_commands(name, tmp_path):
    """Its exit code is 2 for a line that it cannot read, and 1 where it finds no account afterwards."""
    plan = planned(*JOBS[name])
    if name == "vertex":
        (tmp_path / "digits.json").write_text(plan.files["digits.json"])
        commands = [list(plan.commands[0])]
    else:
        _, calls = watched(tmp_path, JOBS[name][1], "NONE ACTIVE", ["0"])
        commands = [["gcloud", *call] for call in calls]
        assert [command[3:5] for command in commands] == [
            ["queued-resources", "create"],
            ["tpu-vm", "ssh"],
            ["queued-resources", "delete"],
        ]
    environ = os.environ | {
        "CLOUDSDK_CONFIG": str(tmp_path / "config"),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }
    for command in commands:
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 1, (command, done.stderr)
    if name == "vertex":
        wrong = [*commands[0], "--no-such-flag"]
        assert subprocess.run(wrong, env=environ, capture_output=True).returncode == 2


def test_the_image_has_every_package():
    root = pathlib.Path(__file__).parents[2]
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    packages = setup["options.packages.find"]["include"].replace("*", "").split()
    lines = (root / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
    copied = [name for names in copied for name in names]
    assert set(packages) <= set(copied)
    assert all((root / name).exists() for name in copied)
    kept = (root / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in kept if line.startswith("!")} == set(copied)


# ---------------------------------------------------------------------- errors and the command line


@pytest.mark.parametrize(
    ("target", "fields", "said"),
    [
        ("slurm", {"name": "Digits"}, '--name="Digits" is not a name of a job: use at most 40 of a-z, 0-9 and -, a letter first'),
        ("slurm", {"name": "a" * 41}, f'--name="{"a" * 41}" is not a name of a job: use at most 40 of a-z, 0-9 and -, a letter first'),
        ("slurm", {"queue": "gpu; rm"}, '--queue="gpu; rm" has characters that no such name has'),
        ("slurm", {"workdir": "runs"}, '--workdir="runs" is not an absolute path without control characters, ", \\, % and :'),
        ("jobset", {"image": "i", "mounts": (("a", "a:b"), ("c", "/d"))}, '--mount="a:b" is not an absolute path without control characters, ", \\, % and :'),
        ("slurm", {"nodes": 0}, "--nodes=0: it must be at least 1"),
        ("slurm", {"minutes": 0}, "--minutes=0: it must be at least 1"),
        ("slurm", {"spot": True}, "--spot is for jobset, vertex, tpu, not for slurm: remove it"),
        ("slurm", {"image": "i", "venv": "/v"}, "--image and --venv exclude each other: drop one"),
        ("slurm", {"mounts": (("/a", "/a"),)}, "--mount is for containers: give --image, or remove it"),
        ("slurm", {"accelerator": "h100"}, "--accelerator=h100 needs --devices: how many a node"),
        ("slurm", {"arguments": ("a", "--worker=1")}, "--worker=1 is set for each worker: remove it after --"),
        ("slurm", {"arguments": ("a", "--xla=yes")}, "--xla=yes: value should be one of <auto|on|off>"),
        ("slurm", {"env": (("A B", "c"),)}, '--env="A B" is not a variable: write NAME=VALUE'),
        ("slurm", {"env": (("HF_TOKEN", "x"),)}, "--env=HF_TOKEN looks like a secret and would be written in the job's files: use --secret of jobset, or the cluster's own way"),
        ("jobset", {}, "jobset needs --image"),
        ("jobset", {"image": "i", "secrets": (("A", "b", "c d"),)}, '--secret="A=b/c d": write NAME=SECRET/KEY'),
        ("jobset", {"image": "i", "topology": "2x4", "mounts": RUNS}, "--topology=2x4 is of TPUs: name one with --accelerator=tpu-…, or remove it"),
        ("jobset", {"image": "i", "accelerator": "tpu-v6e-slice", "devices": 4, "mounts": RUNS}, "--accelerator=tpu-v6e-slice needs --topology, such as 2x4"),
        ("jobset", {"image": "i", "accelerator": "tpu-v6e-slice", "devices": 4, "topology": "4x4", "nodes": 4, "mounts": RUNS}, "--nodes=4: TensorFlow trains on the TPUs of one node of Kubernetes; use --nodes=1, or the target tpu for more"),
        ("vertex", {"image": "i", "machine": "m", "region": "r"}, "--workdir=/runs/digits is lost with the machine: write /gcs/BUCKET/FOLDER"),
        ("tpu", {"image": "i", "accelerator": "v4-8", "zone": "z"}, "tpu needs --runtime"),
        ("slurm", {"nodes": 2, "arguments": ("a", "--features=c")}, "--features compares on one machine: evaluate the run afterwards on one"),
        ("tpu", {"image": "i", "accelerator": "v4-8", "zone": "z", "runtime": "r"}, "--workdir=/runs/digits is lost with the container: mount what keeps it, as --mount=gs://BUCKET:/runs --workdir=/runs/NAME"),
        ("jobset", {"image": "i", "mounts": (("runs", "/run"),)}, "--workdir=/runs/digits is lost with the container: mount what keeps it, as --mount=CLAIM:/runs --workdir=/runs/NAME"),
        ("slurm", {"image": "i"}, "--workdir=/runs/digits is lost with the container: mount what keeps it, as --mount=FOLDER:FOLDER, with a workdir in it"),
        ("tpu", {"image": "i", "accelerator": "v4-8", "zone": "z", "runtime": "r", "mounts": (("/nfs", "/runs"),)}, "--mount=/nfs:/runs: a TPU's machine has buckets alone: gs://BUCKET"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_it_is_submitted(target, fields, said):
    with pytest.raises(UsageError) as error:
        planned(target, dataclasses.replace(DIGITS, **fields))
    assert str(error.value) == said


def test_the_workers_of_the_shell_that_submits_are_not_the_jobs(monkeypatch):
    """A batch script or notebook may name some, one task of which is not what will train."""
    monkeypatch.setenv("TF_CONFIG", "{")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    job = dataclasses.replace(DIGITS, arguments=("vae/digits", "--replicas=1"))
    assert "vae/digits --replicas=1" in shown(planned("slurm", job))


def test_variables_that_are_no_secrets_may_be_given():
    env = (("TOKENIZERS_PARALLELISM", "0"), ("GOOGLE_APPLICATION_CREDENTIALS", "/key.json"))
    (script,) = planned("slurm", dataclasses.replace(DIGITS, env=env)).files.values()
    lines = script.splitlines()
    assert "export TOKENIZERS_PARALLELISM=0" in lines
    assert "export GOOGLE_APPLICATION_CREDENTIALS=/key.json" in lines


def test_the_command_line_describes_the_job(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = "slurm --name=digits --workdir=runs/d --nodes=2 --env=A=b=c --sweep=S=0 --sweep=S=1 --sweep=T=(2,3) -- vae/digits --xla=on"
    assert submit.main(line.split()) == 0
    job = Job(
        name="digits",
        arguments=("vae/digits", "--xla=on"),
        workdir=str(tmp_path / "runs/d"),
        nodes=2,
        venv=sys.prefix,
        directory=str(tmp_path),
        env=(("A", "b=c"),),
        sweep=(
            ("--gin_param=S=0", "--gin_param=T=(2,3)"),
            ("--gin_param=S=1", "--gin_param=T=(2,3)"),
        ),
    )
    assert capsys.readouterr() == (shown(planned("slurm", job)), "")
    line = "jobset --name=d --workdir=/r/d --image=i --secret=A=b/c --mount=gs://b:/r --mount=c:/d --spot -- x"
    assert submit.main(line.split()) == 0
    job = Job(
        name="d",
        arguments=("x",),
        workdir="/r/d",
        image="i",
        secrets=(("A", "b", "c"),),
        mounts=(("gs://b", "/r"), ("c", "/d")),
        spot=True,
    )
    assert capsys.readouterr() == (shown(planned("jobset", job)), "")
    assert list(tmp_path.iterdir()) == []


def test_submitting_writes_the_files_and_runs_the_commands(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text('#!/bin/sh\nhead -n 2 "$1"; exit 3\n')
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    line = f"slurm --name=digits --workdir={tmp_path}/w --submit -- vae/digits"
    assert submit.main(line.split()) == 3
    out, err = capfd.readouterr()
    assert out == "#!/bin/bash\n#SBATCH --job-name=digits\n"
    assert err == f"mkdir -p {tmp_path}/w\nsbatch digits.sbatch\n"
    assert (tmp_path / "w").is_dir()
    assert (tmp_path / "runs/submitted/digits/digits.sbatch").exists()


def test_a_program_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    line = f"vertex --name=d --workdir=/gcs/b/d --image=i --machine=m --region=r --submit --folder={tmp_path}/f -- x"
    assert submit.main(line.split()) == 69
    assert capsys.readouterr().err.splitlines()[-1] == (
        "lockstep: gcloud is not installed here: submit where it is, or leave --submit out to see the files"
    )


def test_what_lockstep_answers_is_no_error(capsys):
    assert submit.main(["slurm", "--name=d", "--workdir=/w", "--", "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: lockstep") and not err


def test_files_that_cannot_be_written_are_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    line = f"slurm --name=d --workdir=/w --submit --folder={tmp_path}/file/f -- x"
    assert submit.main(line.split()) == 73
    said = f"lockstep: {tmp_path}/file/f cannot be read or written (not a directory): mend it and submit it again\n"
    assert capsys.readouterr() == ("", said)


def test_a_watch_may_be_stopped(tmp_path, monkeypatch, capsys):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(submit.subprocess, "run", stopped)
    line = (
        "tpu --name=d --workdir=/runs/d --mount=gs://b:/runs --image=i --accelerator=v4-8 --zone=z --runtime=r "
        f"--submit --folder={tmp_path} -- x"
    )
    assert submit.main(line.split()) == 130
    assert capsys.readouterr().err.splitlines() == [
        "bash d-watch.sh",
        "lockstep: interrupted; the same command goes on",
    ]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, (target, job) in JOBS.items():
        (GOLDEN / f"{name}.txt").write_text(shown(planned(target, job)), encoding="utf-8")
