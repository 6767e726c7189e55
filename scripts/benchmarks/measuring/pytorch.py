"""PyTorch in a process of its own, since its threads and TensorFlow's would wait for each other in one."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys
from typing import Any

from measuring.rounds import Cost


class PyTorch:
    """A program of ../others, which answers each line of JSON on stdin by one on stdout.

    Args:
      program: its file's name.
      settings: with which it starts.
    """

    def __init__(self, program: str, **settings: Any) -> None:
        path = pathlib.Path(__file__).parent.parent / "others" / program
        self._process = subprocess.Popen(
            [sys.executable, str(path), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **command: Any) -> Any:
        """What it answers.

        Raises:
          SystemExit: if it ended; it has said why on stderr.
        """
        assert self._process.stdin and self._process.stdout
        print(json.dumps(command), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"PyTorch's process ended with {self._process.wait()}: see above")
        return json.loads(answer)

    def cost(self, **command: Any) -> Cost:
        """Of something that it does."""
        return Cost(*self.ask(**command))

    def close(self) -> None:
        self._process.communicate()


def installed() -> bool:
    """With torchvision, which reads folders of pictures, as the extra has it."""
    return all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))


def start(program: str, **settings: Any) -> PyTorch | None:
    """The program, or None with a word on stderr if PyTorch is not installed."""
    if installed():
        return PyTorch(program, **settings)
    print(
        'PyTorch is not installed and left out: .venv/bin/pip install -e ".[benchmark]"',
        file=sys.stderr,
    )
    return None
