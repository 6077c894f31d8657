"""``everwall policy``: look over a policy without running it, and bring one along from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everwall.cli.common import fail
from everwall.config import ConfigError

group = typer.Typer(no_args_is_help=True)


@group.command()
def check(
    file: Annotated[Path, typer.Argument(help="The policy: YAML.")],
) -> None:
    """Is it a policy that a node can run? Warnings go to stderr; ends with 1 when it is not."""
    # The compiler of policies brings Numba along: half a second that no other command of this file pays.
    from everwall.policy.compile import load_policy

    try:
        policy = load_policy(file).policy
    except ConfigError as error:
        fail(str(error))
    for warning in policy.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(policy.summary)


@group.callback()
def policy() -> None:
    """Look over a policy, and bring one along."""
