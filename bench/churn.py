"""Whether the store's memory keeps to its size: ``python bench/churn.py [--quick] [--json FILE]``.

Half an hour of a busy cluster in a minute: a real redis-server with TLS and AUTH, the store's thread of a node, and
this script in the worker's place. Sessions are opened, refreshed and closed all the time, each lives for five minutes
on average, a few end without a word and leave orphans; after half of the time a node dies, its sessions are taken over
or orphaned. One node's sweeper goes round. All times are divided by the same number.

Fresh is what the server's memory has grown by after the sessions were written once. From then on it is divided, once a
simulated minute, by the sessions that can be restored: those open, and those of silent flows that have not expired.
What has expired and was not swept yet counts as memory and not as a session. Exit status 1: an open session was lost,
or one that had expired was not swept in time.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
PLACES = [str(ROOT / "src"), str(ROOT)]
sys.path[:0] = [place for place in PLACES if place not in sys.path]

from bench import store  # noqa: E402  (the path has to be set before)
from everwall.limits import SWEEP_PASS_S  # noqa: E402
from everwall.session import image, record  # noqa: E402
from everwall.store.clients import make_client  # noqa: E402
from everwall.store.lua import Client as PlainClient  # noqa: E402
from everwall.store.protocol import Protocol, buckets_for  # noqa: E402
from everwall.store.sweeping import Sweeper  # noqa: E402
from everwall.warm import FIREWALL, warm  # noqa: E402
from tests.redis_server import RedisServer  # noqa: E402

Numbers = npt.NDArray[np.int64]

MINUTES = 30
SHORT_S, LONG_S, SHORT_SHARE = 60.0, 900.0, 0.7
"""Mean lives of sessions, and how many of them are of the first kind."""
STORED_S = 720.0
"""From a write to the record's expiry: an idle time-out of ten minutes and the time of a failover."""
REFRESH_S = STORED_S / 3
ORPHANS = 0.03
"""Of the sessions that end, those that nobody deletes."""
SILENT = 0.1
"""Of a dead node's sessions, those that nobody takes over."""
BOUNDS = {"worst_growth": ("<=", 1.15)}
_OPEN, _ORPHAN, _CLOSED = 1, 2, 0
_OWNERS = 3


class TooSlow(RuntimeError):
    """This machine cannot keep up: sessions would expire that in life are refreshed in time."""


