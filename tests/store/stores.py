"""Rows to write and a store to write them to: the twin in memory, or a real server over TLS."""

from __future__ import annotations

import random

import numpy as np
import redis

from everwall.session import image, record
from everwall.store.memory import MemoryStore
from everwall.store.protocol import ErrorReply, Protocol, reply_bytes
from tests.redis_server import PASSWORD, RedisServer

KEYS = record.derive_keys(b"a cluster secret of 32 bytes ...")
NOW = 1_900_000_000
"""Store time of the tests, seconds; far enough ahead that no expiry of theirs is over."""

NODE_RIGHTS = (
    "+set +get +del +hget +hset +hdel +hlen +hkeys +hvals +hmget +hgetall +expire +ttl +evalsha +script|load "
    "+time +info +client|setname"
)
"""What an ACL user needs to be a node: docs/store.md says the same."""


def sessions(count: int, seed: int = 1, **columns: int):
    """``count`` different sessions of one owner; ``columns`` sets image columns by name."""
    dice = random.Random(seed)
    rows = np.zeros((count, image.COLUMNS), np.int64)
    for i in range(count):
        rows[i, image.TAG] = i
        rows[i, image.ENDPOINT] = 7
        rows[i, image.LOWER_LOW] = dice.randrange(2**32)
        rows[i, image.UPPER_LOW] = dice.randrange(2**32)
        rows[i, image.KEY2] = dice.randrange(2**32) | 6 << 32 | 4 << 40
    values = {
        "STATE": 3,
        "RULE": 77,
        "OWNER": 1,
        "START": NOW * 1000,
        "EXPIRY": NOW + 3720,
        "PACKETS": 5,
        **columns,
    }
    for name, value in values.items():
        rows[:, getattr(image, name)] = value
    return rows


def asking(rows, operation: int):
    """The same sessions with another operation; a look-up knows the flow only."""
    out = rows.copy()
    if operation == image.LOOKUP:
        known = [image.TAG, image.ENDPOINT, image.LOWER_LOW, image.UPPER_LOW, image.KEY2]
        out[:] = 0
        out[:, known] = rows[:, known]
    out[:, image.OP] = operation
    return out


class Memory:
    """Commands executed by the twin."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    def send(self, commands):
        return [self.store.execute(command, NOW) for command in commands]

    def ask(self, command, at=b""):
        """One command, as ``relayout`` sends it: errors are raised."""
        reply = self.store.execute(command, NOW)
        if isinstance(reply, ErrorReply):
            raise reply
        return reply

    def close(self) -> None:
        pass


class Real:
    """Commands sent to a real server, in one pipeline, with an ordinary client."""

    def __init__(self, server: RedisServer) -> None:
        self.client = redis.Redis(
            port=server.port, password=PASSWORD, ssl=True, ssl_ca_data=server.ca_pem.decode(), protocol=2
        )
        self.client.flushall()
        self.client.script_flush()

    def send(self, commands):
        connection = self.client.connection_pool.get_connection()
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            return [self._reply(connection) for _ in commands]
        finally:
            self.client.connection_pool.release(connection)

    def ask(self, command, at=b""):
        """One command, as ``relayout`` sends it: errors are raised."""
        (reply,) = self.send([command])
        if isinstance(reply, ErrorReply):
            raise reply
        return reply

    @staticmethod
    def _reply(connection):
        try:
            reply = connection.read_response()
        except redis.exceptions.NoScriptError as error:
            return ErrorReply(f"NOSCRIPT {error}")
        except redis.exceptions.ResponseError as error:
            return ErrorReply(str(error))
        return reply

    def close(self) -> None:
        self.client.close()


class Node:
    """One node's protocol against a store."""

    def __init__(
        self, store, keys=KEYS, buckets: int = 64, prefix: str = "test", apart: bool = False
    ) -> None:
        self.store = store
        self.protocol = Protocol(keys, prefix, buckets, clustered=apart)
        self.greeting = self.protocol.greet(store.send(self.protocol.greeting()))
        if apart:  # whoever has all connections has them move
            self.protocol.move(NOW)
        self.errors: list[ErrorReply] = []
        self.unwritten = 0
        self.commands: list[tuple[bytes, ...]] = []
        """Of the last request, repetitions included."""

    def ask(self, rows, operation: int | None = None, now_s: int = NOW):
        """The reply rows in the order of the requests' TAG, repeated requests settled."""
        rows = rows if operation is None else asking(rows, operation)
        answered = [rows[:0]]
        self.commands = []
        while len(rows):
            batch = self.protocol.encoded(rows, now_s)
            self.commands += batch.commands
            replies = b"".join(map(reply_bytes, self.store.send(batch.commands)))
            decoded = self.protocol.decode(batch, replies, now_s)
            answered.append(decoded.rows)
            self.errors += decoded.errors
            self.unwritten += len(decoded.unwritten)
            rows = decoded.again
        replies = np.concatenate(answered)
        return replies[np.argsort(replies[:, image.TAG], kind="stable")]

    def outcome(self, rows, operation: int | None = None, now_s: int = NOW) -> list[int]:
        """What became of each request."""
        return self.ask(rows, operation, now_s)[:, image.OP].tolist()
