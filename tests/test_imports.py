"""Imports run one way, and the system is touched only where it may be.

ARCHITECTURE.md shows the house; this is the same as data. A room may use itself and every lower floor,
never its neighbours. Imports inside functions count like all others.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "everwall"

FLOORS = [
    {"limits", "verdict"},
    {"kernels"},
    {"rings", "counters", "system", "config", "modes", "outward"},
    {"wire"},
    {"flow"},
    {"session", "policy", "inspection"},
    {"opening", "handover", "answering"},
    {"takeover", "rematch"},
    {"pipeline"},
    {"engine", "balancer", "ports", "store", "bootstrap", "management"},
    {"dataplane", "worker", "gwlb_worker", "store_config"},
    {"workers"},
    {"node", "gwlb", "sim", "replay", "warm", "doctor"},
    {"lab"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# The engine speaks to the store in rows whose meaning the protocol holds.
NEIGHBOURS = {("engine", "everwall.store.protocol")}

SYSTEM = {"asyncio", "select", "selectors", "signal", "socket", "ssl", "subprocess", "threading", "time"}
# The clock and poll of compiled loops.
OUR_SYSTEM = "everwall.system"
MAY_TOUCH_THE_SYSTEM = {
    "node",
    "outward",
    "dataplane",
    "worker",
    "workers",
    "gwlb",
    "gwlb_worker",
    "ports",
    "store.clients",
    "store.cluster",
    "store.connection",
    "store.conversation",
    "store.dialer",
    "store.link",
    "store.housekeeper",
    "store.names",
    "store.redis",
    "store.relayout",
    "store.sentinels",
    "balancer.probes",
    "bootstrap.sources",
    "management",
    "warm",
    "doctor.store_facts",
    "doctor.topology",
    "lab",
    "cli",
    "system",
}

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full module name of every import in ``path``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written in full"
            assert node.module is not None
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def room_of(module: str) -> str:
    """The room of a module of ours: ``everwall.wire.meta`` is in ``wire``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    own = name_of(path).split(".")[0]
    assert own in FLOOR_OF, f"{own} has no floor yet: where in the house does it belong?"
    for line, module in imports(path):
        if module.split(".")[0] != "everwall":
            continue
        room = room_of(module)
        if room == own or room not in FLOOR_OF:
            continue  # a name of the package itself, as everwall.__version__
        allowed = FLOOR_OF[room] < FLOOR_OF[own] or any(
            own == who and (module == what or module.startswith(what + ".")) for who, what in NEIGHBOURS
        )
        # `from everwall.store import protocol` names the folder first.
        folder = any(own == who and what.startswith(module + ".") for who, what in NEIGHBOURS)
        assert allowed or folder, f"{path}:{line}: {own} may not import {module}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_sockets_threads_and_the_clock_stay_where_they_belong(path: Path) -> None:
    own = name_of(path)
    if any(own == room or own.startswith(room + ".") for room in MAY_TOUCH_THE_SYSTEM):
        return
    touched = [
        f"{path}:{line}: {module}"
        for line, module in imports(path)
        if module.split(".")[0] in SYSTEM or module.startswith(OUR_SYSTEM)
    ]
    assert touched == []


def test_every_room_of_the_table_has_one_floor() -> None:
    assert sum(len(rooms) for rooms in FLOORS) == len(FLOOR_OF)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_can_be_imported(path: Path) -> None:
    name = name_of(path)
    if name != "__main__":
        __import__(f"everwall.{name}")
