"""Who owns a session in the store, in a few lines: what scripts, replies and the twin in memory have to agree on."""

from __future__ import annotations

from typing import NamedTuple

from everwall.session.image import DELETE, FOUND, LOOKUP, LOST, MISSING, REFUSED, WRITE, WRITE_FIRST, WRITTEN


class Record(NamedTuple):
    start: int
    generation: int
    owner: int
    expiry: int


class Store:
    """Records by flow; one request at a time."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self.junk: set[int] = set()
        """Flows under whose name somebody without the secret has put something that looks like the newest record."""

    def spoil(self, flow: int) -> None:
        self.records.pop(flow, None)
        self.junk.add(flow)

    def ask(self, operation: int, flow: int, record: Record, now: int) -> int:
        """What becomes of a request, as its reply says."""
        there = self.records.get(flow)
        if operation == LOOKUP:
            if flow in self.junk:
                return REFUSED
            return MISSING if there is None or there.expiry < now else FOUND
        yields = there is None or record[:2] > there[:2] or (record[:3] == there[:3])
        if operation == DELETE:
            if flow in self.junk or not yields:
                return LOST
            self.records.pop(flow, None)
            return WRITTEN
        assert operation in (WRITE, WRITE_FIRST)
        if operation == WRITE and not yields and there is not None and there.expiry >= now:
            return LOST
        self.records[flow] = record
        self.junk.discard(flow)
        return WRITTEN
