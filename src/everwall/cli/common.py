"""What several commands share."""

from __future__ import annotations

from typing import Any, NoReturn

import typer

CONTROL_OPTION: Any = typer.Option(
    "--control", help="The control socket of the process.", envvar="EVERWALL_CONTROL", show_envvar=True
)

SOURCE_HELP = (
    "A package folder, an init-cfg.txt, `user-data` (of this EC2 instance), `user-data:FILE`, "
    "`s3://bucket/folder` or `secret:NAME`."
)
SERIAL_OPTION: Any = typer.Option(
    help="Serial number or UUID: <serial>-init-cfg.txt goes before init-cfg.txt; else the firmware's."
)
SECRET_FILE_OPTION: Any = typer.Option(
    help="A file with the cluster secret; it may come after the start.", envvar="EVERWALL_CLUSTER_SECRET_FILE"
)
SECRET_ID_OPTION: Any = typer.Option(
    help="Name or ARN of the cluster secret in AWS Secrets Manager.", envvar="EVERWALL_CLUSTER_SECRET_ID"
)
ACCEPT_PORTS_OPTION: Any = typer.Option(
    "--accept-ports-for-applications",
    help="Take a rule that names applications for one that names their standard ports.",
)
REGION_OPTION: Any = typer.Option(
    help="Region of buckets and secrets; else that of the AWS tools or the instance."
)


def fail(message: str) -> NoReturn:
    """Say on stderr what is wrong and end with 1."""
    typer.echo(f"everwall: {message}", err=True)
    raise typer.Exit(1)
