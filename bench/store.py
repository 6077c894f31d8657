"""What the session store costs: ``python bench/store.py [--quick] [--json FILE]``.

A real redis-server with TLS and AUTH on one processor, the store's thread of one node on the other one; this script
plays the worker and shares the thread's processor. A million IPv4 sessions, then a million IPv6 sessions, each
through the product's own protocol: 20 thousand host names are interned; half of the sessions are written first, the
other half together with refreshes of the first one; all are refreshed twice by compared writes; nodes say who they are;
what the server's memory has grown by, with every key there is, is divided by the sessions. Then all buckets are swept
once, all sessions are looked up, and what comes back is compared with what was written. Exit status 1: something was
lost, refused, swept away or came back altered, so that nothing here counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
PLACES = [str(ROOT / "src"), str(ROOT)]
sys.path[:0] = [place for place in PLACES if place not in sys.path]

from bench import bounds  # noqa: E402  (the path has to be set before)
from everwall.limits import STORE_BATCH_RECORDS, SWEEP_PASS_S  # noqa: E402
from everwall.rings import make_ring, ring_pop, ring_push  # noqa: E402
from everwall.session import image, record, tcp  # noqa: E402
from everwall.store.clients import make_client  # noqa: E402
from everwall.store.connection import StoreConfig, tls_context  # noqa: E402
from everwall.store.link import connect  # noqa: E402
from everwall.store.members import Member, Members  # noqa: E402
from everwall.store.names import HostNames  # noqa: E402
from everwall.store.protocol import Command, buckets_for  # noqa: E402
from everwall.store.redis import RedisStore, make_clock  # noqa: E402
from everwall.store.sweeping import Sweeper  # noqa: E402
from everwall.warm import FIREWALL, warm  # noqa: E402
from tests.redis_server import PASSWORD, RedisServer  # noqa: E402

Rows = npt.NDArray[np.int64]

SESSIONS = 1_000_000
CYCLES = 2
"""Times that each session is refreshed before the memory is read."""
SESSIONS_PER_NAME = 50
"""A million sessions go to 20 thousand hosts."""
NODES = 10
"""That tell their policies to each other."""
SECRET = b"k" * 32
AHEAD = 4096
"""Look-ups under way at once, as many as may be."""
BOUNDS = {
    "bytes_per_session_ipv4": ("<=", 80),
    "bytes_per_session_ipv6": ("<=", 80),
    "writes_per_s": (">=", 150_000),
    "restores_per_s": (">=", 200_000),
}
"""What the project holds its figures against."""
_SAMPLE = 8
"""Of the sessions looked up every eighth is compared in all its columns."""
_RAW_HSETS = 200_000
_PATIENCE_S = 30.0
_TRAVELLING = list(range(image.ENDPOINT, image.CONFIRM))
"""The columns that a record brings back, or that name it."""


# Sessions ------------------------------------------------------------------------------------------------


def sessions_of(family: int, count: int, now_ms: int, owner: int = 1) -> Rows:
    """Request rows of ``count`` established TCP sessions, IPv4 (4) or IPv6 (6); TAG is the number."""
    return numbered_sessions(family, np.arange(count, dtype=np.int64), now_ms, owner)


def numbered_sessions(family: int, number: Rows, now_ms: int | Rows, owner: int | Rows) -> Rows:
    """The same of these numbers only."""
    rows = np.zeros((len(number), image.COLUMNS), np.int64)
    rows[:, image.TAG] = number
    rows[:, image.ENDPOINT] = 0xAA
    if family == 4:
        rows[:, image.LOWER_LOW] = 0x0A000000 + (number >> 4)
        rows[:, image.UPPER_LOW] = 0xC6120000 | number & 0xFF
    else:
        rows[:, image.LOWER_HIGH] = rows[:, image.UPPER_HIGH] = 0x20010DB8_00000000
        rows[:, image.LOWER_LOW] = 1 + (number >> 4)
        rows[:, image.UPPER_LOW] = 1 << 40 | number & 0xFF
    rows[:, image.KEY2] = 20_000 + (number & 15) | 443 << 16 | 6 << 32 | family << 40
    rows[:, image.STATE] = tcp.TCP_ESTABLISHED
    rows[:, image.FLAGS] = image.REPLIED
    rows[:, image.SCALES] = 0x77
    rows[:, image.OWNER] = owner
    rows[:, image.START] = now_ms + (number & 1023)
    rows[:, image.EXPIRY] = now_ms // 1000 + 3720
    rows[:, image.PACKETS], rows[:, image.BYTES] = 3, 180
    return rows


def go_on(rows: Rows) -> None:
    """What a session has become by its next refresh."""
    rows[:, image.PACKETS] += 40
    rows[:, image.BYTES] += 40_000
    rows[:, image.EXPIRY] += 60


def half_and_half(first: Rows, refreshed: Rows) -> Rows:
    """First writes and refreshes in turn."""
    mixed = np.empty((2 * len(first), image.COLUMNS), np.int64)
    mixed[0::2], mixed[1::2] = first, refreshed
    mixed[0::2, image.OP], mixed[1::2, image.OP] = image.WRITE_FIRST, image.WRITE
    return mixed


def altered(found: Rows, written: Rows) -> int:
    """How many of the rows that were found differ from what was written under their TAG."""
    return int((found[:, _TRAVELLING] != written[found[:, image.TAG]][:, _TRAVELLING]).any(axis=1).sum())


def host_names(count: int) -> list[str]:
    """Different names as clients ask for them: 23 characters on average, one in twenty-five longer than 52."""
    dice, names = random.Random(count), set[str]()
    while len(names) < count:
        own = "".join(dice.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(dice.randrange(4, 15)))
        if dice.random() < 0.05:
            names.add(f"internal-{own}-{dice.randrange(10**9)}.eu-west-1.elb.amazonaws.com")
        else:
            first = dice.choice(["api", "www", "cdn", "login", "static", "eu-west-1", "assets", "mail"])
            number = dice.randrange(100) if dice.random() < 0.3 else ""
            names.add(f"{first}{number}.{own}.{dice.choice(['com', 'net', 'io', 'co.uk', 'example.org'])}")
    return sorted(names)


# A store and who uses it --------------------------------------------------------------------------------


class Client:
    """The store's thread of a node, and this script in the worker's place."""

    def __init__(self, server: RedisServer, buckets: int | None = None) -> None:
        self._requests, self._replies = make_ring(1 << 15, image.COLUMNS), make_ring(1 << 13, image.COLUMNS)
        self._wake_store, self._wake_worker = os.eventfd(0), os.eventfd(0)
        keys = record.derive_keys(SECRET)
        self._store = RedisStore(
            store_config(server),
            keys,
            self._requests,
            self._replies,
            self._wake_store,
            self._wake_worker,
            make_clock(),
            buckets,
        )
        self._out = np.zeros((AHEAD, image.COLUMNS), np.int64)

    def __enter__(self) -> Client:
        self._store.start()
        _until(lambda: self.status()["connected"], self.status)
        return self

    def __exit__(self, *_: object) -> None:
        self._store.stop(_PATIENCE_S)
        os.close(self._wake_store)
        os.close(self._wake_worker)

    def status(self) -> dict[str, Any]:
        """What the store's thread says of itself."""
        return self._store.status()

    def write(self, rows: Rows) -> float:
        """Seconds until the server has acknowledged all of the rows, which are pushed as fast as the thread takes them.

        Raises RuntimeError when one was not written.
        """
        before = self.status()
        began, sent = time.perf_counter(), 0
        while sent < len(rows):
            some = rows[sent : sent + STORE_BATCH_RECORDS]
            pushed = ring_push(self._requests, some, len(some))
            sent += pushed
            os.eventfd_write(self._wake_store, 1)
            if pushed < len(some):
                time.sleep(0.001)
        _until(lambda: self.status()["written"] - before["written"] >= len(rows), self.status)
        took, after = time.perf_counter() - began, self.status()
        for what in ("lost", "dropped", "unwritten", "errors"):
            if after[what] != before[what]:
                raise RuntimeError(f"{after[what] - before[what]} writes {what}: {after}")
        return took

    def ask(
        self, rows: Rows, expected: int, ahead: int = AHEAD, seconds: float = 1e9
    ) -> tuple[float, int, int]:
        """Push rows, ``ahead`` of them under way, until all are answered or time is up.

        Returns seconds, answers, and how many of a sample of found rows were altered. Raises RuntimeError for another
        answer than ``expected``.
        """
        began, sent, answered, wrong = time.perf_counter(), 0, 0, 0
        while answered < sent or sent == 0 or self._goes_on(sent, rows, began, seconds):
            room = min(ahead - (sent - answered), len(rows) - sent)
            if room and self._goes_on(sent, rows, began, seconds):
                sent += ring_push(self._requests, rows[sent : sent + room], room)
                os.eventfd_write(self._wake_store, 1)
            if not select.select([self._wake_worker], [], [], _PATIENCE_S)[0]:
                raise RuntimeError(f"{sent - answered} requests are not answered: {self.status()}")
            os.eventfd_read(self._wake_worker)
            count = ring_pop(self._replies, self._out)
            if (self._out[:count, image.OP] != expected).any():
                raise RuntimeError(f"answers that were not expected: {self.status()}")
            if expected == image.FOUND:
                wrong += altered(self._out[:count:_SAMPLE], rows)
            answered += count
        return time.perf_counter() - began, answered, wrong

    @staticmethod
    def _goes_on(sent: int, rows: Rows, began: float, seconds: float) -> bool:
        return sent < len(rows) and time.perf_counter() - began < seconds


