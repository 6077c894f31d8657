"""How much goes to the store a second, of counters that only grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from everwall.limits import RATES_S

_COUNTED = ("written", "refreshed", "deleted", "looked_up")


class Rates:
    """Over the last RATES_S seconds; ``note`` is called about once in each."""

    def __init__(self) -> None:
        self._noted: deque[tuple[float, dict[str, int]]] = deque(maxlen=RATES_S + 1)

    def note(self, now_s: float, facts: Mapping[str, int]) -> None:
        """``facts``: a store's status, of all workers; without a store nothing is noted."""
        if all(name in facts for name in _COUNTED):
            self._noted.append((now_s, {name: facts[name] for name in _COUNTED}))

    def per_s(self) -> dict[str, int]:
        """Sessions written first, written again, deleted and looked up, each second."""
        per_s = dict.fromkeys(("writes_per_s", "refreshes_per_s", "deletes_per_s", "lookups_per_s"), 0)
        if len(self._noted) > 1:
            (since, before), (until, after) = self._noted[0], self._noted[-1]
            grown = {name: after[name] - before[name] for name in _COUNTED}
            counts = (
                grown["written"] - grown["refreshed"] - grown["deleted"],
                grown["refreshed"],
                grown["deleted"],
                grown["looked_up"],
            )
            for name, count in zip(per_s, counts, strict=True):
                per_s[name] = round(count / max(until - since, 1e-9))
        return per_s
