"""What the machine is: its names in the vendor's sense, and whose cloud it is in. Read from the firmware's tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_TABLES = Path("/sys/class/dmi/id")
_CLOUDS = {"Amazon EC2": "aws", "Microsoft Corporation": "azure", "Google": "gcp"}


@dataclass(frozen=True)
class Machine:
    """Where a bootstrap happens; without anything said, nowhere in particular."""

    names: tuple[str, ...] = ()
    """Serial number and UUID: ``<name>-init-cfg.txt`` is looked for before ``init-cfg.txt``."""
    platform: str = ""
    """``aws``, ``azure``, ``gcp`` or empty."""


def this_machine(serial: str | None = None, tables: Path = _TABLES) -> Machine:
    """What the firmware says, as far as this user may read it; ``serial`` goes before that."""
    names = [serial, _read(tables / "product_serial"), _read(tables / "product_uuid")]
    platform = _CLOUDS.get(_read(tables / "sys_vendor"), "")
    return Machine(tuple(dict.fromkeys(name for name in names if name)), platform)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""  # no such table, or root only
