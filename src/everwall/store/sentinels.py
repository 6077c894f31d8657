"""Who is the primary, as Sentinels say: all of them are asked, and whoever knows of the latest failover is believed.

Every failover raises the epoch of the Sentinels' configuration. One that was cut off from the others still names the
former primary, and so does an old primary's name; of two answers the one of the higher epoch is later. Connections
are kept, so that asking again and again costs a round trip. These block: for helper threads.
"""

from __future__ import annotations

import ssl
import threading
from typing import Any, NamedTuple, cast

import redis
from redis.exceptions import AuthenticationError
from redis.sentinel import MasterNotFoundError, Sentinel

from everwall.store.connection import (
    Address,
    Connection,
    Login,
    StoreConfig,
    login_of,
    options,
    require_private,
)


class Named(NamedTuple):
    """The primary of a service, and the failover that made it one."""

    primary: Address
    epoch: int


class Sentinels:
    """Those of a configuration; of several threads that ask one waits for the other."""

    def __init__(
        self, config: StoreConfig, context: ssl.SSLContext | None = None, login: Login | None = None
    ) -> None:
        self._config, self._context, self._login = config, context, login or login_of(config)
        self._order = list(config.sentinels)
        """Those that answered last come first, so that one that is gone is waited for once."""
        self._clients: dict[Address, redis.Redis] = {}
        self._turn = threading.Lock()

    def find(self) -> Named:
        """Where the primary is now, as most of the Sentinels know it.

        Blocks, up to STORE_TIMEOUT_S for each reply; raises redis.ConnectionError when none of them knows it, with what
        each said.
        """
        with self._turn:
            return self._find()

    def _find(self) -> Named:
        answers: list[Named] = []
        answered: list[Address] = []
        silent: list[Address] = []
        said: list[str] = []
        for address in list(self._order):
            # One by one, because one that refuses us shall not keep us from asking the next.
            if len(answers) > len(self._order) // 2:
                break
            try:
                state = self.ask(address)
                # redis-py's own asks one after the other and drops what the first ones said.
                if not Sentinel([]).check_master_state(state, self._config.service):
                    raise MasterNotFoundError(f"knows no living primary of {self._config.service}")
                primary = Address(str(state["ip"]), int(state["port"]))
                require_private(self._config, primary)
            except (redis.RedisError, OSError) as error:
                said.append(f"{address}: {error}")
                silent.append(address)
            else:
                answers.append(Named(primary, int(state.get("config-epoch", 0))))
                answered.append(address)
        asked = {*answered, *silent}
        self._order = [*answered, *(one for one in self._order if one not in asked), *silent]
        if not answers:
            raise redis.ConnectionError(
                f"no Sentinel names a primary of {self._config.service}: {'; '.join(said)}"
            )
        return max(answers, key=lambda named: named.epoch)

    def ask(self, address: Address) -> dict[str, Any]:
        """What one Sentinel says of the service's primary. Raises redis.RedisError, also where it knows none."""
        try:
            masters = self._masters(address)
        except AuthenticationError as error:
            # The server's password goes for its Sentinels as well, unless these know none.
            if self._config.sentinel_password is not None or "without any password configured" not in str(
                error
            ):
                raise
            self._client(address, credential_provider=None)
            masters = self._masters(address)
        if self._config.service not in masters:
            raise MasterNotFoundError(f"knows no living primary of {self._config.service}")
        return masters[self._config.service]

    def close(self) -> None:
        """Leave them all."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _masters(self, address: Address) -> dict[str, dict[str, Any]]:
        client = self._clients.get(address) or self._client(address)
        return cast(dict[str, dict[str, Any]], client.sentinel_masters())

    def _client(self, address: Address, **changes: Any) -> redis.Redis:
        if (former := self._clients.get(address)) is not None:
            former.close()
        own = options(self._config, self._context, self._login)
        own["client_name"] = None
        if self._config.sentinel_password is not None:
            own["credential_provider"] = Login(self._config.sentinel_username, self._config.sentinel_password)
        host, port = address
        pool = redis.ConnectionPool(connection_class=Connection, host=host, port=port, **{**own, **changes})
        client = self._clients[address] = redis.Redis(connection_pool=pool)
        return client
