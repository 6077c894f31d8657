"""``everwall doctor``: is the installation right?"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from everwall.bootstrap.faults import titled
from everwall.bootstrap.init_cfg import InitCfg
from everwall.bootstrap.load import Bootstrap, given_by_environment, load_bootstrap
from everwall.bootstrap.parse import parse_init_cfg
from everwall.cli.common import SECRET_FILE_OPTION, SECRET_ID_OPTION, SERIAL_OPTION, fail
from everwall.config import ConfigError, read_password, read_text
from everwall.doctor import balancer_checks, balancer_facts, node_checks, topology
from everwall.doctor.findings import Finding, Level, count
from everwall.doctor.sizing import Size, size
from everwall.policy.settings import DEFAULT_SETTINGS
from everwall.store.connection import StoreConfig
from everwall.store_config import store_config

HOSTS_HINT = "TCP time-outs of the hosts must outlast a failover: docs/failover.md"
_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}


def command(
    redis_endpoint: Annotated[str | None, typer.Option(help="The store, host:port.")] = None,
    redis_sentinel: Annotated[
        str | None, typer.Option(help="Or Sentinels that know it, host:port, parted by commas.")
    ] = None,
    redis_sentinel_service: Annotated[str | None, typer.Option(help="What they call it.")] = None,
    redis_cluster: Annotated[
        str | None, typer.Option(help="Or nodes of a cluster, host:port, parted by commas.")
    ] = None,
    redis_auth: Annotated[
        str | None,
        typer.Option(
            help="Its password; others see it in the list of processes.", envvar="EVERWALL_REDIS_AUTH"
        ),
    ] = None,
    redis_auth_file: Annotated[Path | None, typer.Option(help="A file with its password.")] = None,
    redis_user: Annotated[str | None, typer.Option(help="ACL user; without it the default user.")] = None,
    redis_certificate: Annotated[
        str | None,
        typer.Option(help="The authority's certificate: a PEM file, or base64 as in init-cfg.txt."),
    ] = None,
    redis_server_name: Annotated[str | None, typer.Option(help="The name its certificate must have.")] = None,
    no_tls: Annotated[bool, typer.Option("--no-tls", help="Speak plain TCP.")] = False,
    init_cfg: Annotated[
        str | None,
        typer.Option(help="A node's init-cfg.txt, package or other source: options above go before it."),
    ] = None,
    serial: Annotated[str | None, SERIAL_OPTION] = None,
    cluster_secret_file: Annotated[Path | None, SECRET_FILE_OPTION] = None,
    cluster_secret_id: Annotated[str | None, SECRET_ID_OPTION] = None,
    sessions: Annotated[
        int | None,
        typer.Option(help="Sessions of each firewall, at most; else everwall-max-sessions of --init-cfg."),
    ] = None,
    firewalls: Annotated[int, typer.Option(help="Firewalls that share the store.")] = 1,
    target_group: Annotated[
        str | None, typer.Option(help="ARN of the target group on AWS; needs the extra `aws`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Look over store, node and load balancer; each line is ok, a warning or an error, with what to do.

    Nothing is changed. Ends with 1 when there is an error.
    """
    try:
        bootstrap: Bootstrap | None = None
        if init_cfg is not None:
            bootstrap = load_bootstrap(
                init_cfg, given_by_environment(cluster_secret_file, cluster_secret_id, serial)
            )
        cfg = bootstrap.config if bootstrap is not None else None
        places = {
            "redis-endpoint": redis_endpoint,
            "everwall-redis-sentinel": redis_sentinel,
            "everwall-redis-sentinel-service": redis_sentinel_service,
            "everwall-redis-cluster": redis_cluster,
        }
        given = _Given(
            {key: place for key, place in places.items() if place is not None},
            _password(redis_auth, redis_auth_file),
            redis_user,
        )
        store = _store(given, cfg, _pem(redis_certificate), redis_server_name, not no_tls)
        found: list[Finding] = []
        settings = DEFAULT_SETTINGS
        if store is not None:
            sessions = sessions if sessions is not None or cfg is None else cfg.max_sessions
            found += _look_at_store(store, sessions, firewalls)
        if bootstrap is not None:
            found += node_checks.findings(bootstrap.config, bootstrap.warnings)
            settings, unread = node_checks.settings_of(bootstrap.config)
            found += unread
        if target_group is not None:
            elbv2 = balancer_facts.client(target_group)
            facts = balancer_facts.collect(elbv2, target_group)
            found += balancer_checks.findings(facts, cfg.health_port if cfg is not None else None, settings)
        elif cfg is not None:
            found += node_checks.idle(settings=settings)
    except (ValueError, balancer_facts.BalancerError) as error:  # ConfigError and SizeError are ValueErrors
        fail(titled(error))
    if not found:
        fail("nothing to look at: give --redis-endpoint, --init-cfg or --target-group")
    levels = count(found)
    if as_json:
        body: dict[str, Any] = {"ok": not levels["error"], "count": levels}
        typer.echo(json.dumps({**body, "findings": [finding.as_json() for finding in found]}))
    else:
        _print(found, levels)
    raise typer.Exit(1 if levels["error"] else 0)


