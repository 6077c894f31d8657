"""Figures held against what the project has promised, for every benchmark in the same words."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

Bounds = Mapping[str, tuple[str, float]]
"""By the figure's name: the relation, ``>=`` or ``<=``, and the bound."""
_WORDS = {True: "ok", False: "NOT MET", None: "not available"}


def held_against(bounds: Bounds, found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each bound: what was measured, the bound, and whether it is met; None where nothing was measured."""
    held = {}
    for name, (relation, bound) in bounds.items():
        value = found.get(name)
        ok = None if value is None else value >= bound if relation == ">=" else value <= bound
        held[name] = {"measured": value, "bound": f"{relation} {bound:g}", "ok": ok}
    return held


def show(held: Mapping[str, Mapping[str, Any]]) -> None:
    """Print them as a table."""
    print(f"\n{'Held against the bounds':28}{'measured':>16}{'bound':>12}")
    for name, row in held.items():
        value = "" if row["measured"] is None else f"{row['measured']:,.3f}"
        print(f"{name:28}{value:>16}{row['bound']:>12}  {_WORDS[row['ok']]}")


def machine() -> str:
    """What all of it was measured on."""
    return f"{platform.machine()}, {os.cpu_count()} processors, Linux {platform.release()}"
