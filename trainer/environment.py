"""Which workers train together, as environment variables of schedulers say it. Needs no TensorFlow and no network."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer import slurm
from trainer.exits import UsageError

PORT = 2222
"""Of workers that have a machine or pod each; LOCKSTEP_PORT chooses another."""

THIS_MACHINE, FLAGS = "this machine", "--hosts"
TF_CONFIG, VERTEX, SKYPILOT, SLURM, KUBERNETES, CLOUD_TPU = (
    "TF_CONFIG",
    "CLUSTER_SPEC of Vertex AI",
    "SkyPilot",
    "Slurm",
    "Kubernetes",
    "Cloud TPU",
)
ALONE = {
    TF_CONFIG: "unset TF_CONFIG",
    VERTEX: "unset CLUSTER_SPEC",
    SKYPILOT: "unset SKYPILOT_NODE_IPS",
    SLURM: "start one task (srun --ntasks=1)",
    KUBERNETES: "set LOCKSTEP_WORKERS=1",
}
"""How each worker of a platform would train by itself."""

BY_HAND = "or name the workers with --hosts and --worker"
BY_SRUN = f"start the tasks with srun, {BY_HAND}"

# Vertex AI's pools: the first is the chief, the second its workers; then parameter servers and evaluators.
POOLS = ("workerpool0", "workerpool1")
JOBS = ("chief", "worker")

GOOGLE = "0x1ae0"
TPUS = ("0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
"""PCI devices of Google's that are TPUs: v2 and v3, v4, v5p, v5e, v6e, v7."""


@dataclasses.dataclass(frozen=True)
class Workers:
    """Who trains together.

    Attributes:
      hosts: "host:port" of every worker in order; none for this machine alone.
      worker: which of them this is.
      platform: where that was read, for people.
      tpu: name of a Cloud TPU, or "local"; None for none.
      notes: what was left out, in a line each.
    """

    hosts: tuple[str, ...] = ()
    worker: int = 0
    platform: str = THIS_MACHINE
    tpu: str | None = None
    notes: tuple[str, ...] = ()


def read(environ: Mapping[str, str], attached_tpus: int = 0) -> Workers:
    """The workers that the environment names.

    What was said nearest to the process counts: TF_CONFIG, then CLUSTER_SPEC (Vertex AI), SkyPilot, which starts processes on
    other platforms, Slurm, whose steps inherit the variables of a pod they were submitted from, and Kubernetes. The first
    that is there decides, also if it names one worker alone. A Cloud TPU is for a worker that is alone.

    Args:
      environ: environment variables.
      attached_tpus: how many TPU chips this machine has.

    Raises:
      UsageError: in one line, the variable, its value and what to do.
    """
    found = next(filter(None, (reader(environ) for reader in READERS)), Workers())
    tpu = environ.get("TPU_NAME") or ("local" if attached_tpus else None)
    if tpu is None:
        return found
    if len(found.hosts) > 1:
        note = f"TPU {tpu} is not used: {found.platform} names {len(found.hosts)} workers"
        return dataclasses.replace(found, notes=(*found.notes, note))
    platform = CLOUD_TPU if found.platform == THIS_MACHINE else found.platform
    return dataclasses.replace(found, platform=platform, tpu=tpu)


