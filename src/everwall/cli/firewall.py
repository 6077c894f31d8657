"""``everwall firewall``: one node."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import structlog
import typer

from everwall.bootstrap.faults import titled
from everwall.bootstrap.load import Bootstrap, Given, given_by_environment, load_bootstrap
from everwall.cli.common import (
    ACCEPT_PORTS_OPTION,
    REGION_OPTION,
    SECRET_FILE_OPTION,
    SECRET_ID_OPTION,
    SERIAL_OPTION,
    SOURCE_HELP,
    fail,
)
from everwall.config import ConfigError
from everwall.dataplane import DataPlaneError
from everwall.limits import DRAIN_TIMEOUT_S_DEFAULT, WORKERS_MAX
from everwall.management import logs
from everwall.node import Node, NodeError
from everwall.warm import FIREWALL, WarmError, warm
from everwall.workers import WorkersError

log = structlog.get_logger()


def command(
    bootstrap: Annotated[str, typer.Option(help=SOURCE_HELP)],
    control: Annotated[Path | None, typer.Option(help="UNIX socket for `everwall show`.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads that share the packets.", min=1, max=WORKERS_MAX)
    ] = None,
    drain_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds after SIGTERM until the node stops in any case.")
    ] = DRAIN_TIMEOUT_S_DEFAULT,
    serial: Annotated[str | None, SERIAL_OPTION] = None,
    cluster_secret_file: Annotated[Path | None, SECRET_FILE_OPTION] = None,
    cluster_secret_id: Annotated[str | None, SECRET_ID_OPTION] = None,
    aws_region: Annotated[str | None, REGION_OPTION] = None,
    accept_ports: Annotated[bool, ACCEPT_PORTS_OPTION] = False,
) -> None:
    """Run one firewall node until SIGTERM (drains it) or Ctrl-C (stops it at once)."""
    logs.configure()
    try:
        given = given_by_environment(cluster_secret_file, cluster_secret_id, serial, aws_region, accept_ports)
        read = _read(bootstrap, given)
        if workers is not None:
            read = replace(read, config=replace(read.config, workers=workers))
        warm(log.info, modules=FIREWALL)
        node = Node(
            read.config,
            control,
            drain_timeout,
            read.late_secret,
            lambda: load_bootstrap(bootstrap, given),
        )
        status = asyncio.run(node.run())
    except (ConfigError, DataPlaneError, NodeError, WarmError, WorkersError, OSError) as error:
        # OSError: traffic log or control socket cannot be where they were asked for.
        fail(titled(error))
    raise typer.Exit(status)


def _read(source: str, given: Given) -> Bootstrap:
    log.info(f"bootstrap: reading {source}")
    read = load_bootstrap(source, given)
    log.info(f"bootstrap: {', then '.join(read.read)}")
    for warning in read.warnings:
        log.warning(f"bootstrap: {warning}")
    return read
