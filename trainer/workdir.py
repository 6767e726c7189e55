"""The folder of a run: whether it can be written, which configuration it holds, and how it was started."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import re
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from trainer import durable
from trainer.exits import CannotCreate, ConfigError, NoPermission

CHECKPOINT = re.compile(r"step-(\d+)\.safetensors")
VERSIONS_OF = ("lockstep-training", "keras", "numpy", "gin-config")
TENSORFLOW_BUILDS = ("tensorflow", "tensorflow-cpu", "tensorflow-tpu")


def prepare(workdir: Path) -> None:
    """Makes the folder and writes to it, so that a run does not find out after an hour that it cannot.

    Raises:
      CannotCreate, NoPermission: if it cannot be made or written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=workdir, prefix=".writable-"):
            pass
    except PermissionError:
        raise NoPermission(
            f"workdir {workdir} may not be written: choose another --workdir, or change its permissions"
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CannotCreate(
            f"workdir {workdir} cannot be made or written ({reason}): choose another --workdir"
        ) from None


def checkpoint_steps(directory: Path) -> list[int]:
    """Steps of the checkpoints in a directory, ascending; files that a kill left unfinished do not count."""
    if not directory.is_dir():
        return []
    # Not glob, which takes a directory that may not be read for an empty one.
    found = (CHECKPOINT.fullmatch(path.name) for path in directory.iterdir())
    return sorted(int(match[1]) for match in found if match)


def steps_trained(workdir: Path) -> int:
    """The step of the last checkpoint of a run, 0 if there is none."""
    return max(checkpoint_steps(workdir / "checkpoints"), default=0)


def holds_run(workdir: Path) -> bool:
    """Whether there is a checkpoint here that another configuration must not go on with.

    Raises:
      ConfigError: if so, and it is not known under which configuration.
    """
    if not checkpoint_steps(workdir / "checkpoints"):
        return False
    if not (workdir / "config.gin").is_file():
        raise ConfigError(
            f"workdir {workdir} holds checkpoints, and their configuration is not known ({workdir}/config.gin is "
            "missing): put it back, or choose another --workdir"
        )
    return True


def config_file(workdir: Path, named: str = "workdir ") -> Path:
    """The configuration of the run in the folder, which an error calls by what it was given as.

    Raises:
      ConfigError: if there is none.
    """
    path = workdir / "config.gin"
    if not path.is_file():
        raise ConfigError(
            f"{named}{workdir} holds no run ({path} is missing): train one, or choose another"
        )
    return path


def record_start(
    workdir: Path, config_text: str, arguments: Sequence[str], note: Callable[[str], None]
) -> None:
    """Writes `config.gin`, and one more start to `run.json`: when, the command, the versions and the configuration's checksum.

    A `run.json` that is damaged is moved aside, of which `note` is told.
    """
    durable.write(workdir / "config.gin", config_text.encode())
    path, now = workdir / "run.json", datetime.datetime.now(datetime.UTC)
    starts = []
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(starts, list):
            raise ValueError("no list")
    except FileNotFoundError:
        pass
    except ValueError as error:
        starts, aside = [], path.with_name(f"run.json.damaged-{now:%Y%m%d-%H%M%S}")
        path.replace(aside)
        note(f"{path} is no list of starts ({error}): moved to {aside}, and a new one begun")
    digest = hashlib.sha256(config_text.encode()).hexdigest()
    start = {
        "time": now.isoformat(timespec="seconds"),
        "command": command(arguments),
        "versions": versions(),
    }
    starts.append(start | {"config_sha256": digest})
    durable.write(path, f"{json.dumps(starts, indent=1)}\n".encode())


def command(arguments: Sequence[str]) -> str:
    """The command line as one would type it."""
    return shlex.join(["lockstep", *arguments])


def versions() -> Mapping[str, str]:
    """Of Python and of what decides a result."""
    found = {"python": platform.python_version()}
    for name in (*VERSIONS_OF, *TENSORFLOW_BUILDS):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
