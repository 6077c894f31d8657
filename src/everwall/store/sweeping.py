"""Records whose owner has gone: found and removed, a few buckets at a time, by whichever node comes by.

All nodes of a cluster share a cursor in the store for each range of buckets and take leases from it: how far it may be
is a matter of the server's clock alone, so that together they pass every bucket once in SWEEP_PASS_S, however many they
are, and nobody needs to know who else there is. A lease of a node that dies with it is seen to in the next pass.
Random offsets would need no cursor, but have missed one bucket in three when as many were looked at as there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from redis.exceptions import NoPermissionError, ReadOnlyError, ResponseError

from everwall.limits import (
    BUCKET_TTL_S,
    HOST_NAME_BUCKETS,
    HOST_NAME_TTL_S,
    SECOND_NS,
    SWEEP_BUCKETS,
    SWEEP_FIELDS_MAX,
    SWEEP_PASS_S,
)
from everwall.session.record import EXPIRY_OFFSET
from everwall.store import keys, layout, names
from everwall.store.lua import Client, Script
from everwall.store.protocol import clock_arguments, clock_key, store_time_ns

_LEASE, _SWEEP, _CLOCK = Script("lease"), Script("sweep"), Script("clock")


@dataclass(frozen=True)
class Range:
    """Buckets of one kind."""

    cursor: bytes
    key: Callable[[int], bytes]
    buckets: int
    expiry_at: int
    """Where a value's expiry stands, counted from 1."""
    life_s: int
    """Of a bucket after it was renewed."""
    in_store_time: bool
    """That is what its expiries are in; else in the clock of the server that has it."""


class Sweeper:
    """One node's share of the sweeping."""

    def __init__(self, prefix: str, pass_s: float = SWEEP_PASS_S) -> None:
        self._prefix, self._pass_s = prefix, pass_s
        self.ranges: list[Range] = []
        self.swept_buckets = self.swept_records = self.renewed_buckets = self.strange_buckets = 0
        """Strange is a bucket that holds something else, or more than any of ours."""

    def learn(self, client: Client) -> None:
        """Ask what buckets there are. Raises redis.RedisError."""
        prefix, shared = self._prefix, keys.shared_key
        self.ranges = [
            Range(
                shared(prefix, f"sweep:{epoch.number}"),
                lambda bucket, epoch=epoch: layout.bucket_key(prefix, epoch, bucket),  # type: ignore[misc]
                epoch.buckets,
                EXPIRY_OFFSET + 1,
                BUCKET_TTL_S,
                in_store_time=True,
            )
            for epoch in keys.epochs_in_use(cast(bytes | None, client.get(layout.meta_key(prefix))))
        ]
        if self.ranges:
            self.ranges.append(
                Range(
                    shared(prefix, "sweep:host"),
                    lambda bucket: names.bucket_key(prefix, bucket),
                    HOST_NAME_BUCKETS,
                    names.EXPIRY_AT,
                    2 * HOST_NAME_TTL_S,
                    in_store_time=False,
                )
            )

    def turn(self, client: Client) -> bool:
        """Sweep what is due, so many buckets of each range at most; whether there may be more.

        Raises redis.RedisError.
        """
        told = _CLOCK(client, [clock_key(self._prefix)], clock_arguments())
        more, now_s = False, store_time_ns(told) // SECOND_NS
        for each in self.ranges:
            first, count = _LEASE(client, [each.cursor], [each.buckets, str(self._pass_s), SWEEP_BUCKETS])
            found = [each.key(bucket % each.buckets) for bucket in range(first, first + count)]
            how = [each.expiry_at, each.life_s, SWEEP_FIELDS_MAX, now_s if each.in_store_time else 0]
            for answer in _SWEEP.of_each(client, found, how):
                self._count(answer)
            more |= count == SWEEP_BUCKETS
        return more

    def _count(self, answer: Any) -> None:
        """What became of one bucket."""
        if isinstance(answer, ResponseError):
            if isinstance(answer, (ReadOnlyError, NoPermissionError)) or "WRONGTYPE" not in str(answer):
                raise answer
            answer = (0, 0, 1)
        removed, renewed, strange = answer
        self.swept_buckets += 1
        self.swept_records += removed
        self.renewed_buckets += renewed
        self.strange_buckets += strange