class Churn:
    """Sessions of a cluster by number, and what is done to them; times are real seconds."""

    def __init__(self, count: int, speed: float, seed: int) -> None:
        self._count, self._speed = count, speed
        self._dice = np.random.default_rng(seed)
        room = 64 * count
        self._state = np.zeros(room, np.int8)
        self._ends = np.zeros(room)
        self._written = np.zeros(room)
        self._expiry = np.zeros(room, np.int64)
        self._start_ms = np.zeros(room, np.int64)
        self._owner = np.zeros(room, np.int64)
        self._generation = np.zeros(room, np.int64)
        self._next = 0
        self._owed = 0.0
        self.operations = 0

    def opened(self, now: float, count: int) -> Numbers:
        """The numbers of new sessions."""
        number = np.arange(self._next, self._next + count)
        if self._next + count > len(self._state):
            raise RuntimeError("more sessions than there is room for")
        self._next += count
        short = self._dice.random(count) < SHORT_SHARE
        lives = self._dice.exponential(np.where(short, SHORT_S, LONG_S)) / self._speed
        self._state[number], self._ends[number] = _OPEN, now + lives
        self._start_ms[number], self._owner[number] = int(now * 1000), 1 + number % _OWNERS
        return number

    def forget(self, number: Numbers) -> None:
        """They were deleted."""
        self._state[number] = _CLOSED

    def write(self, client: store.Client, number: Numbers, operation: int, now: float) -> None:
        """Send one request for each."""
        if operation != image.DELETE:
            self._expiry[number] = int(now) + 1 + math.ceil(STORED_S / self._speed)
            self._written[number] = now
        rows = self._rows(number, operation)
        client.write(rows)
        self.operations += len(rows)

    def _rows(self, number: Numbers, operation: int) -> store.Rows:
        rows = store.numbered_sessions(4, number, 0, self._owner[number])
        rows[:, image.OP], rows[:, image.START] = operation, self._start_ms[number]
        rows[:, image.GENERATION], rows[:, image.EXPIRY] = self._generation[number], self._expiry[number]
        return rows

    def step(self, client: store.Client, now: float, passed_s: float) -> None:
        """What happens in ``passed_s``: some are opened, some refreshed, some end."""
        mean_s = (SHORT_SHARE * SHORT_S + (1 - SHORT_SHARE) * LONG_S) / self._speed
        self._owed += passed_s * self._count / mean_s
        opened = int(self._owed)
        self._owed -= opened
        self.write(client, self.opened(now, opened), image.WRITE_FIRST, now)
        is_open = np.flatnonzero(self._state[: self._next] == _OPEN)
        over = is_open[self._ends[is_open] <= now]
        orphaned = self._dice.random(len(over)) < ORPHANS
        self._state[over[orphaned]] = _ORPHAN
        self.write(client, over[~orphaned], image.DELETE, now)
        self._state[over[~orphaned]] = _CLOSED
        is_open = is_open[self._ends[is_open] > now]
        self.write(client, is_open[now - self._written[is_open] >= REFRESH_S / self._speed], image.WRITE, now)

    def node_dies(self, client: store.Client, now: float) -> None:
        """Owner 1's sessions are another's from now on, or orphans."""
        lost = np.flatnonzero((self._state[: self._next] == _OPEN) & (self._owner[: self._next] == 1))
        silent = self._dice.random(len(lost)) < SILENT
        self._state[lost[silent]] = _ORPHAN
        taken = lost[~silent]
        self._owner[taken], self._generation[taken] = 2, self._generation[taken] + 1
        self.write(client, taken, image.WRITE, now)

    def open_rows(self) -> store.Rows:
        """Look-ups of all that are open."""
        rows = self._rows(np.flatnonzero(self._state[: self._next] == _OPEN), image.LOOKUP)
        rows[:, image.TAG] = np.arange(len(rows))
        return rows

    def restorable(self, now: float) -> int:
        """Open ones, and orphans until they expire."""
        state, expiry = self._state[: self._next], self._expiry[: self._next]
        return int((state == _OPEN).sum() + ((state == _ORPHAN) & (expiry > now)).sum())


def memory(client: PlainClient) -> int:
    """Bytes of the server's memory but for what it keeps for clients."""
    facts = client.info("memory")
    return int(facts["used_memory"]) - int(facts["mem_clients_normal"])


def records(client: PlainClient) -> int:
    """Fields of all buckets."""
    keys = list(client.scan_iter(match="{*:0:*}", count=1000))
    return sum(client.hlen(key) for key in keys)


def missing(client: PlainClient, protocol: Protocol, rows: store.Rows) -> int:
    """How many of these sessions are not there, asked without a deadline."""
    lost = 0
    for first in range(0, len(rows), 512):
        pipeline = client.pipeline(transaction=False)
        for command in protocol.encoded(rows[first : first + 512], 0).commands:
            pipeline.execute_command(*command)
        lost += sum(reply is None for reply in pipeline.execute())
    return lost


