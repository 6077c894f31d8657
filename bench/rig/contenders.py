"""What is compared: each with its own way for packets, standing all the time, so that rounds can alternate."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bench.rig.generator import Generator, Route
from bench.rig.network import (
    DEVICE_CPU,
    GENERATOR_CPU,
    PRIORITY,
    Network,
    Pair,
    cpu_ns,
    place,
    wait_for,
)
from bench.rig.programs import Programs as Kernel
from everwall.lab import configuration, rundir, store
from everwall.lab.processes import LabError, Program, Programs

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = ROOT / "bench" / "nftables.conf"
_START_S_MAX, _END_S_MAX = 60.0, 10.0


class Order(Enum):
    """Who goes first on the processor of the device under test."""

    TURNS = 1
    """NAPI and the node's threads take turns, also with the workers of idle nodes, which else might starve."""
    ALONE = 2
    """The same, before idle nodes: for loads that leave these enough."""
    NAPI = 3
    """NAPI goes before the node's threads, as where it runs in soft interrupts, and before idle nodes."""


@dataclass
class Contender:
    """One way of forwarding."""

    name: str
    route: Route
    device: str
    """Its interface."""
    kernel_threads: list[int]
    """NAPI on the processor of the device under test."""
    program: Program | None = None
    """The node's process."""

    def cpu_ns(self) -> int:
        """Processor time of everything that works for it."""
        return sum(cpu_ns(thread) for thread in self.threads())

    def threads(self) -> list[int]:
        """NAPI's threads and those of the node's process."""
        own: list[int] = []
        if self.program is not None:
            own = [int(task.name) for task in Path(f"/proc/{self.program.pid}/task").iterdir()]
        return self.kernel_threads + own

    @contextlib.contextmanager
    def measured(self, order: Order = Order.TURNS) -> Iterator[None]:
        """Its threads have the processor in that order meanwhile, and stand back afterwards."""
        own = {Order.TURNS: PRIORITY, Order.ALONE: PRIORITY + 1, Order.NAPI: None}[order]
        napi = PRIORITY if order == Order.TURNS else PRIORITY + 1
        for thread in self.threads():
            place(thread, DEVICE_CPU, napi if thread in self.kernel_threads else own)
        try:
            yield
        finally:
            self.stand_back()

    def stand_back(self) -> None:
        """Disturb others as little as may be.

        The worker goes on in its turn: once it has not passed its loop for a while its sessions are taken out of
        the cut-through. What is Python, and looks after the node twenty times a second, has to wait.
        """
        lively = set(self.kernel_threads)
        if self.program is not None:
            lively.add(self.ask("worker")["thread"])
        for thread in self.threads():
            with contextlib.suppress(ProcessLookupError):  # the store's connector ends by itself
                place(thread, DEVICE_CPU, PRIORITY if thread in lively else None)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Put a request to the node."""
        assert self.program is not None, f"{self.name} is no node"
        return self.program.ask(command, timeout_s=_START_S_MAX, **arguments)


class Rig:
    """Network, generator, store and contenders of a run; a context manager."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.contenders: dict[str, Contender] = {}
        self.missing: dict[str, str] = {}
        """Contenders that are not available here, and why."""

    def __enter__(self) -> Rig:
        with self._stack:
            self.network = Network()
            self._stack.callback(self.network.close)
            self._stack.enter_context(self.network.generator.inside())
            self._kernel = Kernel()
            self._stack.callback(self._kernel.close)
            self._directory = rundir.create()
            self._stack.callback(self._directory.close, remove=True)
            self._programs = Programs(self._directory)
            self._stack.callback(self._programs.stop)
            self._secret = secrets.token_hex(32)
            configuration.write(self._directory.path / "policy.yaml", configuration.policy())
            self._store: store.Store | None = None
            self._management = ""
            self._stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
            os.sched_setaffinity(0, {GENERATOR_CPU})
            self._stack.callback(os.setpriority, os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0))
            os.setpriority(os.PRIO_PROCESS, 0, -20)
            self.generator = Generator(self._kernel)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def kernel(self) -> Kernel:
        """The loaded programs."""
        return self._kernel

    def _receive(self, pair: Pair, program: str) -> None:
        self._kernel.attach(program, pair.near)
        self.network.thread(self.network.generator, pair.near, GENERATOR_CPU)

    # Without Everwall --------------------------------------------------------------------------------

    def add_bounce(self, name: str = "bounce", program: str = "bounce") -> Contender:
        """Every packet turned around in the driver; or another program that needs nobody."""
        pair = self.network.pair(self.network.device)
        self._receive(pair, "receive_geneve")
        with self.network.device.inside():
            self._kernel.attach(program, pair.far)
        threads = self.network.thread(self.network.device, pair.far, DEVICE_CPU)
        return self._add(Contender(name, Route.encapsulated(pair), pair.far, threads))

    def add_forwarding(self, name: str = "kernel") -> Contender:
        """The kernel's own forwarding of the inner packets, with nftables and conntrack."""
        router = self.network.router
        pairs = [self.network.pair(router) for _ in range(2)]
        threads = []
        for pair in pairs:
            self._receive(pair, "receive_plain")
            router.shell(f"ethtool -K {pair.far} gro on")
            threads += self.network.thread(router, pair.far, DEVICE_CPU)
        clients, servers = pairs
        router.shell(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0\n"
            "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0\n"
            f"ip route add 10.0.0.0/9 via {clients.near_address}\n"
            f"ip route add 198.18.0.0/15 via {servers.near_address}\n"
            f"nft -f {RULES}"
        )
        return self._add(Contender(name, Route(clients, servers, False), clients.far, threads))

    def conntrack_entries(self) -> int:
        """Connections that the router's conntrack holds."""
        return int(self.network.router.shell("cat /proc/sys/net/netfilter/nf_conntrack_count"))

    def forget_connections(self) -> None:
        """Empty the router's conntrack."""
        from pyroute2 import NFCTSocket

        with self.network.router.inside(), NFCTSocket() as conntrack:
            conntrack.flush()

    # Nodes -----------------------------------------------------------------------------------------------

    def start_store(self) -> store.Store:
        """A store with TLS on the generator's processor, reached from the device under test by a pair of its own."""
        if self._store is None:
            pair = self.network.pair(self.network.device, mtu=1500)
            self._management = pair.far
            for namespace, device, cpu in (
                (self.network.generator, pair.near, GENERATOR_CPU),
                (self.network.device, pair.far, DEVICE_CPU),
            ):
                namespace.shell(f"ethtool -K {device} gro on")
                self.network.thread(namespace, device, cpu)
            path = self.network.generator.path()
            self._store = store.start(self._programs, pair.near_address, store.PORT, path)
            os.sched_setaffinity(self._store.program.pid, {GENERATOR_CPU})
        return self._store

    def add_node(
        self,
        name: str,
        port: str,
        sessions: int,
        *,
        inserted: int = 0,
        cut_through: bool = False,
        with_store: bool = False,
    ) -> Contender | None:
        """A node with a data interface and a table for so many sessions, of which some are there from the beginning.

        None, and its reason in ``missing``, when it does not start.
        """
        pair = self.network.pair(self.network.device)
        self._receive(pair, "receive_geneve")
        host = re.sub(r"[^a-z0-9]+", "-", name.lower())
        operations = ["aws-gwlb-inspect:enable"]
        lines = [
            f"hostname={host}",
            f"everwall-data-interface={pair.far}",
            f"everwall-data-address={pair.far_address}",
            f"everwall-geneve-sources={pair.near_address}/32",
            "everwall-policy=policy.yaml",
            f"everwall-port={port}",
            f"everwall-cut-through={'on' if cut_through else 'off'}",
            f"everwall-max-sessions={sessions}",
        ]
        if with_store:
            server = self.start_store()
            operations.append("set-sess-ress:True")
            lines += [
                f"everwall-mgmt-interface={self._management}",
                f"redis-endpoint={server.host}:{server.port}",
                f"redis-auth={server.password}",
                f"redis-certificate={server.authority_base64}",
                f"everwall-cluster-secret={self._secret}",
            ]
        lines.append(f"plugin-op-commands={','.join(operations)}")
        file = configuration.write(self._directory.path / f"{host}.txt", "\n".join(lines) + "\n")
        if port != "xdp":
            self.network.device.shell(f"ethtool -K {pair.far} gro on")
        # Programs start in a directory of their own.
        python = ["env", f"PYTHONPATH={ROOT / 'src'}{os.pathsep}{ROOT}", sys.executable]
        program = self._programs.start(
            host,
            [*python, "-m", "bench.rig.node", str(file), str(inserted)],
            self.network.device.path(),
            pipes=True,
        )
        contender = Contender(name, Route.encapsulated(pair, port == "xdp"), pair.far, [], program)
        try:
            contender.ask("counters")
        except LabError as error:
            self.missing[name] = str(error)
            return None
        contender.kernel_threads = self.network.thread(self.network.device, pair.far, DEVICE_CPU)
        contender.stand_back()
        return self._add(contender)

    def end_others(self, contender: Contender) -> None:
        """End the nodes of all others, which from then on are missing."""
        for other in [each for each in self.contenders.values() if each.program is not None]:
            if other is not contender:
                other.program.signal(signal.SIGKILL)
                wait_for(f"{other.name} ends", lambda other=other: not other.program.running, _END_S_MAX)
                del self.contenders[other.name]

    def program_of(self, contender: Contender) -> int:
        """The number of the XDP program that is attached at the device under test."""
        shown = self.network.device.shell(f"ip -json link show dev {contender.device}")
        return int(json.loads(shown)[0]["xdp"]["prog"]["id"])

    def _add(self, contender: Contender) -> Contender:
        self.contenders[contender.name] = contender
        return contender
