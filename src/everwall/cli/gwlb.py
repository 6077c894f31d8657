"""``everwall gwlb``: run a gateway load balancer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from everwall.cli.common import fail


def command(
    config: Annotated[Path, typer.Option("--config", help="The YAML file; see docs/gwlb.md.")],
    control: Annotated[
        Path | None,
        typer.Option("--control", help="Make a control socket here, for everwall show."),
    ] = None,
) -> None:
    """Run a gateway load balancer where there is none, until SIGTERM or SIGINT.

    Packets come from endpoints (TUN devices), go to targets inside GENEVE and come back the same way.
    Keys of the YAML file are the attribute names of AWS Gateway Load Balancer.
    """
    from everwall.balancer.config import load
    from everwall.config import ConfigError

    try:
        loaded = load(config)
    except ConfigError as error:
        fail(str(error))
    from everwall.gwlb import StartError, serve
    from everwall.management import logs

    logs.configure()
    try:
        asyncio.run(serve(loaded, control))
    except StartError as error:
        fail(str(error))