def check_whole_slice(environ: Mapping[str, str]) -> None:
    """Checks that the TPU chips of this machine are all of their slice.

    Raises:
      UsageError: if other machines have chips of it: each would train by itself on its own.
    """
    machines = [name for name in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    if len(machines) > 1:
        raise UsageError(
            f"TPU_WORKER_HOSTNAMES={','.join(machines)} names the {len(machines)} machines of a slice, which one process "
            "drives: start on one of them, with the slice's name in --tpu or TPU_NAME"
        )


def attached_tpus(devices: Path = Path("/sys/bus/pci/devices")) -> int:
    """TPU chips on the PCI bus of this machine."""

    def is_tpu(device: Path) -> bool:
        try:
            vendor = (device / "vendor").read_text().strip()
            return vendor == GOOGLE and (device / "device").read_text().strip() in TPUS
        except OSError:
            return False

    return sum(map(is_tpu, devices.glob("*")))


def vertex_folders(environ: Mapping[str, str]) -> dict[str, str]:
    """Vertex AI's places for what a job leaves, by variable, as folders: it mounts gs://BUCKET as /gcs/BUCKET."""
    return {
        name: re.sub("^gs://", "/gcs/", environ[name])
        for name in ("AIP_CHECKPOINT_DIR", "AIP_MODEL_DIR", "AIP_TENSORBOARD_LOG_DIR")
        if environ.get(name)
    }


# ---------------------------------------------------------------------- descriptions of clusters


def _tf_config(environ: Mapping[str, str]) -> Workers | None:
    return _described(environ, "TF_CONFIG", TF_CONFIG, JOBS)


def _vertex(environ: Mapping[str, str]) -> Workers | None:
    return _described(environ, "CLUSTER_SPEC", VERTEX, POOLS)


def _described(
    environ: Mapping[str, str], name: str, platform: str, training: tuple[str, str]
) -> Workers | None:
    """The cluster of a description in JSON: the hosts of the two jobs that train, in their order; others are left out."""
    text = environ.get(name) or "{}"
    try:
        said = json.loads(text)
        jobs, task = said.get("cluster", {}), said.get("task", {})
        hosts = [jobs.get(job, []) for job in training]
        if not all(isinstance(h, list) and all(isinstance(x, str) for x in h) for h in hosts):
            raise TypeError("hosts must be a list of host:port")
        kind, index = task.get("type", training[1]), int(task.get("index", 0))
        others = [job for job in jobs if job not in training and jobs[job]]
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f'{name} is not a cluster description ({error}): mend or unset it; it is "{text[:80]}"'
        ) from None
    if kind not in training:
        raise UsageError(
            f"{name} says that this is a task {kind}: only {' and '.join(training)} train"
        )
    if not any(hosts):
        return None
    own = hosts[training.index(kind)]
    if not 0 <= index < len(own):
        raise UsageError(
            f"{name}: {kind} {index} is not among the {len(own)} hosts of {kind}: number from 0"
        )
    everyone = (*hosts[0], *hosts[1])
    if wrong := [host for host in everyone if not is_address(host)]:
        raise UsageError(f'{name} names "{wrong[0]}": write host:port')
    if len(set(everyone)) < len(everyone):
        raise UsageError(f"{name} names a worker twice: give each its own host:port")
    notes = (f"{name}: {' and '.join(others)} left out, since all workers train",) * bool(others)
    before = 0 if kind == training[0] else len(hosts[0])
    return Workers(everyone, before + index, platform, notes=notes)


# ---------------------------------------------------------------------- schedulers


def _skypilot(environ: Mapping[str, str]) -> Workers | None:
    """https://docs.skypilot.co/en/latest/running-jobs/environment-variables.html"""
    if not environ.get("SKYPILOT_NODE_IPS"):
        return None
    mend = f"let SkyPilot start the process, {BY_HAND}"
    addresses = environ["SKYPILOT_NODE_IPS"].split()
    count = _number(environ, "SKYPILOT_NUM_NODES", mend, least=1, default=len(addresses))
    if count != len(addresses):
        raise UsageError(
            f"SKYPILOT_NODE_IPS names {len(addresses)} nodes and SKYPILOT_NUM_NODES is {count}: {mend}"
        )
    if count == 1:
        return Workers(platform=SKYPILOT)
    rank = _number(environ, "SKYPILOT_NODE_RANK", mend, below=count)
    port = _port(environ, PORT)
    hosts = tuple(f"[{a}]:{port}" if ":" in a else f"{a}:{port}" for a in addresses)
    return Workers(hosts, rank, SKYPILOT)


def _slurm(environ: Mapping[str, str]) -> Workers | None:
    """One worker a task of a step; https://slurm.schedmd.com/srun.html, "Output environment variables"."""
    if not environ.get("SLURM_STEP_NODELIST"):
        tasks = environ.get("SLURM_NTASKS", "1")
        if environ.get("SLURM_JOB_ID") and tasks != "1":
            note = f"not a step of srun: trains alone, though the Slurm job has {tasks} tasks"
            return Workers(platform=SLURM, notes=(note,))
        return None
    nodes = _parsed(environ, "SLURM_STEP_NODELIST", slurm.expand)
    tasks_of = _parsed(environ, "SLURM_STEP_TASKS_PER_NODE", slurm.counts)
    if len(nodes) != len(tasks_of):
        raise UsageError(
            f"SLURM_STEP_NODELIST={environ['SLURM_STEP_NODELIST']} names {len(nodes)} nodes and SLURM_STEP_TASKS_PER_NODE="
            f"{environ['SLURM_STEP_TASKS_PER_NODE']} {len(tasks_of)}: {BY_SRUN}"
        )
    if sum(tasks_of) == 1:
        return Workers(platform=SLURM)
    rank = _number(environ, "SLURM_PROCID", BY_SRUN, below=sum(tasks_of))
    distribution = environ.get("SLURM_DISTRIBUTION", "")
    try:
        placed = slurm.place(nodes, tasks_of, distribution)
        there = environ.get("SLURMD_NODENAME", placed[rank])
        if there != placed[rank]:
            raise ValueError(f"task {rank} is on {there}, not on {placed[rank]}")
    except ValueError as error:
        raise UsageError(
            f"SLURM_DISTRIBUTION={distribution}: {error}: use srun --distribution=block, {BY_HAND}"
        ) from None
    port = slurm.first_port(
        _number(environ, "SLURM_JOB_ID", BY_SRUN),
        _number(environ, "SLURM_STEP_ID", BY_SRUN, default=0),
        _number(environ, "SLURM_RESTART_COUNT", BY_SRUN, default=0),
    )
    port = _port(environ, port)
    return Workers(tuple(f"{node}:{port + i}" for i, node in enumerate(placed)), rank, SLURM)


