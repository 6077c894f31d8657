"""Network namespaces for tests: the calling thread moves, the rest of the process stays where it is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_PATIENCE_S = 20.0
_HERE = "/proc/thread-self/ns/net"


def _call(name: str, *arguments: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


class Network:
    """A network namespace, gone when it is closed and nothing in it is open any more."""

    def __init__(self) -> None:
        home = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("unshare", _CLONE_NEWNET)
            self.descriptor = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
            _call("setns", home, _CLONE_NEWNET)
        finally:
            os.close(home)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread, and what it starts, live in here meanwhile."""
        home = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", self.descriptor, _CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", home, _CLONE_NEWNET)
        finally:
            os.close(home)

    def close(self) -> None:
        os.close(self.descriptor)


@contextlib.contextmanager
def new_network() -> Iterator[None]:
    """A network namespace of its own for the calling thread and what it starts."""
    made = Network()
    try:
        with made.entered():
            yield
    finally:
        made.close()


class Linked:
    """Two networks with a virtual Ethernet link between them: ``near`` and ``far``, whose device is ``eth0``."""

    def __init__(self, near: list[str], far: list[str], mtu: int = 1700, queues: int = 1) -> None:
        """``near`` and ``far``: the addresses of either end, in one /24; ``queues``: of either device."""
        self.near, self.far = Network(), Network()
        with self.near.entered():
            many = ["numrxqueues", str(queues), "numtxqueues", str(queues)]
            far_name = f"/proc/self/fd/{self.far.descriptor}"
            # The program that makes the link has to see the other namespace as well.
            done = subprocess.run(
                ["ip", "link", "add", "eth0", "mtu", str(mtu), *many, "type", "veth"]
                + ["peer", "name", "eth0", "mtu", str(mtu), *many, "netns", far_name],
                capture_output=True,
                text=True,
                check=False,
                pass_fds=[self.far.descriptor],
            )
            assert done.returncode == 0, done.stderr
        for network, addresses in ((self.near, near), (self.far, far)):
            with network.entered():
                ip("link", "set", "lo", "up")
                for address in addresses:
                    ip("addr", "add", f"{address}/24", "dev", "eth0")
                ip("link", "set", "eth0", "up")
        for network in (self.near, self.far):
            with network.entered():
                carries("eth0")

    def close(self) -> None:
        self.near.close()
        self.far.close()


def carries(device: str) -> None:
    """Wait until a device that is up sends: until its carrier was noticed all that it should send is dropped.

    What was dropped is the answer to an ARP request, most likely, which is asked for again after a second.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while "state UP" not in ip("link", "show", "dev", device):
        assert time.monotonic() < deadline, f"{device} has no carrier"
        time.sleep(0.002)


def takes_in(address: str) -> None:
    """Wait until the kernel takes in what comes to a new address of IPv6: it lets it send a little earlier."""
    deadline = time.monotonic() + _PATIENCE_S
    while f"local {address} " not in ip("-6", "route", "show", "table", "local"):
        assert time.monotonic() < deadline, f"{address} is not taken in"
        time.sleep(0.002)


def ip(*words: str) -> str:
    """The answer of ``ip``, which has to succeed."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
