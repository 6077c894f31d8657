"""The benchmark's network: namespaces without names, veth pairs between them, and who runs where.

::

    generator's namespace                        namespace of the device under test
    g-bounce ──────────────────────────────────── d-bounce      one pair for each contender that
    g-cut10k ──────────────────────────────────── d-cut10k      speaks GENEVE, so that none has to
    ...                                                         be taken down for another
    store    ──────────────────────────────────── mgmt          the store's connection

    g-client ── d-client [router's namespace] d-server ── g-server      plain forwarding

A namespace lives as long as a descriptor of it is open or a process is inside: when this process ends,
however it ends, everything is gone. NAPI of both ends runs in threads of the kernel, those of the device
under test on its processor, those of the generator on the other one.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

GENERATOR_CPU, DEVICE_CPU = 0, 1
MTU = 1700
PRIORITY = 1
"""Of the kernel's threads, in the real-time classes, unless something is said about them."""
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


class Namespace:
    """A network namespace, held by a descriptor."""

    def __init__(self) -> None:
        with _staying():
            _call("unshare", _CLONE_NEWNET)
            self.descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self.shell("ip link set lo up; sysctl -qw net.ipv6.conf.all.disable_ipv6=1")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread lives there for a while; what it starts stays there."""
        with _staying():
            _call("setns", self.descriptor, _CLONE_NEWNET)
            yield

    def shell(self, script: str) -> str:
        """Run a script there, under a /sys of that namespace."""
        with self.inside():
            done = subprocess.run(
                ["unshare", "--mount", "sh", "-ec", f"mount -t sysfs sysfs /sys\n{script}"],
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(f"{script}: {done.stderr.strip()}")
        return done.stdout

    def path(self) -> str:
        """The file by which a program of this process's children enters it."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def close(self) -> None:
        os.close(self.descriptor)


@contextmanager
def _staying() -> Iterator[None]:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _call("setns", home, _CLONE_NEWNET)
        os.close(home)


@dataclass(frozen=True)
class Pair:
    """A veth pair: ``near`` at the generator, ``far`` at the device under test."""

    near: str
    far: str
    index: int
    """Interface number of ``near``."""
    near_address: str
    far_address: str
    near_mac: bytes
    far_mac: bytes


class Network:
    """All namespaces and pairs of a run."""

    def __init__(self) -> None:
        self.generator = Namespace()
        self.device = Namespace()
        self.router = Namespace()
        self._pairs = 0
        self._prefix = f"ew{os.getpid() % 0xFFFFF:x}"

    def pair(self, far: Namespace, *, addressed: bool = True, mtu: int = MTU) -> Pair:
        """A new pair, up, with static neighbours at both ends."""
        self._pairs += 1
        number = self._pairs
        near_name, far_name = f"{self._prefix}g{number}", f"{self._prefix}d{number}"
        near_mac, far_mac = f"02:00:00:00:01:{number:02x}", f"02:00:00:00:02:{number:02x}"
        near_address, far_address = f"10.200.{number}.1", f"10.200.{number}.2"
        queues = "numrxqueues 1 numtxqueues 1"
        self.generator.shell(
            f"ip link add {near_name} address {near_mac} mtu {mtu} {queues} "
            f"type veth peer name {far_name} address {far_mac} mtu {mtu} {queues}"
        )
        holder = subprocess.Popen(
            ["sleep", "60"], preexec_fn=lambda: _call("setns", far.descriptor, _CLONE_NEWNET)
        )
        try:
            self.generator.shell(
                f"ip link set {far_name} netns {holder.pid}; ip addr add {near_address}/24 dev {near_name}\n"
                f"ip link set {near_name} up; ip neigh add {far_address} lladdr {far_mac} dev {near_name}"
            )
        finally:
            holder.kill()
            holder.wait()
        far.shell(
            f"ip addr add {far_address}/24 dev {far_name}; ip link set {far_name} up\n"
            f"ip neigh add {near_address} lladdr {near_mac} dev {far_name}"
        )
        with self.generator.inside():
            index = socket.if_nametoindex(near_name)
        macs = [bytes.fromhex(mac.replace(":", "")) for mac in (near_mac, far_mac)]
        return Pair(near_name, far_name, index, near_address, far_address, *macs)

    def thread(self, namespace: Namespace, device: str, cpu: int) -> list[int]:
        """NAPI of a device in threads on one processor; returns their ids.

        The device needs NAPI by now: an XDP program, or GRO.
        """
        namespace.shell(f"echo 1 > /sys/class/net/{device}/threaded")
        found = napi_threads(device)
        for thread in found:
            place(thread, cpu, PRIORITY)
        return found

    def close(self) -> None:
        for namespace in (self.generator, self.device, self.router):
            namespace.close()


def place(thread: int, cpu: int, priority: int | None = None) -> None:
    """Put a thread on a processor, before whatever else the machine has to do there if it gets a real-time priority.

    On the device's processor those of one priority take turns (SCHED_RR). The generator's receiver goes before the
    generator (SCHED_FIFO).
    """
    os.sched_setaffinity(thread, {cpu})
    turns = os.SCHED_RR if cpu == DEVICE_CPU else os.SCHED_FIFO
    os.sched_setscheduler(
        thread, os.SCHED_OTHER if priority is None else turns, os.sched_param(priority or 0)
    )


def napi_threads(device: str) -> list[int]:
    """Ids of the kernel's threads that poll a device."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if (process / "comm").read_text().startswith(f"napi/{device}-"):
                    found.append(int(process.name))
            except OSError:
                pass  # it has just ended
    return found


def cpu_ns(thread: int) -> int:
    """Processor time that a thread has had, ns."""
    return int(Path(f"/proc/{thread}/schedstat").read_text().split()[0])


def wait_for(what: str, happened: Callable[[], bool], seconds: float) -> None:
    """Raises RuntimeError when it does not happen in time."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {seconds} s")
        time.sleep(0.01)
