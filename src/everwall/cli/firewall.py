"""``everwall firewall``: one node."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import structlog
import typer

from everwall.bootstrap.init_cfg import load_init_cfg
from everwall.cli.common import fail
from everwall.config import ConfigError
from everwall.dataplane import DataPlaneError
from everwall.limits import DRAIN_TIMEOUT_S_DEFAULT, WORKERS_MAX
from everwall.management import logs
from everwall.node import Node, NodeError
from everwall.warm import FIREWALL, WarmError, warm
from everwall.workers import WorkersError

log = structlog.get_logger()


def command(
    bootstrap: Annotated[
        Path, typer.Option(help="init-cfg.txt, or a bootstrap package folder with config/init-cfg.txt.")
    ],
    control: Annotated[Path | None, typer.Option(help="UNIX socket for `everwall show`.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads that share the packets.", min=1, max=WORKERS_MAX)
    ] = None,
    drain_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds after SIGTERM until the node stops in any case.")
    ] = DRAIN_TIMEOUT_S_DEFAULT,
) -> None:
    """Run one firewall node until SIGTERM (drains it) or Ctrl-C (stops it at once)."""
    logs.configure()
    try:
        config, warnings = load_init_cfg(bootstrap)
        for warning in warnings:
            log.warning(warning)
        if workers is not None:
            config = replace(config, workers=workers)
        warm(log.info, modules=FIREWALL)
        node = Node(config, control, drain_timeout)
        status = asyncio.run(node.run())
    except (ConfigError, DataPlaneError, NodeError, WarmError, WorkersError, OSError) as error:
        # OSError: traffic log or control socket cannot be where they were asked for.
        fail(str(error))
    raise typer.Exit(status)
