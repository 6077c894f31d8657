"""How a node reaches the store, from what its bootstrap says."""

from __future__ import annotations

from everwall.bootstrap.init_cfg import InitCfg, RedisEndpoint
from everwall.outward import Outward
from everwall.store.connection import Address, StoreConfig


def store_config(cfg: InitCfg, owner: int = 0, outward: Outward | None = None) -> StoreConfig:
    """``owner`` is the node's 32-bit id, ``outward`` the way its management takes."""
    single = cfg.redis_endpoint or RedisEndpoint("", 0)
    return StoreConfig(
        host=single.host,
        port=single.port,
        username=cfg.redis_user,
        password=cfg.redis_auth.get_secret_value() if cfg.redis_auth else None,
        password_file=cfg.redis_auth_file,
        tls=cfg.redis_tls,
        ca_pem=cfg.redis_certificate,
        server_name=cfg.redis_server_name,
        prefix=cfg.redis_prefix,
        owner=owner,
        outward=outward or Outward(),
        sentinels=_addresses(cfg.redis_sentinels),
        service=cfg.redis_sentinel_service or "",
        sentinel_username=cfg.redis_sentinel_user,
        sentinel_password=cfg.redis_sentinel_auth.get_secret_value() if cfg.redis_sentinel_auth else None,
        cluster=_addresses(cfg.redis_cluster),
        wait_replicas=cfg.wait_replicas,
    )


def _addresses(endpoints: tuple[RedisEndpoint, ...]) -> tuple[Address, ...]:
    return tuple(Address(endpoint.host, endpoint.port) for endpoint in endpoints)