def run(server: RedisServer, count: int, seconds: float, seed: int) -> dict[str, Any]:
    """MINUTES of ``count`` sessions in so many seconds.

    Raises RuntimeError when something was lost or left, TooSlow when this machine is.
    """
    speed = 60 * MINUTES / seconds
    # What is due just after a step began is written at the end of the next one.
    slip_s = (math.ceil(STORED_S / speed) - REFRESH_S / speed) / 2
    config = store.store_config(server)
    plain, churn = make_client(config), Churn(count, speed, seed)
    sweeper = Sweeper(config.prefix, SWEEP_PASS_S / speed)
    growth = list[float]()
    with store.Client(server, buckets_for(count)) as client:
        began = time.time()
        # Connections, scripts and cursors take their room, and go on having it.
        first = churn.opened(began, 1)
        for operation in (image.WRITE_FIRST, image.WRITE, image.DELETE):
            churn.write(client, first, operation, began)
        churn.forget(first)
        sweeper.learn(plain)
        sweeper.turn(plain)
        empty = memory(plain)
        churn.write(client, churn.opened(began, count), image.WRITE_FIRST, began)
        fresh = (memory(plain) - empty) / count
        if time.time() - began > slip_s:
            raise TooSlow(f"writing them took {time.time() - began:.1f} s")
        before = began
        told, died = began, False
        while before < began + seconds:
            now = time.time()
            if now - before > slip_s:
                raise TooSlow(
                    f"nothing was done for {now - before:.1f} s, at most {slip_s:.1f} are allowed for"
                )
            churn.step(client, now, now - before)
            before = now
            if not died and now - began > seconds / 2:
                churn.node_dies(client, now)
                died = True
            while sweeper.turn(plain):
                pass
            if now - told >= 60 / speed:
                told = now
                growth.append((memory(plain) - empty) / churn.restorable(time.time()) / fresh)
            time.sleep(max(0.0, 0.05 - (time.time() - now)))
        lookups = churn.open_rows()
        lost = missing(
            plain, Protocol(record.derive_keys(store.SECRET), config.prefix, buckets_for(count)), lookups
        )
        unattended = time.time() - before
        there, used, restorable = records(plain), memory(plain) - empty, churn.restorable(time.time())
    if lost and unattended > slip_s:
        raise TooSlow(f"looking for them took {unattended:.1f} s, at most {slip_s:.1f} are allowed for")
    if lost:
        raise RuntimeError(f"{lost} of {len(lookups)} open sessions are not there")
    # Whatever has expired by now must be gone once every bucket was passed.
    now = time.time()
    while sweeper.turn(plain) or time.time() < now + SWEEP_PASS_S / speed + 0.5:
        time.sleep(0.005)
    left, may_be = records(plain), churn.restorable(now)
    facts = plain.info("memory")
    plain.close()
    if left > may_be:
        raise RuntimeError(f"{left} records are left of {may_be} sessions that were restorable")
    return {
        "sessions": count,
        "seed": seed,
        "simulated_minutes": MINUTES,
        "speed": speed,
        "operations": churn.operations,
        "swept_records": sweeper.swept_records,
        "open_at_the_end": len(lookups),
        "bytes_per_session_fresh": fresh,
        "worst_growth": max(growth),
        "last_growth": growth[-1],
        "last_growth_of_a_record": used / there / fresh,
        "last_dead_percent": 100 * (there / restorable - 1),
        "fragmentation": float(facts["mem_fragmentation_ratio"]),
        "details": {"growth": growth},
    }


def measure(seconds: float) -> dict[str, float]:
    """For ``python -m bench``: twenty thousand sessions, in ten times the seconds."""
    with store.apart() as server:
        found = run(server, 20_000, 10 * seconds, 1)
    return {
        "memory for a session, greatest, of fresh %": 100 * found["worst_growth"],
        "memory for a record, at last, of fresh %": 100 * found["last_growth_of_a_record"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/churn.py", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="50 thousand sessions in 40 s")
    parser.add_argument("--sessions", type=int, help="by default 50 thousand, without --quick 150 thousand")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    count = options.sessions or (50_000 if options.quick else 150_000)

    def measured() -> dict[str, Any]:
        warm(print, modules=FIREWALL)
        with store.apart() as server:
            return run(server, count, 40.0 if options.quick else 90.0, options.seed)

    return store.report(measured, BOUNDS, options.json)


if __name__ == "__main__":
    sys.exit(main())
