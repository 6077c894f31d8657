"""Probe flows of the client side: UDP packets that are echoed, and ICMP echo."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from typing import Any

from everwall.lab.traffic.inner import checksum
from everwall.lab.traffic.kinds import (
    ICMP_INTERVAL_S,
    UDP_INTERVAL_S,
    UDP_PORT,
    UDP_SLOW_INTERVAL_S,
)
from everwall.lab.traffic.probes import PROBE, Arrivals

_ICMP = struct.Struct("!BBHHH")
_ECHO, _ECHO_REPLY = 8, 0
TICK_MS = 5
_FAST_TICKS = round(UDP_INTERVAL_S * 1000) // TICK_MS
_SLOW_TICKS = round(UDP_SLOW_INTERVAL_S * 1000) // TICK_MS
_ICMP_TICKS = round(ICMP_INTERVAL_S * 1000) // TICK_MS


def echo_request(identifier: int, sequence: int, sent_ns: int) -> bytes:
    """An ICMP echo request (RFC 792) with a probe as its data."""
    data = PROBE.pack(identifier, sequence & 0xFFFFFFFF, sent_ns)
    head = _ICMP.pack(_ECHO, 0, 0, identifier, sequence & 0xFFFF)
    return _ICMP.pack(_ECHO, 0, checksum(head + data), identifier, sequence & 0xFFFF) + data


class Pings:
    """Sends probes on the ticks of the client's loop and remembers which came back."""

    def __init__(self, server: str, udp_flows: int, icmp_flows: int) -> None:
        self.server = server
        self.udp: list[socket.socket] = []
        for _ in range(udp_flows):
            flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            flow.setblocking(False)
            flow.connect((server, UDP_PORT))
            self.udp.append(flow)
        self.fast: frozenset[int] = frozenset()
        self.sequences = [0] * udp_flows
        self.echoes = Arrivals()
        self.icmp_flows = icmp_flows
        self.icmp_sent = 0
        self.icmp_replies = Arrivals()
        self.raw: socket.socket | None = None
        if icmp_flows:
            self.raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            self.raw.setblocking(False)
            self.raw.connect((server, 0))
        self._identifier = os.getpid() & 0x7FFF

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        for flow in self.udp:
            loop.add_reader(flow, self._read_echo, flow)
        if self.raw:
            loop.add_reader(self.raw, self._read_reply)

    def set_fast(self, flows: list[int]) -> None:
        self.fast = frozenset(flows)

    def tick(self, ticks: int, now_ns: int) -> None:
        """Send what is due; flows are spread over the ticks of their interval."""
        for number, flow in enumerate(self.udp):
            every = _FAST_TICKS if number in self.fast else _SLOW_TICKS
            if (ticks + number) % every == 0:
                try:
                    flow.send(PROBE.pack(number, self.sequences[number], time.monotonic_ns()))
                except OSError:
                    pass  # a full buffer or an ICMP error: a lost probe like any other
                self.sequences[number] += 1
        if self.raw:
            for number in range(self.icmp_flows):
                if (ticks + number) % _ICMP_TICKS == 0:
                    self.icmp_sent += 1
                    try:
                        self.raw.send(echo_request(self._identifier + number, self.icmp_sent, now_ns))
                    except OSError:
                        pass

    def _read_echo(self, flow: socket.socket) -> None:
        try:
            number, _, sent = PROBE.unpack(flow.recv(256))
        except (OSError, struct.error):
            return
        self.echoes.add(number, sent, time.monotonic_ns())

    def _read_reply(self) -> None:
        assert self.raw is not None
        try:
            packet = self.raw.recv(512)
        except OSError:
            return
        data = packet[(packet[0] & 15) * 4 :]
        if len(data) == _ICMP.size + PROBE.size and data[0] == _ECHO_REPLY:
            identifier, _, sent = PROBE.unpack(data[_ICMP.size :])
            self.icmp_replies.add(identifier - self._identifier, sent, time.monotonic_ns())

    def udp_sources(self) -> list[tuple[int, str]]:
        names = [flow.getsockname() for flow in self.udp]
        return [(number, f"{host}:{port}") for number, (host, port) in enumerate(names)]

    def udp_report(self, event_ns: int, effective_ns: int) -> list[dict[str, Any]]:
        return [
            row | {"sent": self.sequences[row["flow"]], "fast": row["flow"] in self.fast}
            for row in self.echoes.summary(event_ns, effective_ns)
        ]

    def icmp_report(self, event_ns: int, effective_ns: int) -> list[dict[str, Any]]:
        return self.icmp_replies.summary(event_ns, effective_ns)
