"""Host names interned: sessions carry 32 bits, the name stands once in the store.

A name's id is a keyed digest of it, so that all nodes come to the same one without asking each other; where another
name has it already, which among 20 thousand happens once in twenty clusters, the next of its ids is taken. Names stand
in ``HOST_NAME_BUCKETS`` hashes, ``{prefix:host:bucket}``; the bucket is the id modulo their number, in hexadecimal.

* field: the id, four bytes; pieces of a long name have a byte more, 1 and so on;
* value: expiry in seconds of store time, four bytes, big-endian; then, over all pieces, the seal and the name.

No value is longer than 64 bytes, so the hashes stay compact. The seal binds a name to its id, not to its expiry: the
server says when that is, and whoever can write there can keep a name, but not make one.

Calls wait for the server, STORE_TIMEOUT_S at most, and after a failure not at all for a while: nothing for a worker.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import redis

from everwall.limits import (
    BUCKET_TTL_S,
    HOST_NAME_BUCKETS,
    HOST_NAME_BYTES_MAX,
    HOST_NAME_PLACES,
    HOST_NAME_TTL_S,
    HOST_NAMES_CACHED,
    STORE_RECONNECT_MAX_S,
)
from everwall.store.lua import Client, Script
from everwall.store.sealing import TAG_BYTES, Seal

EXPIRY_AT = 1
"""Where a value's expiry stands, counted from 1 as in the scripts."""
_EXPIRY_BYTES = 4
_PIECE_BYTES = 64 - _EXPIRY_BYTES
PIECES_MAX = -(-(TAG_BYTES + HOST_NAME_BYTES_MAX) // _PIECE_BYTES)
_INTERN = Script("intern")
_Answer = TypeVar("_Answer")


def bucket_key(prefix: str, bucket: int) -> bytes:
    """The key of a hash of host names."""
    return b"{%b:host:%x}" % (prefix.encode(), bucket)


class HostNames:
    """Names and ids as one node knows them; may be used from several threads."""

    def __init__(
        self, client: Client, secrets: Sequence[bytes], prefix: str, now_s: Callable[[], float]
    ) -> None:
        """``secrets``: the first seals, each opens. ``now_s``: a clock that is never set."""
        self._client, self._prefix, self._now_s = client, prefix, now_s
        self._seal = Seal(secrets, b"everwall host")
        self._lock = threading.Lock()
        self._known: OrderedDict[int, str] = OrderedDict()
        """Names by id, the one that was used last at the end."""
        self._ids: dict[str, int] = {}
        self._renew_at: dict[int, float] = {}
        self._asks_again_at = float("-inf")
        self.counts = {"interned": 0, "renewed": 0, "resolved": 0, "missing": 0, "refused": 0, "failed": 0}
        """``refused``: sealed by nobody with the secret."""

    def __len__(self) -> int:
        """Names that are known here without asking."""
        return len(self._known)

    def intern(self, name: str) -> int:
        """The id of a name, the store holding it from now on; 0, which is none, where that cannot be."""
        text = name.encode(errors="surrogatepass")
        if not 1 <= len(text) <= HOST_NAME_BYTES_MAX:
            return 0
        with self._lock:
            number = self._ids.get(name, 0)
            if number:
                self._known.move_to_end(number)
            if number and self._now_s() < self._renew_at.get(number, 0.0):
                return number
        number = self._ask(self._put, text) or number
        if number:
            self._remember(number, name, HOST_NAME_TTL_S - BUCKET_TTL_S)
        return number

    def resolve(self, number: int) -> str | None:
        """The name of an id; None when the store does not know it, cannot be asked, or holds a forged one."""
        with self._lock:
            if number in self._known:
                self._known.move_to_end(number)
                return self._known[number]
        name = self._ask(self._get, number) if number else None
        if name is not None:
            self._remember(number, name, 0)
        return name

    def keep(self, numbers: Iterable[int]) -> None:
        """Let the names of ids that live sessions have live on; cheap for those renewed within two hours."""
        for number in numbers:
            name = self.resolve(number)
            if name is not None and self._now_s() >= self._renew_at.get(number, 0.0):
                text = name.encode(errors="surrogatepass")
                if self._ask(self._renew, number, text):
                    self._remember(number, name, HOST_NAME_TTL_S - BUCKET_TTL_S)

    def offer_again(self) -> None:
        """The store may have come back empty: ``intern`` and ``keep`` write every name once more."""
        with self._lock:
            self._renew_at.clear()

    # The store -----------------------------------------------------------------------------------------

    def _ask(self, question: Callable[..., _Answer], *words: Any) -> _Answer | None:
        """None when the store does not answer, and at once while it has just not answered."""
        if self._now_s() < self._asks_again_at:
            return None
        try:
            return question(*words)
        except (redis.RedisError, OSError):
            self.counts["failed"] += 1
            self._asks_again_at = self._now_s() + STORE_RECONNECT_MAX_S
            return None

    def _put(self, text: bytes) -> int:
        for place in range(HOST_NAME_PLACES):
            number = int.from_bytes(self._seal.digest(4, b"%d" % place, text), "big") or 1
            if self._write(number, text):
                self.counts["interned"] += 1
                return number
        return 0

    def _renew(self, number: int, text: bytes) -> bool:
        written = self._write(number, text)
        self.counts["renewed"] += written
        return written

    def _write(self, number: int, text: bytes) -> bool:
        """Whether the name stands there now; not where another one does, unless that is forged."""
        stored = self._seal.close(_field(number), text)
        standing = self._script(number, stored, force=False)
        if isinstance(standing, int):
            return True
        if self._seal.open(_field(number), standing) is not None:
            return False
        self.counts["refused"] += 1
        return self._script(number, stored, force=True) == 1

    def _script(self, number: int, stored: bytes, force: bool) -> int | bytes:
        pieces = [stored[at : at + _PIECE_BYTES] for at in range(0, len(stored), _PIECE_BYTES)]
        key = bucket_key(self._prefix, number % HOST_NAME_BUCKETS)
        answer = _INTERN(
            self._client, [key], [_field(number), PIECES_MAX, HOST_NAME_TTL_S, int(force), *pieces]
        )
        return cast(int | bytes, answer)

    def _get(self, number: int) -> str | None:
        field = _field(number)
        fields = [field, *(field + bytes([piece]) for piece in range(1, PIECES_MAX))]
        key = bucket_key(self._prefix, number % HOST_NAME_BUCKETS)
        pieces = cast(list[bytes | None], self._client.hmget(key, fields))
        if pieces[0] is None:
            self.counts["missing"] += 1
            return None
        text = self._seal.open(field, b"".join(piece[_EXPIRY_BYTES:] for piece in pieces if piece))
        if text is None:
            self.counts["refused"] += 1
            return None
        self.counts["resolved"] += 1
        return text.decode(errors="surrogatepass")

    def _remember(self, number: int, name: str, for_s: float) -> None:
        with self._lock:
            self._known[number], self._ids[name] = name, number
            self._known.move_to_end(number)
            self._renew_at[number] = self._now_s() + for_s
            while len(self._known) > HOST_NAMES_CACHED:
                oldest, forgotten = self._known.popitem(last=False)
                self._renew_at.pop(oldest, None)
                if self._ids.get(forgotten) == oldest:
                    del self._ids[forgotten]


def _field(number: int) -> bytes:
    return number.to_bytes(4, "big")
