"""How a node ends."""

from __future__ import annotations

from everwall.limits import STORE_STOP_S
from everwall.node import Node


def test_a_node_that_ends_has_all_that_speaks_to_its_store_stop_at_once() -> None:
    """One after the other a store that hangs would be waited for three times."""
    said: list[str] = []
    waited: list[float] = []

    class Part:
        def __init__(self, name: str) -> None:
            self.name = name

        def begin_stop(self) -> None:
            said.append(f"{self.name} begins")

        def stop(self, timeout: float = 0.0) -> None:
            said.append(f"{self.name} waits")
            waited.append(timeout)

        def events(self) -> list[object]:
            return []

        def write(self, _: object) -> None:
            pass

        def close(self) -> None:
            pass

    node = object.__new__(Node)
    node.__dict__ |= {
        "_relayout": Part("relayout"),
        "_housekeeper": Part("housekeeper"),
        "workers": Part("workers"),
        "_traffic_log": Part("log"),
        "plane": Part("plane"),
    }
    node._close()
    assert said[:2] == ["relayout begins", "housekeeper begins"]
    assert sorted(said[2:]) == ["housekeeper waits", "relayout waits", "workers waits"]
    assert max(waited) <= STORE_STOP_S, "until one time, what the workers took included"
