"""A process that trains families of the contract: as a worker of a gang, or as the parent of runs that are killed.

    python -m tests.contract.child worker RANK HOST:PORT,HOST:PORT WORKDIR
    python -m tests.contract.child nursery

The nursery imports TensorFlow once and forks a child for each line of JSON on its standard input, before it has used any
device (TRAPS 15b): {"family", "fields", "hardware", "workdir", "die": null or [function, call]}; it answers with the child's
process id, and with its exit status when the child has ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback


def _train(family: str, fields: dict, hardware: dict, workdir: str) -> int:
    from tests.contract.families import FAMILIES
    from trainer.cluster import Hardware
    from trainer.exits import UserError
    from trainer.trainer import Trainer

    try:
        outcome = Trainer(FAMILIES[family](**fields), Hardware(**hardware), workdir).train()
    except UserError as error:
        print(error, flush=True)
        return error.code
    print(outcome.value, flush=True)
    return 0


def _die_at(function: str, call: int) -> None:
    """Kills this process at the given call of a function of the checkpoint's writing."""
    module, name = {
        "before_fsync": (os, "fsync"),
        "before_rename": (os, "replace"),
        "after_rename": (os, "replace"),
        "before_prune": (os, "unlink"),
    }[function]
    original, calls = getattr(module, name), 0

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        checkpoint = any(".safetensors" in str(arg) for arg in args) or function == "before_fsync"
        calls += checkpoint
        if checkpoint and calls == call and function != "after_rename":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if checkpoint and calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, counted)


def worker(rank: str, hosts: str, workdir: str) -> int:
    """Trains every family in turn as one of the workers."""
    from tests.contract.families import FAMILIES

    for family in FAMILIES:
        hardware = {
            "strategy": "multi_worker",
            "hosts": tuple(hosts.split(",")),
            "worker": int(rank),
        }
        if code := _train(family, {}, hardware, f"{workdir}/{family}"):
            return code
    return 0


def nursery() -> int:
    """See the module."""
    import keras  # noqa: F401
    import tensorflow as tf  # noqa: F401

    import tests.contract.families  # noqa: F401
    import trainer.trainer  # noqa: F401

    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 70
            try:
                log = os.open(f"{task['workdir']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                if task["die"]:
                    _die_at(*task["die"])
                code = _train(task["family"], task["fields"], task["hardware"], task["workdir"])
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    sys.exit({"worker": worker, "nursery": nursery}[sys.argv[1]](*sys.argv[2:]))