def _kubernetes(environ: Mapping[str, str]) -> Workers | None:
    """One worker a pod of an Indexed Job, alone or as the one replica of a JobSet's replicated job; a headless service names pods.

    Kubernetes sets JOB_COMPLETION_INDEX; the manifest sets LOCKSTEP_WORKERS, the number of pods, and either JOBSET_NAME and
    REPLICATED_JOB_NAME or JOB_NAME; LOCKSTEP_SERVICE where the service is not called as the JobSet or Job.
    """
    if not environ.get("JOB_COMPLETION_INDEX"):
        return None
    index = environ["JOB_COMPLETION_INDEX"]
    if not environ.get("LOCKSTEP_WORKERS"):
        raise UsageError(
            f"JOB_COMPLETION_INDEX={index} is one pod of an Indexed Job, and LOCKSTEP_WORKERS does not say of how many: "
            "set it in the manifest, to 1 if each pod trains by itself"
        )
    mend = f"mend the manifest, {BY_HAND}"
    count = _number(environ, "LOCKSTEP_WORKERS", mend, least=1)
    if count == 1:
        return Workers(platform=KUBERNETES)
    worker = _number(environ, "JOB_COMPLETION_INDEX", mend, below=count)
    port = _port(environ, PORT)
    if environ.get("JOBSET_NAME"):
        if not environ.get("REPLICATED_JOB_NAME"):
            raise UsageError(f"JOBSET_NAME is set and REPLICATED_JOB_NAME is not: {mend}")
        job = f"{environ['JOBSET_NAME']}-{environ['REPLICATED_JOB_NAME']}-0"
        service = environ["JOBSET_NAME"]
    elif environ.get("JOB_NAME"):
        job = service = environ["JOB_NAME"]
    else:
        raise UsageError(
            f"LOCKSTEP_WORKERS={count} pods have no names: set JOBSET_NAME and REPLICATED_JOB_NAME, or JOB_NAME, in the manifest"
        )
    service = environ.get("LOCKSTEP_SERVICE") or service
    return Workers(tuple(f"{job}-{i}.{service}:{port}" for i in range(count)), worker, KUBERNETES)


READERS: tuple[Callable[[Mapping[str, str]], Workers | None], ...] = (
    _tf_config,
    _vertex,
    _skypilot,
    _slurm,
    _kubernetes,
)


# ---------------------------------------------------------------------- values


def is_address(text: str) -> bool:
    """Whether it is "host:port"."""
    found = re.fullmatch(r"(?:[^\s:\[\]]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", text)
    return found is not None and int(found[1]) < 65536


def _number(
    environ: Mapping[str, str],
    name: str,
    mend: str,
    *,
    least: int = 0,
    below: int | None = None,
    default: int | None = None,
) -> int:
    text = environ.get(name, "")
    if not text and default is not None:
        return default
    limits = f"{least} to {below - 1}" if below is not None else f"from {least}"
    if not text:
        raise UsageError(f"{name} is not set: {mend}")
    number = int(text) if text.isascii() and text.isdecimal() else -1
    if number < least or (below is not None and number >= below):
        raise UsageError(f"{name}={text} is not a whole number {limits}: {mend}")
    return number


def _parsed(environ: Mapping[str, str], name: str, parse: Callable[[str], list[Any]]) -> list[Any]:
    text = environ.get(name, "")
    if not text:
        raise UsageError(f"{name} is not set: {BY_SRUN}")
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{name}={text} cannot be read ({error}): {BY_SRUN}") from None


def _port(environ: Mapping[str, str], default: int) -> int:
    mend = "choose one, the same for all workers, or unset it"
    return _number(environ, "LOCKSTEP_PORT", mend, least=1, below=65536, default=default)
