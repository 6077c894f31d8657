"""The lab's hand on its traffic programs, the same for real connections and for packets."""

from __future__ import annotations

from typing import Any

from everwall.lab.processes import Program


class Traffic:
    """One program with the client side, and one with the server side where there are two."""

    def __init__(self, client: Program, server: Program | None) -> None:
        self.client = client
        self.server = server
        for program in self.programs:
            program.ask("ready", 30.0)

    @property
    def programs(self) -> list[Program]:
        return [self.client] + ([self.server] if self.server else [])

    def start(self) -> None:
        """Open all connections."""
        self.client.ask("start")

    def progress(self) -> dict[str, int]:
        return self.client.ask("progress")

    def sources(self) -> tuple[dict[int, str], dict[int, str]]:
        """Client address:port of each TCP connection and of each UDP flow."""
        answer = self.client.ask("flows")
        return dict(answer["tcp"]), dict(answer["udp"])

    def set_pace(self, pace: float) -> None:
        self.client.tell("pace", pace=pace)

    def set_fast(self, flows: list[int]) -> None:
        """These UDP flows send a probe every 10 ms from now on."""
        self.client.tell("fast", flows=flows)

    def probe(self) -> None:
        """Every connection has to complete another round trip from now on."""
        self.client.tell("probe")

    def report(self, event_ns: int, effective_ns: int) -> dict[str, Any]:
        """Everything both sides wrote down, in one object."""
        answer = self.client.ask("report", 30.0, event_ns=event_ns, effective_ns=effective_ns)
        if self.server:
            far = self.server.ask("report", 30.0, event_ns=event_ns, effective_ns=effective_ns)
            answer["probes"] = far["probes"]
            answer["server"] = far["connections"]
        return answer

    def stop(self) -> None:
        """Close all connections in the ordinary way."""
        for program in self.programs:
            program.ask("stop")

    def stay(self) -> None:
        """Go on without the lab."""
        for program in self.programs:
            program.tell("stay")
