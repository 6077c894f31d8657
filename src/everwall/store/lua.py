"""Scripts for what is not in a hurry, called through clients of redis-py."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import redis
from redis.exceptions import NoScriptError, ResponseError

Client = redis.Redis | redis.RedisCluster
Word = bytes | str | int


class Script:
    """A file of ``scripts/``; all keys of one call lie in one slot."""

    def __init__(self, name: str) -> None:
        self.text = (resources.files("everwall.store") / "scripts" / f"{name}.lua").read_bytes()
        self._sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    def __call__(self, client: Client, keys: Sequence[bytes], arguments: Sequence[Word]) -> Any:
        """The answer; a server that does not know the script is taught it. Raises redis.RedisError."""
        try:
            return client.evalsha(self._sha, len(keys), *keys, *arguments)
        except NoScriptError:
            client.script_load(self.text)
            return client.evalsha(self._sha, len(keys), *keys, *arguments)

    def of_each(self, client: Client, keys: Sequence[bytes], arguments: Sequence[Word]) -> list[Any]:
        """The answers to one call for each key, where one server has them all in a single round trip.

        What a call was refused with is its answer; raises redis.RedisError for all else.
        """
        if isinstance(client, redis.RedisCluster):
            return [self._answer(client, key, arguments) for key in keys]
        answers: list[Any] = self._pipelined(client, keys, arguments)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            client.script_load(self.text)
            answers = self._pipelined(client, keys, arguments)
        return answers

    def _answer(self, client: Client, key: bytes, arguments: Sequence[Word]) -> Any:
        try:
            return self(client, [key], arguments)
        except ResponseError as error:
            return error

    def _pipelined(self, client: redis.Redis, keys: Sequence[bytes], arguments: Sequence[Word]) -> list[Any]:
        pipeline = client.pipeline(transaction=False)
        for key in keys:
            pipeline.evalsha(self._sha, 1, key, *arguments)
        return list(pipeline.execute(raise_on_error=False))
