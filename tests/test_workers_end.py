"""How workers end, and what speaks to their store beside them."""

from __future__ import annotations

import contextlib

from everwall.limits import STORE_STOP_S
from everwall.workers import Workers


def test_all_that_speaks_to_the_store_stops_at_once() -> None:
    """One after the other a store that hangs would be waited for three times."""
    said: list[str] = []
    waited: list[float] = []

    class Part:
        def __init__(self, name: str) -> None:
            self.name = name

        def begin_stop(self) -> None:
            said.append(f"{self.name} begins")

        def stop(self, timeout: float = 0.0) -> bool:
            said.append(f"{self.name} waits")
            waited.append(timeout)
            return True

    workers = object.__new__(Workers)
    workers.__dict__ |= {"all": [], "_started": [Part("store")], "_descriptors": contextlib.ExitStack()}
    workers.stop(Part("relayout"), None, Part("housekeeper"))
    begun = {"relayout begins", "housekeeper begins", "store begins"}
    assert set(said[:3]) == begun, "before anybody is waited for"
    assert sorted(said[3:]) == ["housekeeper waits", "relayout waits", "store waits"]
    assert max(waited) <= STORE_STOP_S, "until one time"
