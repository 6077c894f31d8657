"""The oracle for ``bpf/cutthrough.bpf.c``: what the program does with a frame, step by step.

It knows the shared arrays by the layout of ``session/table.py`` and ``session/control.py`` and nothing of the engine.
Tests that may load no program let it stand in for the real one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from everwall.limits import BEAT_STALE_NS, SEQUENCE_JUMP_MAX
from everwall.session.table import SharedTable
from tests.naive import flow

BOUNCED = "bounced"
PASSED = "passed"
NO_ROOM = "no-room"
"""Every other outcome is a reason to hand the packet up."""
KNOWN = ("disabled", "tcp-flags", "not-offloaded", "stale", "sequence")
"""Reasons that a packet of a session may have."""

TCP, UDP = 6, 17
ENDPOINT, ATTACHMENT, COOKIE = b"\x01\x08\x01", b"\x01\x08\x02", b"\x01\x08\x03"


class Up(Exception):
    """To the engine, for the reason that it carries."""


def must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Up(otherwise)


@dataclass
class Program:
    """The program over one set of shared arrays."""

    table: SharedTable
    control: np.ndarray

    def frame(self, frame: bytes, clock: int) -> tuple[str, bytes]:
        """What becomes of one Ethernet frame at ``clock`` ns, and the frame afterwards."""
        if not self._is_ours(frame):
            return PASSED, frame
        try:
            must(self.control[6] != 0, "disabled")
            source = int.from_bytes(frame[26:30], "big")
            ranges = self.control[8 : 8 + 2 * int(self.control[4])].reshape(-1, 2)
            must(any(first <= source <= last for first, last in ranges), "source")
            total, datagram = int.from_bytes(frame[16:18], "big"), int.from_bytes(frame[38:40], "big")
            must(len(frame) >= 90 and len(frame) - 14 == total == datagram + 20, "length")
            must(frame[42] in (3, 5, 6, 8), "options")
            options, inner = frame[50 : 50 + 4 * frame[42]], frame[50 + 4 * frame[42] :]
            endpoint = endpoint_of(options)
            must(frame[43] < 128 and frame[44:46] in (b"\x08\x00", b"\x86\xdd"), "inner-protocol")
            outcome = self.run(inner, endpoint, clock, 4 if frame[44] == 8 else 6)
        except Up as reason:
            outcome = str(reason)
        if outcome == BOUNCED:
            return BOUNCED, returned(frame)
        return outcome if self._is_room(outcome) else NO_ROOM, frame

    def _is_room(self, reason: str) -> bool:
        """Whether the worker takes one more packet of queue 0, and notes that it gets it."""
        limit, handed = (int(self.control[576 + k]) for k in (0, 8))
        if limit and limit - handed <= (0 if reason in KNOWN else 512):
            return False
        self.control[584] += 1
        return True

    def _is_ours(self, frame: bytes) -> bool:
        if len(frame) < 42 or frame[0] & 1 or frame[12:15] != b"\x08\x00\x45":
            return False
        if frame[23] != UDP or frame[36:38] != (6081).to_bytes(2, "big"):
            return False
        if int.from_bytes(frame[20:22], "big") % 0x4000 or not sums_up(frame[14:34]):
            return False
        addresses = self.control[40 : 40 + int(self.control[5])].tolist()
        return not addresses or int.from_bytes(frame[30:34], "big") in addresses

    def run(self, inner: bytes, endpoint: int, clock: int, family: int | None = None) -> str:
        """What becomes of one packet at ``clock`` ns; a bounced one is noted in the session's line."""
        try:
            protocol, ends, segment = (ipv4 if (family or inner[0] // 16) == 4 else ipv6)(inner)
            ports = struct.unpack("!HH", segment[:4])
            reached = transport(protocol, segment)
            self._bounce(endpoint, protocol, tuple(zip(ends, ports)), reached, len(inner), clock)
        except Up as reason:
            return str(reason)
        return BOUNCED

    def _bounce(
        self,
        endpoint: int,
        protocol: int,
        ends: tuple,
        reached: tuple[int, int] | None,
        length: int,
        clock: int,
    ) -> None:
        family = 4 if len(ends[0][0]) == 4 else 6
        signed = endpoint - 2**64 if endpoint >= 2**63 else endpoint
        key = flow.key(signed, family, protocol, *ends, int(self.control[0]))
        workers, sets = int(self.control[1]), int(self.control[2])
        low, high = key["hash"] % 2**32, key["hash"] >> 32 & 0xFFFFFFFF
        worker = high * workers >> 32
        slot = self._find(key, family, low, high, worker * sets, sets)
        must(slot is not None, "no-session")
        line = self.table.hot[slot]
        halves = line.view(np.uint32)
        beat, want = (int(self.control[64 + 8 * worker + k]) for k in range(2))
        must(want % 2 == 1 and int(halves[6]) & 0xFFFF0001 == want, "not-offloaded")
        must(clock - beat <= BEAT_STALE_NS, "stale")
        end = key["direction"]
        if reached is not None:
            sequence, acknowledged = reached
            ahead = (sequence - int(halves[8 + end]) + 2**31) % 2**32 - 2**31
            behind = (int(halves[9 - end]) - acknowledged) % 2**32
            must(abs(ahead) <= SEQUENCE_JUMP_MAX and behind <= SEQUENCE_JUMP_MAX, "sequence")
            if ahead > 0:
                halves[8 + end] = sequence % 2**32
        halves[7] = (clock >> 20) % 2**32
        halves[10 + end] = (int(halves[10 + end]) + 1) % 2**32
        line[6 + end] += length

    def _find(self, key: dict, family: int, low: int, high: int, first: int, sets: int) -> int | None:
        tag = high % 256 or 1
        names = [key["key0"], key["key1"], key["key2"]]
        ends = [int.from_bytes(key[end].rjust(16, b"\0")[half : half + 8], "big", signed=True)
                for end in ("lower", "upper") for half in (0, 8)]  # fmt: skip
        for choice in range(4):
            start = (first + ((low + choice * (high | 1)) % 2**32 * sets >> 32)) * 8
            for slot in range(start, start + 8):
                if self.table.tags[slot] != tag or self.table.hot[slot, :3].tolist() != names:
                    continue
                if family == 4 or self.table.addresses[slot].tolist() == ends:
                    return slot
        return None


def endpoint_of(options: bytes) -> int:
    """The endpoint among AWS's three options, none of them twice and none besides."""
    found: dict[bytes, bytes] = {}
    while options:
        kind, length = options[:3], options[3] % 32 * 4
        must(kind not in found and (kind, length) in ((ENDPOINT, 8), (ATTACHMENT, 8), (COOKIE, 4)), "options")
        found[kind] = options[4 : 4 + length]
        must(len(found[kind]) == length, "options")
        options = options[4 + length :]
    must(ENDPOINT in found, "options")
    return int.from_bytes(found[ENDPOINT], "big")


def ipv4(inner: bytes) -> tuple[int, tuple[bytes, bytes], bytes]:
    """Protocol, source and destination, and what follows the header."""
    must(len(inner) >= 28 and int.from_bytes(inner[2:4], "big") == len(inner), "length")
    must(inner[0] == 0x45, "inner-protocol")
    must(int.from_bytes(inner[6:8], "big") % 0x4000 == 0, "fragment")
    must(sums_up(inner[:20]), "inner-checksum")
    return inner[9], (inner[12:16], inner[16:20]), inner[20:]


def ipv6(inner: bytes) -> tuple[int, tuple[bytes, bytes], bytes]:
    must(len(inner) >= 48 and int.from_bytes(inner[4:6], "big") == len(inner) - 40, "length")
    must(inner[0] // 16 == 6, "inner-protocol")
    return inner[6], (inner[8:24], inner[24:40]), inner[40:]


def transport(protocol: int, segment: bytes) -> tuple[int, int] | None:
    """The sequence after the last byte of a TCP segment, and what it acknowledges; none in UDP."""
    must(protocol in (TCP, UDP), "inner-protocol")
    if protocol == UDP:
        must(8 <= int.from_bytes(segment[4:6], "big") <= len(segment), "transport-header")
        return None
    must(len(segment) >= 20, "length")
    header = segment[12] // 16 * 4
    must(20 <= header <= len(segment), "transport-header")
    fin, syn, rst, acknowledges, urgent = (segment[13] & bit for bit in (1, 2, 4, 16, 32))
    must(bool(acknowledges) and not (fin or syn or rst or urgent), "tcp-flags")
    reached = int.from_bytes(segment[4:8], "big") + len(segment) - header
    return reached, int.from_bytes(segment[8:12], "big")


def sums_up(header: bytes) -> bool:
    """Whether the checksum of an IPv4 header is right."""
    return ones_complement(header) == 0xFFFF


def ones_complement(header: bytes) -> int:
    value = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while value > 0xFFFF:
        value = value % 0x10000 + value // 0x10000
    return value


def returned(frame: bytes) -> bytes:
    """The frame on its way back: MACs and outer addresses swapped, a fresh time to live, no UDP checksum."""
    ip = frame[14:22] + bytes([64]) + frame[23:24] + b"\0\0" + frame[30:34] + frame[26:30]
    ip = ip[:10] + (0xFFFF - ones_complement(ip)).to_bytes(2, "big") + ip[12:]
    return frame[6:12] + frame[:6] + frame[12:14] + ip + frame[34:40] + b"\0\0" + frame[42:]
