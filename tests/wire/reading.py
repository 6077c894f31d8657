"""Running the parsers over many packets at once, and saying what they found in the oracle's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from everwall import flow
from everwall.kernels import kernel
from everwall.verdict import Verdict
from everwall.wire import geneve, meta, packet, tcp
from everwall.wire.meta import COLUMNS, PROTOCOL, TCP_FLAG_BITS, Batch

SEED = 0x0123456789ABCDEF

_FORWARD = int(Verdict.FORWARD)
_UNREAD = -7_777_777
"""Stands in every column that a parser has to fill, so that a forgotten one is seen."""


@kernel
def read_rows(data, rows, verdicts, scales, seed):
    """Decapsulate, parse and key every row; ``verdicts`` gets the first that is not FORWARD."""
    for i in range(rows.shape[0]):
        verdict = geneve.decapsulate(data, rows, i)
        if verdict == _FORWARD:
            verdict = packet.parse(data, rows, i)
        if verdict == _FORWARD:
            flow.make_key(rows, i, seed)
            # An ICMP error about TCP has the protocol, but no flags and no TCP header.
            if rows[i, PROTOCOL] == 6 and rows[i, TCP_FLAG_BITS] != 0:
                scales[i] = tcp.window_scale(data, rows, i)
        verdicts[i] = verdict


class Readings:
    """What the parsers say of ``packets``, each of which ends where its row ends.

    So a read past the end leaves the array: an error where bounds are checked (interpreted, or compiled with
    NUMBA_BOUNDSCHECK=1), and other bytes than the oracle sees where they are not.
    """

    def __init__(self, packets: Sequence[bytes], bare: bool = False, endpoint: int = 0, seed: int = SEED):
        width = max(len(packet) for packet in packets) + 8
        self.batch = Batch(
            np.full((len(packets), width), 0xA5, np.uint8),
            np.full((len(packets), COLUMNS), _UNREAD, np.int64),
        )
        for i, packet_bytes in enumerate(packets):
            start = width - len(packet_bytes)
            self.batch.data[i, start:] = np.frombuffer(packet_bytes, np.uint8)
            self.batch.meta[i, meta.START] = start
            self.batch.meta[i, meta.END] = width
            self.batch.meta[i, meta.BARE] = int(bare)
            self.batch.meta[i, meta.ENDPOINT] = endpoint
        codes = np.zeros(len(packets), np.int64)
        scales = np.full(len(packets), -1, np.int64)
        read_rows(self.batch.data, self.batch.meta, codes, scales, seed)
        self.verdicts = [Verdict(code) for code in codes.tolist()]
        self.scales = scales.tolist()

    def column(self, i: int, name: int) -> int:
        return int(self.batch.meta[i, name])

    def outer(self, i: int) -> dict[str, Any]:
        """Row ``i`` as ``naive.wire.decapsulate`` says it."""
        row = self.batch.meta[i].tolist()
        return {
            "endpoint": row[meta.ENDPOINT],
            "cookie": row[meta.COOKIE],
            "inner": row[meta.INNER] - row[meta.START],
        }

    def packet(self, i: int) -> dict[str, Any]:
        """Row ``i`` as ``naive.wire.parse`` says it."""
        row = self.batch.meta[i].tolist()
        inner = row[meta.INNER]
        return {
            "family": row[meta.FAMILY],
            "protocol": row[meta.PROTOCOL],
            "source": self._address(row, meta.SOURCE_HIGH, meta.SOURCE_LOW),
            "destination": self._address(row, meta.DESTINATION_HIGH, meta.DESTINATION_LOW),
            "transport": row[meta.TRANSPORT] - inner if row[meta.TRANSPORT] != -1 else -1,
            "end": row[meta.INNER_END] - inner,
            "payload": row[meta.PAYLOAD],
            "sport": row[meta.SOURCE_PORT],
            "dport": row[meta.DESTINATION_PORT],
            "flags": row[meta.TCP_FLAG_BITS],
            "seq": row[meta.TCP_SEQUENCE],
            "ack": row[meta.TCP_ACKNOWLEDGEMENT],
            "window": row[meta.TCP_WINDOW_FIELD],
            "fragment": row[meta.FRAGMENT],
            "fragment_id": row[meta.FRAGMENT_ID],
            "icmp": row[meta.ICMP_KIND],
        }

    def key(self, i: int) -> dict[str, int | bytes]:
        """Row ``i`` as ``naive.flow.key`` says it."""
        row = self.batch.meta[i].tolist()
        return {
            "key0": row[meta.KEY0],
            "key1": row[meta.KEY1],
            "key2": row[meta.KEY2],
            "lower": self._address(row, meta.LOWER_HIGH, meta.LOWER_LOW),
            "upper": self._address(row, meta.UPPER_HIGH, meta.UPPER_LOW),
            "direction": row[meta.DIRECTION],
            "hash": row[meta.HASH],
        }

    @staticmethod
    def _address(row: list[int], high: int, low: int) -> bytes:
        if row[meta.FAMILY] == 4:
            assert row[high] == 0
            return row[low].to_bytes(4, "big")
        return row[high].to_bytes(8, "big", signed=True) + row[low].to_bytes(8, "big", signed=True)


def read(packet_bytes: bytes, bare: bool = True, endpoint: int = 0) -> tuple[Verdict, dict[str, Any]]:
    """The verdict on one packet, and what was read of it if it is FORWARD."""
    readings = Readings([packet_bytes], bare, endpoint)
    found = readings.outer(0) | readings.packet(0) if readings.verdicts[0] == Verdict.FORWARD else {}
    return readings.verdicts[0], found


def verdict_of(packet_bytes: bytes, bare: bool = True) -> Verdict:
    return Readings([packet_bytes], bare).verdicts[0]


def prefix_verdicts(packet_bytes: bytes, bare: bool = True) -> list[Verdict]:
    """The verdict on every true prefix of a packet, by length."""
    return Readings([packet_bytes[:length] for length in range(len(packet_bytes))], bare).verdicts
