"""What several commands share."""

from __future__ import annotations

from typing import Any, NoReturn

import typer

CONTROL_OPTION: Any = typer.Option(
    "--control", help="The control socket of the process.", envvar="EVERWALL_CONTROL", show_envvar=True
)


def fail(message: str) -> NoReturn:
    """Say on stderr what is wrong and end with 1."""
    typer.echo(f"everwall: {message}", err=True)
    raise typer.Exit(1)