@dataclass(frozen=True)
class _Given:
    """What the command line says of the store."""

    places: dict[str, str]
    """Where it is, as keys of init-cfg.txt."""
    password: str | None
    user: str | None


def _look_at_store(store: StoreConfig, sessions: int | None, firewalls: int) -> list[Finding]:
    if sessions is not None:
        size(sessions, firewalls)  # refuses nonsense before anything is asked

    def wanted(kind: str, shards: int) -> Size | None:
        if sessions is None:
            return None
        return size(-(-sessions // shards), firewalls, server=kind)

    return topology.look(store, wanted)


def _store(
    given: _Given, cfg: InitCfg | None, pem: bytes | None, server_name: str | None, tls: bool
) -> StoreConfig | None:
    """Where the store is, from the options and the node's file; None when neither says."""
    cfg = cfg or InitCfg()
    if given.places:
        for key, value in given.places.items():
            if not value:
                raise ConfigError(f"--{key.removeprefix('everwall-')}", "host:port")
        place, _ = parse_init_cfg(
            "\n".join(f"{key}={value}" for key, value in given.places.items()), "options"
        )
        names = ("redis_endpoint", "redis_sentinels", "redis_sentinel_service", "redis_cluster")
        cfg = replace(cfg, **{name: getattr(place, name) for name in names})
    if not cfg.redis_servers:
        return None
    known = store_config(cfg)
    password = given.password or known.password
    if password is None and known.password_file is not None:
        password = read_password(known.password_file)
    return replace(
        known,
        username=given.user or known.username,
        password=password,
        password_file=None,
        tls=tls and known.tls,
        ca_pem=pem or known.ca_pem,
        server_name=server_name or known.server_name,
    )


def _password(word: str | None, file: Path | None) -> str | None:
    if file is None:
        return word
    if word is not None:
        raise ConfigError("--redis-auth-file", "either this or --redis-auth")
    return read_password(file)


def _pem(text: str | None) -> bytes | None:
    """The certificate of a file, or of base64 as init-cfg.txt has it."""
    if text is None:
        return None
    try:
        if Path(text).is_file():
            return read_text(Path(text)).encode()
    except OSError:
        pass  # too long for a name
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise ConfigError("--redis-certificate", "a file that exists, or base64 of PEM") from None


def _print(found: list[Finding], levels: dict[str, int]) -> None:
    width = max(len(finding.check) for finding in found)
    for finding in found:
        level = typer.style(f"{finding.level.value:<7}", fg=_COLOURS[finding.level])
        typer.echo(f"{level}  {finding.check:<{width}}  {finding.text}")
        if finding.advice:
            typer.echo(f"{'':7}  {'':{width}}  → {finding.advice}")
    typer.echo(f"\n{HOSTS_HINT}")
    typer.echo(", ".join(f"{number} {name}" for name, number in levels.items()))