def store_config(server: RedisServer) -> StoreConfig:
    """How a test's server is reached."""
    return StoreConfig("127.0.0.1", server.port, password=PASSWORD, ca_pem=server.ca_pem)


def _until(is_so: Any, told: Any) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited for {_PATIENCE_S:g} s in vain: {told()}")
        time.sleep(0.001)


def told_by(server: RedisServer, *commands: Command) -> list[Any]:
    """The server's answers over a connection of their own."""
    config = store_config(server)
    arrival = connect(config, tls_context(config), list(commands))
    arrival.link.close()
    return arrival.replies


def used_memory(server: RedisServer) -> int:
    """Bytes, as the server counts them."""
    (info,) = told_by(server, (b"INFO", b"memory"))
    facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    return int(facts["used_memory"])


def raw_hsets(server: RedisServer, buckets: int) -> float:
    """Calibration: HSET commands per second, encoded before, of the sizes of a record, one pipeline after another."""
    names = np.random.default_rng(1).bytes(8 * STORE_BATCH_RECORDS)
    pipeline: list[Command] = [
        (b"HSET", b"raw:%d" % (k * 97 % buckets), names[8 * k : 8 * k + 8], b"v" * record.RECORD_BYTES)
        for k in range(STORE_BATCH_RECORDS)
    ]
    data = memoryview(
        b"".join(b"*4\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in c) for c in pipeline)
    )
    config = store_config(server)
    link = connect(config, tls_context(config), [(b"PING",)]).link
    waiting, rounds = select.poll(), _RAW_HSETS // STORE_BATCH_RECORDS
    waiting.register(link, select.POLLIN)
    began = time.perf_counter()
    for _ in range(rounds):
        link.send(data)
        got = 0
        while got < 4 * STORE_BATCH_RECORDS:  # each answer is ":0\r\n" or ":1\r\n"
            if link.wants_to_send:
                link.flush()
            elif not link.receive():
                waiting.poll(1000)
            got += link.end - link.start
            link.start = link.end = 0
    rate = rounds * STORE_BATCH_RECORDS / (time.perf_counter() - began)
    link.close()
    return rate


# Measuring ------------------------------------------------------------------------------------------------


@contextmanager
def apart() -> Iterator[RedisServer]:
    """A server that has the first processor, and this process on the second one (with one processor, both on that)."""
    own = os.sched_getaffinity(0)
    cores = sorted(own)
    server = RedisServer().start()
    try:
        for thread in os.listdir(f"/proc/{server.pid}/task"):
            os.sched_setaffinity(int(thread), {cores[0]})
        os.sched_setaffinity(0, {cores[-1]})
        yield server
    finally:
        os.sched_setaffinity(0, own)
        server.close()


def _family(server: RedisServer, family: int, count: int, empty: int) -> dict[str, Any]:
    """One family's million, from an empty server to all of it restored."""
    rows = sessions_of(family, count, time.time_ns() // 1_000_000)
    half = count // 2
    interned = intern(server, host_names(max(1, count // SESSIONS_PER_NAME)))
    rows[:, image.HOST] = np.array(interned["ids"])[rows[:, image.TAG] % len(interned["ids"])]
    with Client(server, buckets_for(count)) as client:
        rows[:, image.OP] = image.WRITE_FIRST
        client.write(rows[:half])
        go_on(rows[:half])
        mixed = client.write(half_and_half(rows[half : 2 * half], rows[:half]))
        rows[:, image.OP] = image.WRITE
        refreshing = 0.0
        for _ in range(CYCLES):
            go_on(rows)
            refreshing += client.write(rows)
    tell_each_other(server)
    sweep(server, owed=False)  # the cursors are keys, too
    grown = used_memory(server) - empty
    swept = sweep(server, owed=True)
    with Client(server, buckets_for(count)) as client:
        rows[:, image.OP] = image.LOOKUP
        restoring, answered, wrong = client.ask(rows, image.FOUND)
        status = client.status()
    if wrong or answered != count:
        raise RuntimeError(f"of {answered} sessions {wrong} of a sample came back altered")
    return {
        "bytes_per_session": grown / count,
        "bytes_per_host_name": interned["bytes"],
        "us_per_host_name": interned["us"],
        **swept,
        "writes_per_s": 2 * half / mixed,
        "refreshes_per_s": CYCLES * count / refreshing,
        "restores_per_s": count / restoring,
        "server": status["server"],
        "tls": status["tls"],
        "auth": status["auth"],
    }


def intern(server: RedisServer, names: list[str]) -> dict[str, Any]:
    """Their ids, bytes of the server's memory and microseconds for each."""
    client = make_client(store_config(server))
    before, began = used_memory(server), time.perf_counter()
    known = HostNames(client, [SECRET], store_config(server).prefix, time.monotonic)
    ids = []
    for name in names:
        _until(lambda name=name: known.intern(name), lambda: known.counts)
        ids.append(known.intern(name))  # it is known now
    took = time.perf_counter() - began
    client.close()
    if not all(ids) or len(set(ids)) != len(names):
        raise RuntimeError(f"not every name has an id of its own: {known.counts}")
    return {
        "ids": ids,
        "bytes": (used_memory(server) - before) / len(names),
        "us": 1e6 * took / len(names),
    }


def tell_each_other(server: RedisServer) -> None:
    """Every node's entry among the nodes."""
    client = make_client(store_config(server))
    for number in range(NODES):
        members = Members([SECRET], store_config(server).prefix, number)
        members.meet(client, Member(f"firewall-{number}", "/etc/everwall/policy.yaml", "0" * 16, "0.1.0"))
    client.close()


def sweep(server: RedisServer, owed: bool) -> dict[str, float]:
    """The first turn of a node; ``owed``: then all buckets at once, and what that costs the server.

    ``sweep_core_percent`` is the share of a processor that this takes in the time in which it is due. Raises
    RuntimeError when anything was removed, as all sessions live.
    """
    client, sweeper = make_client(store_config(server)), Sweeper(store_config(server).prefix)
    sweeper.learn(client)
    sweeper.turn(client)
    cost = 0.0
    if owed:
        for each in sweeper.ranges:
            client.decrby(each.cursor, each.buckets)
        began, before = cpu_seconds(server), sweeper.swept_buckets
        while sweeper.turn(client):
            pass
        cost = cpu_seconds(server) - began
        swept = sweeper.swept_buckets - before
    client.close()
    if sweeper.swept_records or sweeper.strange_buckets:
        raise RuntimeError(f"{sweeper.swept_records} sessions were swept away")
    if not owed:
        return {}
    return {
        "sweep_server_us_per_bucket": 1e6 * cost / swept,
        "sweep_core_percent": 100 * cost / SWEEP_PASS_S,
    }


def cpu_seconds(server: RedisServer) -> float:
    """Of a processor that the server has used, in the system too."""
    (info,) = told_by(server, (b"INFO", b"cpu"))
    facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    return float(facts["used_cpu_user"]) + float(facts["used_cpu_sys"])


def run(count: int) -> dict[str, Any]:
    """Everything. The rates are the lower ones of the two families."""
    warm(print, modules=FIREWALL)
    with apart() as server:
        raw = raw_hsets(server, buckets_for(count))
        told_by(server, (b"FLUSHALL", b"SYNC"))
        empty, found = used_memory(server), {}
        for family in (4, 6):
            found[family] = _family(server, family, count, empty)
            print(f"IPv{family}: {found[family]}", flush=True)
            told_by(server, (b"FLUSHALL", b"SYNC"))
    rates = ("writes_per_s", "refreshes_per_s", "restores_per_s")
    sweeping = ("sweep_server_us_per_bucket", "sweep_core_percent")
    return {
        "server": found[4]["server"],
        "tls": found[4]["tls"],
        "auth": found[4]["auth"],
        "sessions": count,
        "buckets": buckets_for(count),
        "host_names": max(1, count // SESSIONS_PER_NAME),
        "bytes_per_session_ipv4": found[4]["bytes_per_session"],
        "bytes_per_session_ipv6": found[6]["bytes_per_session"],
        "bytes_per_host_name": found[4]["bytes_per_host_name"],
        **{rate: min(found[4][rate], found[6][rate]) for rate in rates},
        **{cost: max(found[4][cost], found[6][cost]) for cost in sweeping},
        "raw_hsets_per_s": raw,
        "details": {f"ipv{family}": each for family, each in found.items()},
    }


def measure(seconds: float) -> dict[str, float]:
    """For ``python -m bench``: twenty thousand sessions, requests per second, and microseconds of one look-up alone."""
    with apart() as server, Client(server) as client:
        rows = sessions_of(4, 20_000, time.time_ns() // 1_000_000)
        rows[:, image.OP] = image.WRITE_FIRST
        client.write(rows)
        rates = {}
        for name, operation in (
            ("first writes per s", image.WRITE_FIRST),
            ("compared writes per s", image.WRITE),
        ):
            rows[:, image.OP] = operation
            rates[name] = _repeated(lambda: (client.write(rows), len(rows)), seconds / 3)
        rows[:, image.OP] = image.LOOKUP
        rates["look-ups per s"] = _repeated(lambda: client.ask(rows, image.FOUND)[:2], seconds / 3)
        took, answered, _ = client.ask(rows, image.FOUND, ahead=1, seconds=seconds / 3)
        return {**rates, "us per look-up, one at a time": 1e6 * took / answered}


def _repeated(once: Any, seconds: float) -> float:
    """Requests per second of ``once``, which returns seconds and requests, again and again."""
    took = requests = 0.0
    while took < seconds or not requests:
        more, done = once()
        took, requests = took + more, requests + done
    return requests / took


# The script -----------------------------------------------------------------------------------------------


def report(measured: Callable[[], Mapping[str, Any]], promised: bounds.Bounds, json_file: Path | None) -> int:
    """Measure, print the figures and the bounds, and write them where they are wanted; returns the exit status.

    It is 1 when nothing counts, which ``measured`` says by a RuntimeError.
    """
    began = time.monotonic()
    try:
        found = measured()
    except RuntimeError as error:
        print(f"NOTHING HERE COUNTS: {error}")
        return 1
    command = shlex.join(["python", *sys.argv])
    held = bounds.held_against(promised, found)
    result = {
        "command": command,
        "seconds": round(time.monotonic() - began, 1),
        **found,
        "bounds": held,
        "machine": bounds.machine(),
    }
    for name, value in found.items():
        if name != "details":
            print(f"{name:28}{value:>16,.3f}" if isinstance(value, float) else f"{name:28}{value!s:>16}")
    bounds.show(held)
    print(f"\n{command}: {result['seconds']} s")
    if json_file:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/store.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="a million sessions of each family, within 150 s"
    )
    parser.add_argument(
        "--sessions", type=int, help="of each family; by default a million, without --quick two"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    sessions = options.sessions or (SESSIONS if options.quick else 2 * SESSIONS)
    return report(lambda: run(sessions), BOUNDS, options.json)


if __name__ == "__main__":
    sys.exit(main())
