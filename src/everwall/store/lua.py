"""Scripts for what is not in a hurry, called through clients of redis-py."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import redis
from redis.exceptions import NoScriptError

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
