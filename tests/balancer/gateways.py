"""A gateway with targets for the stories of these tests, and the two ways of a packet through it."""

from __future__ import annotations

from ipaddress import IPv4Address

from everwall.balancer.gateway import Gateway
from everwall.balancer.targets import State, Targets
from everwall.limits import SECOND_NS
from everwall.verdict import Verdict
from everwall.wire import meta
from tests.packets import batch_of, geneve, unload

GATEWAY = "10.9.0.1"
ENDPOINT = 0x0A11CE
START = 1_000 * SECOND_NS


def address(name: str) -> str:
    """``fw1`` is 10.9.1.1, and so on."""
    return f"10.9.1.{int(name[2:])}"


class Story:
    """A gateway, its clock, and what the targets would see and send."""

    def __init__(self, targets: int = 3, *, endpoints: tuple[int, ...] = (ENDPOINT,), seed: int = 7, **kind):
        self.now = START
        gateway_options = {name: kind.pop(name) for name in ("max_flows", "idle_tcp") if name in kind}
        self.targets = Targets(**kind)
        gateway_options.setdefault("max_flows", 512)
        self.gateway = Gateway(
            address=int(IPv4Address(GATEWAY)),
            endpoints=list(endpoints),
            targets=self.targets,
            now=self.now,
            seed=seed,
            **gateway_options,
        )
        self.names = [f"fw{number + 1}" for number in range(targets)]
        for name in self.names:
            self.targets.register(name, address(name), self.now)
            self.gateway.set_target_state(name, "healthy", self.now)

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * SECOND_NS)

    def mark(self, name: str, state: State) -> None:
        self.gateway.set_target_state(name, state, self.now)

    def send(self, *packets: bytes, endpoint: int = ENDPOINT) -> list[tuple[Verdict, str, bytes]]:
        """Packets from an endpoint; for each its verdict, the target's name and the GENEVE packet."""
        batch = batch_of(packets, bare=True, endpoint=endpoint)
        self.gateway.from_endpoint(batch, len(packets), self.now)
        found = []
        for i in range(len(packets)):
            row = batch.meta[i]
            verdict = Verdict(int(row[meta.VERDICT]))
            if verdict is not Verdict.FORWARD:
                found.append((verdict, "", b""))
                continue
            assert row[meta.LOCAL_ADDRESS] == int(IPv4Address(GATEWAY))
            name = f"fw{int(row[meta.PEER_ADDRESS]) & 0xFF}"
            found.append((verdict, name, unload(batch, i)))
        return found

    def sent(self, packet: bytes, endpoint: int = ENDPOINT) -> tuple[str, bytes]:
        """One packet that goes on: the target's name and what it gets."""
        ((verdict, name, outer),) = self.send(packet, endpoint=endpoint)
        assert verdict is Verdict.FORWARD, verdict
        return name, outer

    def refused(self, packet: bytes, endpoint: int = ENDPOINT) -> Verdict:
        """One packet that does not go on: why."""
        ((verdict, _, _),) = self.send(packet, endpoint=endpoint)
        assert verdict is not Verdict.FORWARD
        return verdict

    def back(self, name: str, outer: bytes) -> tuple[Verdict, bytes]:
        """A GENEVE packet from a target: its verdict, and the bare packet where it goes on."""
        batch = batch_of([outer])
        batch.meta[0, meta.PEER_ADDRESS] = int(IPv4Address(address(name)))
        batch.meta[0, meta.LOCAL_ADDRESS] = int(IPv4Address(GATEWAY))
        self.gateway.from_target(batch, 1, self.now)
        verdict = Verdict(int(batch.meta[0, meta.VERDICT]))
        if verdict is not Verdict.FORWARD:
            return verdict, b""
        assert batch.meta[0, meta.ENDPOINT] in self.gateway.tables.endpoints
        return verdict, bytes(batch.data[0, batch.meta[0, meta.INNER] : batch.meta[0, meta.INNER_END]])

    def dropped(self) -> dict[str, int]:
        counters = self.gateway.counters
        return {name: count for name, count in counters.items() if name not in ("to-target", "to-endpoint")}

    def flows_on(self, name: str) -> int:
        return int(self.gateway.tables.flows.per_target[self.targets[name].row])


def cookie_of(outer: bytes) -> int:
    """The flow cookie in a GENEVE packet that a gateway sent."""
    return int.from_bytes(outer[36:40], "big")


def inner_of(outer: bytes) -> bytes:
    """The packet in a GENEVE packet that a gateway sent."""
    return outer[40:]


def returned(inner: bytes, outer: bytes, endpoint: int = ENDPOINT) -> bytes:
    """``inner`` as a target returns it: with endpoint and cookie of the packet it came by."""
    return geneve(inner, endpoint=endpoint, cookie=cookie_of(outer))
