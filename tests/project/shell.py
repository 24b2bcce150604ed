"""Runs the commands of the documentation in a folder of their own, with less work for each."""

import contextlib
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import portpicker
from source_tree import ROOT

# Flags that make a command cheap enough for a test; of a flag given twice the last one counts.
LIGHTER = {
    "tfmacer.train": ["--epochs=1", "--num_noise=1", "--eval_examples=10"],
    "tfmacer.certify": ["--n=1000", "--num_examples=4"],
    "tfmacer.falsify": ["--steps=2", "--num_noise=4", "--num_examples=4"],
}
# They prepare the environment that the tests run in already.
HERE_ALREADY = ("make", "source")
PATIENCE = 300.0


def lines_of(block: str) -> list[str]:
    """Lines of shell, those that a backslash continues joined."""
    return block.replace("\\\n", " ").splitlines()


class Shell:
    """Runs lines as a user would type them; the servers that they start end with it."""

    def __init__(self, folder: Path, python: Path | None = None) -> None:
        """Nothing runs yet.

        Args:
          folder: where commands run.
          python: of the environment that tfmacer is installed in; None is this one, with the
            packages of this tree.
        """
        self._folder = folder
        self._python = python or Path(sys.executable)
        path = {} if python else {"PYTHONPATH": str(ROOT)}
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._environment = {**kept, **path, "PYTHONUNBUFFERED": "1"}
        self._servers = contextlib.ExitStack()

    def __enter__(self) -> "Shell":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._servers.close()

    def type(self, line: str) -> None:
        """Runs a line: Python modules lightly, a server that ends with `&` until the end."""
        words = shlex.split(line)
        if words[:2] != ["python", "-m"]:
            if words[0] not in HERE_ALREADY:
                self.call("bash", "-euo", "pipefail", "-c", line)
            return
        module, arguments = words[2], words[3:]
        command = ["-m", module, *arguments, *LIGHTER.get(module, [])]
        if arguments[-1] != "&":
            self.run(*command)
            return
        command.remove("&")
        if module == "serving.sidecar":
            command.append("--metrics_port=0")
            if not any(word.startswith("--port=") for word in command):
                command.append(f"--port={portpicker.pick_unused_port()}")
        self._servers.enter_context(self._serving(command))

    def run(self, *words: str) -> str:
        """Runs Python; returns what it printed."""
        printed = self.call(str(self._python), *words)
        # Blocks print the comparisons they make.
        assert "False" not in printed.split(), printed
        return printed

    def call(self, *words: str) -> str:
        """Runs a program; returns what it printed."""
        done = subprocess.run(
            words, cwd=self._folder, env=self._environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def _serving(self, words: list[str]) -> Iterator[None]:
        """A server, once it has said `ready`, until the end."""
        with subprocess.Popen(
            [self._python, *words],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            impatient = threading.Timer(PATIENCE, process.kill)
            impatient.start()
            try:
                assert process.stdout is not None
                assert any(line.strip() == "ready" for line in process.stdout), words
                impatient.cancel()
                yield
            finally:
                impatient.cancel()
                process.kill()
