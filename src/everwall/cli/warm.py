"""``everwall warm``: compile once, so that nodes start at once."""

from __future__ import annotations

from typing import Annotated

import typer

from everwall.cli.common import fail


def command(
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Compilers at once.  [default: one per core]", min=1)
    ] = None,
) -> None:
    """Compile all kernels into the cache, with progress; says so at once when that was done before.

    The cache is named by all that the machine code depends on, so this is needed again after an
    upgrade or on another kind of processor. Its place: EVERWALL_CACHE_DIR, else XDG_CACHE_HOME/everwall.
    """
    from everwall.kernels import CACHE_DIRECTORY
    from everwall.warm import WarmError, is_warm, warm

    if is_warm():
        typer.echo(f"warm already: {CACHE_DIRECTORY}")
        return
    try:
        seconds = warm(lambda line: typer.echo(line), jobs)
    except WarmError as error:
        fail(str(error))
    typer.echo(f"warm in {seconds:.1f} s: {CACHE_DIRECTORY}")
