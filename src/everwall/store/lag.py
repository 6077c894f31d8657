"""How long changes wait for the store: the age of the oldest unsent one, seen by whoever looks now and then."""

from __future__ import annotations

from collections.abc import Iterable

from everwall.store.backlog import Backlog


class Lag:
    """Of some backlogs; too young by the time between two looks at most."""

    def __init__(self) -> None:
        self._marks: dict[Backlog, tuple[tuple[int, int], int]] = {}
        """What waited, and when that was seen."""

    def note(self, now_ns: int, backlogs: Iterable[Backlog], connected: bool) -> None:
        """Look at them. What waits for a connection is put back again and again, and is no younger for it."""
        marks = {}
        for backlog in backlogs:
            known, mark = self._marks.get(backlog), backlog.mark
            if known is not None and mark is not None and not (connected and backlog.is_past(known[0])):
                marks[backlog] = known
            elif mark is not None:
                marks[backlog] = mark, now_ns
        self._marks = marks

    def ns(self, now_ns: int) -> int:
        """The age of the oldest; 0 when nothing waited."""
        return max((now_ns - since for _, since in self._marks.values()), default=0)
