"""The load balancer's composition root: configuration ▸ gateway, port, endpoints, probes, control socket.

One thread runs the compiled loop of ``gwlb_worker``; this one, asyncio, runs health checks and answers the
control socket. They share arrays only: states of targets are plain numbers that one side writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import structlog

from everwall import gwlb_worker
from everwall.balancer import flows as table
from everwall.balancer.config import EndpointConfig, GwlbConfig
from everwall.balancer.gateway import Gateway
from everwall.balancer.probes import Prober, ProbeSettings
from everwall.balancer.targets import Event, Targets
from everwall.limits import (
    GENEVE_OVERHEAD_BYTES,
    GWLB_EVENTS_SHOWN,
    GWLB_SOURCE_PORTS,
    GWLB_SOURCE_PORTS_UNPRIVILEGED,
    GWLB_WATCH_S,
    HEARTBEAT_STALE_NS,
    SECOND_NS,
    frame_bytes_for,
)
from everwall.management.control import ControlError, ControlServer
from everwall.ports import endpoint, packet, port, tun
from everwall.ports.endpoint import Endpoint
from everwall.ports.port import Port

log = structlog.get_logger()

_MASK64 = (1 << 64) - 1


class StartError(RuntimeError):
    """The load balancer cannot start; the message says what it needs."""


def open_port(config: GwlbConfig) -> Port:
    """The port to the targets; raises StartError."""
    try:
        if config.transport == "udp":
            return port.open_udp(config.address)
        try:
            return port.open_raw(config.address, config.device)
        except PermissionError:
            if config.transport == "raw":
                raise
            return port.open_udp(config.address)
    except OSError as error:
        place = f"{config.address}:6081" + (f" on {config.device}" if config.device else "")
        raise StartError(
            f"cannot open the port to the targets, {place}: {error.strerror or error}"
        ) from error


def open_endpoint(config: EndpointConfig) -> Endpoint:
    """One endpoint; raises StartError."""
    if config.device is not None:
        try:
            if config.kind == "packet":
                return packet.open_packet(config.device, config.mtu)
            return Endpoint(tun.open_tun(config.device, config.mtu))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StartError(
                f"cannot open endpoint device {config.device} ({config.kind}): {reason}"
            ) from error
    assert config.listen is not None
    assert config.peer is not None
    try:
        return endpoint.open_udp(config.listen, config.peer)
    except OSError as error:
        place = "{}:{}".format(*config.listen)
        raise StartError(f"cannot open endpoint {place}: {error.strerror or error}") from error


class LoadBalancer:
    """One running load balancer: ``async with`` opens it, leaving closes it."""

    def __init__(self, config: GwlbConfig, control: Path | None = None) -> None:
        self._config = config
        self._control = control
        self._began = time.monotonic_ns()
        self.targets = Targets(
            healthy_threshold=config.healthy_threshold,
            unhealthy_threshold=config.unhealthy_threshold,
            rebalance=config.rebalance,
            deregistration_delay=int(config.deregistration_delay * SECOND_NS),
            told=_say,
        )
        self._prober = Prober(
            self.targets,
            ProbeSettings(
                config.health_check_protocol,
                config.health_check_port,
                config.health_check_path,
                config.health_check_interval,
                config.health_check_timeout,
                config.matcher,
                config.address,
            ),
        )
        self._timer: asyncio.Task[None] | None = None
        self._server: ControlServer | None = None
        self._opened: list[Callable[[], None]] = []

    async def __aenter__(self) -> LoadBalancer:
        """Raises StartError."""
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _start(self) -> None:
        config = self._config
        now = time.monotonic_ns()
        self._port = open_port(config)
        self._opened.append(lambda: port.close(self._port))
        self._endpoints: list[Endpoint] = []
        for one in config.endpoints:
            self._endpoints.append(open_endpoint(one))
            self._opened.append(self._endpoints[-1].close)
        frame_bytes = frame_bytes_for(max(one.mtu for one in config.endpoints) + GENEVE_OVERHEAD_BYTES)
        raw = port.kind_of(self._port) == "raw"
        self.gateway = Gateway(
            address=port.address_number(config.address),
            endpoints=[one.id for one in config.endpoints],
            targets=self.targets,
            now=now,
            max_flows=config.max_flows,
            idle_tcp=config.tcp_idle * SECOND_NS,
            source_ports=GWLB_SOURCE_PORTS if raw else GWLB_SOURCE_PORTS_UNPRIVILEGED,
            seed=secrets.randbits(63),
        )
        self._worker = gwlb_worker.make_worker(self.gateway, self._port, self._endpoints, frame_bytes)
        self._opened.append(lambda: os.close(self._worker.wake))
        # Compiled, or taken from the cache, before anybody is told that we are ready.
        gwlb_worker.prepare(self._worker)
        self._worker.control[gwlb_worker.HEARTBEAT] = time.monotonic_ns()
        thread = threading.Thread(target=gwlb_worker.run, args=(self._worker,), name="gwlb-worker")
        thread.start()
        self._opened.append(lambda: self._end(thread))
        for target in config.targets:
            self.targets.register(target.id, target.address, time.monotonic_ns())
            self._prober.watch(target.id)
        self._timer = asyncio.create_task(self._watch())
        if self._control is not None:
            server = ControlServer(self._control, self._handlers())
            try:
                await server.start()
            except (ControlError, OSError) as error:
                raise StartError(f"control socket {self._control}: {error.strerror or error}") from error
            self._server = server

    def _end(self, thread: threading.Thread) -> None:
        gwlb_worker.stop(self._worker)
        thread.join()

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            await self._server.stop()
        if self._timer is not None:
            self._timer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._timer
        await self._prober.stop()
        while self._opened:
            self._opened.pop()()

    def is_working(self) -> bool:
        """Whether the worker's loop went round lately."""
        beat = int(self._worker.control[gwlb_worker.HEARTBEAT])
        return time.monotonic_ns() - beat < HEARTBEAT_STALE_NS

    async def _watch(self) -> None:
        """End deregistration delays in time."""
        while True:
            now = time.monotonic_ns()
            self.targets.handle_timer(now)
            due = self.targets.next_timer()
            pause = GWLB_WATCH_S if due is None else min(GWLB_WATCH_S, (due - now) / SECOND_NS)
            await asyncio.sleep(max(pause, 0.0))

    def describe(self) -> str:
        """One line for people: what runs here."""
        config = self._config
        ends = ", ".join(one.place for one in config.endpoints)
        checks = (
            f"{config.health_check_protocol} checks every {config.health_check_interval:g} s, "
            f"time-out {config.health_check_timeout:g} s, unhealthy after {config.unhealthy_threshold}"
        )
        failover = "rebalance" if config.rebalance else "no_rebalance"
        return (
            f"{config.address}:6081 ({port.kind_of(self._port)}), endpoints {ends}, "
            f"{len(config.targets)} targets, {checks}, target_failover {failover}"
        )

    # Control ------------------------------------------------------------------------------------

    def _handlers(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        return {
            "status": self._status,
            "counters": lambda asked: {"counters": self._counters(), "metrics": self.gateway.metrics},
            "targets": self._targets_shown,
            "flows": self._flows_shown,
            "register": self._register,
            "deregister": self._deregister,
        }

    def _status(self, asked: dict[str, Any]) -> dict[str, Any]:
        now = time.monotonic_ns()
        states = [str(target.state) for target in self.targets]
        return {
            "state": "active" if self.is_working() else "failing",
            "address": self._config.address,
            "port": port.kind_of(self._port),
            "endpoints": [f"{one.id & _MASK64:#x}" for one in self._config.endpoints],
            "targets": {state: states.count(state) for state in dict.fromkeys(states)},
            "flows": table.active(self.gateway.tables.flows),
            "flows_moved": self.gateway.moved,
            "target_failover": "rebalance" if self._config.rebalance else "no_rebalance",
            "uptime_s": (now - self._began) / SECOND_NS,
        }

    def _counters(self) -> dict[str, int]:
        """The gateway's, and what the kernel could not hand over because nobody fetched it in time."""
        lost = sum(each.lost for each in self._endpoints)
        return self.gateway.counters | ({"endpoint-overrun": lost} if lost else {})

    def _targets_shown(self, asked: dict[str, Any]) -> dict[str, Any]:
        events = [_event(event) for event in list(self.targets.events)[-GWLB_EVENTS_SHOWN:]]
        return {"targets": self.gateway.target_rows(time.monotonic_ns()), "events": events}

    def _flows_shown(self, asked: dict[str, Any]) -> dict[str, Any]:
        limit = asked.get("limit", 100)
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise ValueError(f"limit must be a whole number from 1, not {limit!r}")
        now = time.monotonic_ns()
        names = {target.reference: target.id for target in self.targets}
        rows = table.snapshot(self.gateway.tables.flows, limit)
        return {
            "flows": [_flow(row, names, now) for row in rows.tolist()],
            "total": table.active(self.gateway.tables.flows),
        }

    def _register(self, asked: dict[str, Any]) -> dict[str, Any]:
        target_id = str(asked["target"])
        known = self.targets[target_id].address if target_id in self.targets else target_id
        target = self.targets.register(target_id, str(asked.get("address", known)), time.monotonic_ns())
        self._prober.watch(target_id)
        return {"target": target_id, "state": str(target.state)}

    def _deregister(self, asked: dict[str, Any]) -> dict[str, Any]:
        target = self.targets.deregister(str(asked["target"]), time.monotonic_ns())
        return {"target": target.id, "state": str(target.state)}


def _event(event: Event) -> dict[str, Any]:
    return {
        "time_ns": event.time,
        "target": event.target,
        "state": str(event.state),
        "reason": str(event.reason),
    }


def _say(event: Event) -> None:
    log.info("target", target=event.target, state=str(event.state), reason=str(event.reason))


def _flow(row: list[int], names: dict[int, str], now: int) -> dict[str, Any]:
    """One flow as its first packet went: who to whom, where it goes and since when."""
    key = table.describe(row)
    lower = (_text(key.family, key.lower), key.lower_port)
    upper = (_text(key.family, key.upper), key.upper_port)
    (src, sport), (dst, dport) = (upper, lower) if row[table.FLAGS] & table.FIRST_UPPER else (lower, upper)
    return {
        "endpoint": key.endpoint & _MASK64,
        "proto": key.protocol,
        "src": src,
        "sport": sport,
        "dst": dst,
        "dport": dport,
        "target": names.get(row[table.TARGET]),
        "cookie": f"{row[table.COOKIE]:08x}",
        "outer_source_port": row[table.SOURCE_PORT],
        "packets_out": row[table.PACKETS_OUT],
        "packets_back": row[table.PACKETS_BACK],
        "moves": row[table.MOVES],
        "age_s": round(max(0, now - row[table.SINCE]) / SECOND_NS, 3),
        "idle_s": round(max(0, now - row[table.LAST]) / SECOND_NS, 3),
    }


def _text(family: int, halves: tuple[int, int]) -> str:
    high, low = halves
    if family == 4:
        return str(IPv4Address(low))
    return str(IPv6Address((high & _MASK64) << 64 | low & _MASK64))


async def serve(config: GwlbConfig, control: Path | None) -> None:
    """Run until SIGTERM or SIGINT. Raises StartError."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with LoadBalancer(config, control) as balancer:
        print(f"everwall gwlb: ready: {balancer.describe()}", file=sys.stderr, flush=True)
        await ended.wait()
    print("everwall gwlb: stopped", file=sys.stderr, flush=True)
