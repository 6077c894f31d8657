"""What a run must keep, said a second time in plain Python that shares no logic with the engine."""

from __future__ import annotations

from everwall.sim.flows import Flow


class PromiseBroken(AssertionError):
    """A checker saw a promise broken; the run adds seed and time."""

    def __init__(self, what: str, flow: Flow | None = None) -> None:
        super().__init__(what)
        self.flow = flow
        """The flow it happened to, where it is about one."""
