"""Starts a server of ours as its users do, and waits for its line `ready`."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0


@contextlib.contextmanager
def serving(module: str, *flags: str, stderr: Path) -> Iterator[subprocess.Popen[str]]:
    """Yields the process once it is ready; kills it afterwards if it still runs.

    Raises:
      AssertionError: it ended, or `PATIENCE` seconds passed, before it was ready.
    """
    with open(stderr, "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    impatient = threading.Timer(PATIENCE, process.kill)
    impatient.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "ready":
                break
        else:
            raise AssertionError(f"{module} is not ready: {stderr.read_text()}")
        impatient.cancel()
        yield process
    finally:
        impatient.cancel()
        process.kill()
        process.wait()
