"""A worker that does what it is told: stub.py PLAN --hosts=… --worker=i, with PLAN the path of a JSON file.

It holds a list of words for each life of the gang, a word for each worker. These wait, for long:
  save   exits with 75 on SIGTERM and with 130 on SIGINT
  deaf   hears no SIGTERM
  child  has a child that hears none
These go on when every worker of this life has come so far:
  0, 7   exits with this code
  KILL   is ended by this signal
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); time.sleep(600)"
)


def main(path: str, hosts: str, worker: str) -> None:
    plan = pathlib.Path(path)
    count, worker = len(hosts.split(",")), worker.removeprefix("--worker=")
    lives = plan.with_name(f"lives-{worker}")
    life = len(lives.read_text()) if lives.exists() else 0
    lives.write_text("x" * (life + 1))
    words = json.loads(plan.read_text())[life]
    word = words[int(worker)]
    print(f"life {life} of {count}", flush=True)
    print("no end of line", end="", file=sys.stderr, flush=True)
    if word == "save":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    elif word == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif word == "child":
        child = subprocess.Popen([sys.executable, "-u", "-c", DEAF], stdout=subprocess.PIPE)
        child.stdout.readline()
        plan.with_name("child").write_text(str(child.pid))
    plan.with_name(f"ready-{life}-{worker}").touch()
    if word in ("save", "deaf", "child"):
        time.sleep(600)
    while not all(plan.with_name(f"ready-{life}-{i}").exists() for i in range(len(words))):
        time.sleep(0.01)
    if word == "KILL":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(int(word))


if __name__ == "__main__":
    main(*sys.argv[1:])
