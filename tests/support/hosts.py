"""Hosts on one machine: network namespaces with addresses and host names of their own.

All of them see one file system. Needs root, `ip` and `unshare`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

MISSING = next((f"{name} is missing" for name in ("ip", "unshare") if not shutil.which(name)), "")
if os.geteuid() != 0:
    MISSING = "network namespaces need root"

BRIDGE = "tfmacer-br"
# A range for documentation, which no network uses.
HERE = "198.51.100.1"


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, stderr=None if check else subprocess.DEVNULL)


class Host:
    """One of the hosts.

    Attributes:
      name: its host name.
      address: its IPv4 address.
    """

    def __init__(self, number: int) -> None:
        """Makes the namespace and its link to the bridge."""
        self.name = f"tfmacer-{number}"
        self.address = f"198.51.100.{number + 1}"
        self._link = f"tfmacer-v{number}"
        self._processes: list[subprocess.Popen[str]] = []
        _ip("netns", "add", self.name)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self._link, "master", BRIDGE, "up")
        inside = ("-n", self.name)
        _ip(*inside, "address", "add", f"{self.address}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")
        _ip(*inside, "link", "set", "lo", "up")

    def start(self, *command: str, **options) -> subprocess.Popen[str]:
        """Starts a Python module or script there, in a process group of its own."""
        script = 'hostname "$0"; exec "$@"'
        inside = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", script]
        process = subprocess.Popen(
            [*inside, self.name, sys.executable, *command],
            text=True,
            start_new_session=True,
            **options,
        )
        self._processes.append(process)
        return process

    def cut_off(self) -> None:
        """Nothing passes to it or from it any more; nobody is told."""
        _ip("link", "set", self._link, "down")

    def connect(self) -> None:
        """The opposite of `cut_off`."""
        _ip("link", "set", self._link, "up")

    def kill(self) -> None:
        """Ends all that runs there."""
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, 9)
            process.communicate()
        self._processes.clear()

    def remove(self) -> None:
        """Ends all that runs there and removes the namespace."""
        self.kill()
        # The namespace would take it along, but some time after.
        _ip("link", "del", self._link)
        _ip("netns", "del", self.name)


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """That many hosts, connected with each other and with this machine, which is `HERE`."""
    for number in range(1, count + 1):  # what a killed test has left
        _ip("link", "del", f"tfmacer-v{number}", check=False)
        _ip("netns", "del", f"tfmacer-{number}", check=False)
    _ip("link", "del", BRIDGE, check=False)
    with ExitStack() as stack:
        _ip("link", "add", BRIDGE, "type", "bridge")
        stack.callback(_ip, "link", "del", BRIDGE)
        _ip("address", "add", f"{HERE}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        made = []
        for number in range(1, count + 1):
            host = Host(number)
            stack.callback(host.remove)
            made.append(host)
        yield made
