"""What is to be run where: one description for every kind of cluster."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping

from trainer import flags
from trainer.exits import UsageError

TARGETS = ("slurm", "jobset", "vertex", "tpu")

OF_SOME = {
    "nodes": ("slurm", "jobset", "vertex"),
    "devices": ("slurm", "jobset", "vertex"),
    "cpus": ("slurm", "jobset"),
    "memory": ("slurm", "jobset"),
    "minutes": ("slurm", "jobset", "vertex"),
    "queue": ("slurm", "jobset"),
    "venv": ("slurm",),
    "directory": ("slurm",),
    "sweep": ("slurm",),
    "namespace": ("jobset",),
    "topology": ("jobset",),
    "secrets": ("jobset",),
    "mounts": ("slurm", "jobset", "tpu"),
    "spot": ("jobset", "vertex", "tpu"),
    "machine": ("vertex",),
    "region": ("vertex",),
    "tensorboard": ("vertex",),
    "project": ("vertex", "tpu"),
    "service_account": ("vertex", "tpu"),
    "zone": ("tpu",),
    "runtime": ("tpu",),
}
"""Field -> the targets that know it; every target knows the fields that are not here."""

NEEDED = {
    "slurm": (),
    "jobset": ("image",),
    "vertex": ("image", "machine", "region"),
    "tpu": ("image", "accelerator", "zone", "runtime"),
}

KEEPS = {
    "slurm": "FOLDER:FOLDER, with a workdir in it",
    "jobset": "CLAIM:/runs --workdir=/runs/NAME",
    "tpu": "gs://BUCKET:/runs --workdir=/runs/NAME",
}
"""Target -> what to mount, so that the workdir of a container outlives it."""

LABEL = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(API|ACCESS|PRIVATE)_?KEY)(_|$)",
    re.IGNORECASE,
)
WORD = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.:/@]*")
"""What names of images, queues, machines, projects and the like are made of: nothing that a shell would read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A training to submit; the same one submitted again goes on with it.

    Attributes:
      name: of the job, a DNS-1123 label of at most 40 characters.
      arguments: those of `lockstep train`, without the workdir.
      workdir: folder of the run, absolute, as the job sees it, the same on all nodes.
      data: bound to the macro DATA of the configuration.
      nodes: workers, one on each node.
      devices: accelerators of a node; 0 trains on its CPUs.
      accelerator: which: a type of Slurm's, a label of a node, a type of Vertex AI's or of Cloud TPU's.
      cpus: CPUs of a node; None is all of it under Slurm, and what is there on Kubernetes.
      memory: of a node, in GiB.
      minutes: at the longest.
      queue: partition of Slurm, local queue of Kueue.
      image: of the container.
      venv: virtual environment to run from, instead of an image.
      directory: where it starts, on each node.
      sweep: trainings that differ in these further arguments, one each, with a workdir each in `workdir`.
      namespace: of Kubernetes.
      topology: of a TPU slice, such as 2x4.
      secrets: (variable, secret, key): environment variables that are filled in by the cluster.
      mounts: (source, path): a folder of the host, a volume claim or gs://bucket, and where the job sees it.
      env: environment variables; no secrets, since they are written down.
      restarts: how often it is started again after it was preempted or killed.
      grace: seconds from the warning that it will be stopped, in which it saves.
      spot: on capacity that may be taken away, for less.
      machine: type of a node.
      region, zone, project, service_account: where and as whom.
      tensorboard: resource name of a Vertex AI TensorBoard.
      runtime: version of the TPU's software.
    """

    name: str
    arguments: tuple[str, ...]
    workdir: str
    data: str | None = None
    nodes: int = 1
    devices: int = 0
    accelerator: str | None = None
    cpus: int | None = None
    memory: int | None = None
    minutes: int | None = None
    queue: str | None = None
    image: str | None = None
    venv: str | None = None
    directory: str | None = None
    sweep: tuple[tuple[str, ...], ...] = ()
    namespace: str | None = None
    topology: str | None = None
    secrets: tuple[tuple[str, str, str], ...] = ()
    mounts: tuple[tuple[str, str], ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    restarts: int = 10
    grace: int = 60
    spot: bool = False
    machine: str | None = None
    region: str | None = None
    zone: str | None = None
    project: str | None = None
    service_account: str | None = None
    tensorboard: str | None = None
    runtime: str | None = None

    def check(self, target: str) -> None:
        """Checks all that can be known before the job waits in a queue.

        Raises:
          UsageError: in one line, the first thing that is wrong.
          flags.Answer: if the arguments ask for help or the version.
        """
        for name in NEEDED[target]:
            if getattr(self, name) is None:
                raise UsageError(f"{target} needs --{name}")
        self._check_values(target)
        self._check_names()
        for field in dataclasses.fields(self):
            given = getattr(self, field.name) != field.default
            if given and target not in OF_SOME.get(field.name, TARGETS):
                known = ", ".join(OF_SOME[field.name])
                raise UsageError(f"--{field.name} is for {known}, not for {target}: remove it")
        if self.image is not None and self.venv is not None:
            raise UsageError("--image and --venv exclude each other: drop one")
        if target == "slurm" and self.mounts and self.image is None:
            raise UsageError("--mount is for containers: give --image, or remove it")
        contained = self.image is not None if target == "slurm" else target in OF_SOME["mounts"]
        kept = any(f"{self.workdir}/".startswith(f"{path}/") for _, path in self.mounts)
        if contained and not kept:
            raise UsageError(
                f"--workdir={self.workdir} is lost with the container: mount what keeps it, as --mount={KEEPS[target]}"
            )
        hosts = hosts_of(self.nodes) if self.nodes > 1 else ()
        # Where it is submitted from, other workers may be named than there will be.
        flags.parse(["train", *self.train(), *hosts], environ={})

    def _check_values(self, target: str) -> None:
        for name, least in (("nodes", 1), ("devices", 0), ("restarts", 0), ("grace", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name}={getattr(self, name)}: it must be at least {least}")
        for name in ("cpus", "memory", "minutes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name}={value}: it must be at least 1")
        counted = target in OF_SOME["devices"]
        if self.accelerator is not None and counted and not self.devices:
            raise UsageError(f"--accelerator={self.accelerator} needs --devices: how many a node")
        for argument in self.arguments:
            flag = re.match(r"--?(hosts|worker|workdir|tpu)(=|$)", argument)
            if flag:
                raise UsageError(f"{argument} is set for each worker: remove it after --")

    def _check_names(self) -> None:
        if not LABEL.fullmatch(self.name):
            raise UsageError(
                f'--name="{self.name}" is not a name of a job: use at most 40 of a-z, 0-9 and -, a letter first'
            )
        for name in (
            "accelerator queue image namespace topology machine region zone project service_account "
            "tensorboard runtime"
        ).split():
            value = getattr(self, name)
            if value is not None and not WORD.fullmatch(value):
                raise UsageError(f'--{name}="{value}" has characters that no such name has')
        folders = [("workdir", self.workdir), ("venv", self.venv), ("directory", self.directory)]
        for name, path in (*folders, *(("mount", path) for _, path in self.mounts)):
            if path is not None and not re.fullmatch(r'/[^\x00-\x1f"\\%:]*', path):
                raise UsageError(
                    f'--{name}="{path}" is not an absolute path without control characters, ", \\, % and :'
                )
        for source, _ in self.mounts:
            if not re.fullmatch(r"(gs://)?[A-Za-z0-9/][-A-Za-z0-9_./]*", source):
                raise UsageError(
                    f'--mount="{source}" is no folder, volume claim or gs://bucket: write SOURCE:/path'
                )
        for name, value in self.env:
            if not VARIABLE.fullmatch(name) or "\0" in value:
                raise UsageError(f'--env="{name}" is not a variable: write NAME=VALUE')
            if SECRET.search(name) and not value.startswith("/"):
                raise UsageError(
                    f"--env={name} looks like a secret and would be written in the job's files: "
                    "use --secret of jobset, or the cluster's own way"
                )
        for variable, secret, key in self.secrets:
            if not (
                VARIABLE.fullmatch(variable) and WORD.fullmatch(secret) and WORD.fullmatch(key)
            ):
                raise UsageError(f'--secret="{variable}={secret}/{key}": write NAME=SECRET/KEY')

    def train(self, more: tuple[str, ...] = (), workdir: str | None = None) -> tuple[str, ...]:
        """The arguments of `lockstep train`, with a workdir."""
        data = () if self.data is None else (f"--gin_param=DATA={json.dumps(self.data)}",)
        return (*self.arguments, *data, *more, f"--workdir={workdir or self.workdir}")


def hosts_of(workers: int) -> tuple[str, ...]:
    """Flags by which the first of so many workers is told of the others, to be checked with the rest."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in range(1, workers + 1))
    return (f"--hosts={hosts}", "--worker=0")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What submitting a job comes to.

    Attributes:
      files: name -> contents.
      commands: run in turn in the folder of the files, each if the one before it succeeded.
    """

    files: Mapping[str, str]
    commands: tuple[tuple[str, ...], ...]


def manifest(value: object) -> str:
    """JSON, which is YAML too."""
    return json.dumps(value, indent=2) + "\n"
