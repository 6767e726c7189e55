"""A process that trains families of the contract: as a worker of a gang, or as the parent of runs that are killed.

    python -m tests.contract.child worker RANK PORT,PORT,… WORKDIR
    python -m tests.contract.child nursery
    python -m tests.contract.child launched SIGNAL:WORKER,… PORT,… FOLDER

All import TensorFlow once and fork a child for each run, before they have used any device (TRAPS 15b). The nursery does so
for each line of JSON on its standard input: {"family", "fields", "hardware", "workdir", "die": null or [function, call],
"kill": null or [rows, seconds]}. With "die" the child kills itself within the write of a checkpoint; with "kill" it is killed
so many seconds after it has written so many rows of metrics. The answer is the child's exit status, negative for a signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import glob
import json
import os
import pathlib
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.trainer import Trainer

PR_SET_PDEATHSIG = 1
ASKED = ("TERM", "USR2")
"""Signals after which all save and end."""
BY_ITSELF = ("EARLY", "DATA")
"""Faults of a worker that nothing is done to."""


def _train(family: str, fields: dict, hardware: dict, workdir: str) -> int:
    from tests.contract.families import EXPERIMENTS
    from trainer.exits import UserError
    from trainer.hardware import Hardware
    from trainer.trainer import Trainer

    try:
        outcome = Trainer(EXPERIMENTS[family](**fields), Hardware(**hardware), workdir).train()
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
        paths = [os.readlink(f"/proc/self/fd/{a}") if isinstance(a, int) else str(a) for a in args]
        here = any(".safetensors" in path for path in paths)
        calls += here
        if here and calls == call and function != "after_rename":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if here and calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, counted)


def worker(rank: str, ports: str, workdir: str) -> int:
    """Makes the runs that the contract compares, in turn, as one of two workers; `ports` are two for each run."""
    _import()
    from tests.contract.families import EXPERIMENTS, FAULTS, FLIP_STEP, RUNS
    from tests.contract.runs import complete
    from trainer.hardware import Hardware

    free = iter(ports.split(","))
    for name, (family, fields) in (RUNS | FAULTS).items():
        hosts = tuple(f"127.0.0.1:{next(free)}" for _ in range(2))
        hardware = Hardware(strategy="multi_worker", hosts=hosts, worker=int(rank))

        def run(
            name: str = name,
            family: str = family,
            fields: dict = fields,
            hardware: Hardware = hardware,
        ) -> int:
            def prepare(trainer: Trainer) -> None:
                if name.endswith("_flipped") and hardware.worker == 1:
                    _flip(FLIP_STEP, trainer)
                if name == "fingerprint" and hardware.worker == 1:
                    _knock(hardware.hosts[0])

            folder = pathlib.Path(workdir, name)
            complete(EXPERIMENTS[family](**fields), hardware, folder, prepare, note=print)
            return 0

        # A process of its own for each: the keys of TensorFlow's collectives are counted from the start of a strategy.
        child = _fork(run)
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            return code
    return 0


def _knock(host: str) -> None:
    """Says whether the server of the other worker answers at another address than that by which it is known."""
    try:
        socket.create_connection(("127.0.0.2", int(host.partition(":")[2])), timeout=1).close()
    except TimeoutError:
        print("no answer at 127.0.0.2", flush=True)


def _flip(step: int, trainer: Trainer) -> None:
    """Has a bit of the first weight flip on this worker, once, when the training is at a step."""
    import numpy as np

    run_steps, name = trainer._run_steps, next(name for name in trainer.state if "kernel" in name)
    left = [step]

    def run(data: object, count: object) -> object:
        times = run_steps(data, count)
        if int(trainer.step.number.numpy()) in left:
            left.clear()
            (variable,) = trainer.strategy.experimental_local_results(trainer.state[name])
            array = variable.numpy()
            array.view(np.uint64).ravel()[0] ^= np.uint64(1 << 44)
            variable.assign(array)
        return times

    trainer.__dict__["_run_steps"] = run


def launched(faults: str, ports: str, folder: str) -> int:
    """Launches gangs of two workers one after the other, does something to one worker of each, and starts them again.

    Prints a line of JSON: for each fault the exit codes of the other and of this worker, the other's seconds from the fault to
    its end, and both codes of the second life. `faults` are "SIGNAL:WORKER", "EARLY:WORKER" for one that ends before TensorFlow's server is up,
    "DATA:WORKER" for one that cannot read the examples of the step `LOST_STEP`, or "none:0"; four `ports` are for each. What the
    workers print goes to `folder/FAULT-LIFE-WORKER.log`; checkpoints after the first life are listed in `folder/FAULT.txt`.
    """
    _import()
    from tests.clusters.tiny import tiny
    from tests.contract.families import LOST_STEP
    from trainer import cluster, main, peers

    free = iter(ports.split(","))

    def start(fault: str, life: int) -> list[int]:
        hosts = ",".join(f"127.0.0.1:{next(free)}" for _ in range(2))

        def run(rank: int) -> int:
            log = os.open(f"{folder}/{fault}-{life}-{rank}.log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 2)
            flags = [f"--workdir={folder}/{fault}", f"--hosts={hosts}", f"--worker={rank}"]
            often = 10**6 if fault.split(":")[0] in ASKED else 40
            # A process that does not get to run for seconds must not be missing where nobody measures how soon that is seen.
            patience = 60 if fault.split(":")[0] in ("DATA", "none") else 5
            flags += [f"--heartbeat_seconds={patience}", *tiny(steps=1200, checkpoint_every=often)]
            if fault == f"EARLY:{rank}" and life == 0:
                peers.meet(hosts.split(","), rank, 60)
                return 1
            if fault == f"DATA:{rank}" and life == 0:
                _lose_examples(LOST_STEP)
            cluster.REGISTER_SECONDS = 5 if life == 0 and fault.startswith("EARLY") else 60
            return main.main(["train", "vae/digits_mlp", *flags])

        return [_fork(functools.partial(run, rank)) for rank in range(2)]

    answers = {}
    for fault in faults.split(","):
        name, number = fault.split(":")
        worker, seconds, codes = int(number), 0.0, []
        children = start(fault, 0)
        if name != "none":
            there = "metrics.jsonl" if name in ASKED else "checkpoints/step-*"
            while name not in BY_ITSELF and not glob.glob(f"{folder}/{fault}/{there}"):
                time.sleep(0.001)
            began = time.monotonic()
            if name not in BY_ITSELF:
                os.kill(children[worker], getattr(signal, f"SIG{name}"))
            if name in ASKED:
                time.sleep(0.01)
                os.kill(children[worker], signal.SIGTERM)  # Once more, which must change nothing.
            codes.append(os.waitstatus_to_exitcode(os.waitpid(children[1 - worker], 0)[1]))
            seconds = time.monotonic() - began
            if name not in (*ASKED, *BY_ITSELF):
                os.kill(children[worker], signal.SIGKILL)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(children[worker], 0)[1]))
            pathlib.Path(folder, f"{fault}.txt").write_text(
                " ".join(
                    sorted(map(os.path.basename, glob.glob(f"{folder}/{fault}/checkpoints/*")))
                )
            )
            children = start(fault, 1)
        again = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        answers[fault] = [codes, seconds, again]
    print(json.dumps(answers), flush=True)
    return 0


def _lose_examples(step: int) -> None:
    """Has this process read no examples from a step on."""
    import tensorflow as tf

    from input_pipeline.batches import Batches, DataError, Slice

    training = Batches.training

    def read(number: int, *_: object) -> None:
        if number >= step:
            raise DataError("shard-7 cannot be read (Input/output error): mend it")

    def look(number: tf.Tensor, element: dict) -> dict:
        with tf.control_dependencies([tf.numpy_function(read, [number], [])]):
            return tf.nest.map_structure(tf.identity, element)

    def failing(batches: Batches, worker: Slice, *, step: int, updates: int) -> tf.data.Dataset:
        return training(batches, worker, step=step, updates=updates).enumerate(step).map(look)

    Batches.training = failing


def _import() -> None:
    import keras  # noqa: F401
    import tensorflow as tf  # noqa: F401

    import tests.contract.families  # noqa: F401
    import trainer.trainer  # noqa: F401

    gc.freeze()  # As tests/conftest.py does.
    gc.set_threshold(50_000)


def _fork(run: Callable[[], int]) -> int:
    """Starts a child, whose exit status is what `run` returns, and returns its process id."""
    child = os.fork()
    if child:
        return child
    _end_with_parent()
    code = 70
    try:
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _end_with_parent() -> None:
    """A test run that is stopped leaves nobody behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill(child: int, rows: str, more: int, seconds: float) -> None:
    """Kills a child of this process, which cannot be another's: it was not waited for."""

    def ended() -> bool:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def count() -> int:
        with contextlib.suppress(FileNotFoundError), open(rows, "rb") as file:
            return file.read().count(b"\n")
        return 0

    # Rows past its checkpoint are dropped when a run goes on, which makes the file shorter.
    seen = before = count()
    while not ended() and seen < before + more:
        time.sleep(0.001)
        now = count()
        before, seen = before - max(0, seen - now), now
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)


def nursery() -> int:
    """See the module."""
    _import()
    for line in sys.stdin:
        task = json.loads(line)

        def run(task: dict = task) -> int:
            log = os.open(f"{task['workdir']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if task["die"]:
                _die_at(*task["die"])
            return _train(task["family"], task["fields"], task["hardware"], task["workdir"])

        child = _fork(run)
        if task["kill"]:
            _kill(child, f"{task['workdir']}/metrics.jsonl", *task["kill"])
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return 0


if __name__ == "__main__":
    _end_with_parent()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    sys.exit(
        {"worker": worker, "nursery": nursery, "launched": launched}[sys.argv[1]](*sys.argv[2:])
    )
