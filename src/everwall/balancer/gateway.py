"""A gateway load balancer without I/O: from an endpoint to a target, and from the target back.

::

    endpoint ──bare packet──▶ from_endpoint: parse ▸ key ▸ flow (or choose a target) ▸ GENEVE ──▶ target
    endpoint ◀──bare packet── from_target: GENEVE ▸ parse ▸ key ▸ flow ▸ own target? own cookie? ◀── target

Both directions of a flow meet the same entry of the flow table and so the same target. What AWS
documents for Gateway Load Balancer holds here: TCP and UDP flows are told apart by their five-tuple,
others by addresses and protocol; a flow stays where it is until its target fails and
``target_failover`` says rebalance; a return is let through only from the flow's own target, with the
flow's endpoint and cookie.

Decided here, where the documents are silent:

* An ICMP error goes to the target of the flow that it quotes; about an unknown flow it is dropped.
* A return of a flow that is not in the table counts as one with a wrong cookie: its cookie names no
  flow.
* TCP packets without SYN that belong to no flow are dropped as those of an expired flow; but for the
  length of one idle time-out after its start a gateway takes them as a new flow, because they may be
  older than the gateway.
* The end of a TCP connection is believed only from targets: what a firewall let through. A SYN after
  it is a new flow, with a cookie of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.balancer.choice import ADDRESS, MOVE, REFERENCE, choose, flow_hash
from everwall.balancer.flows import (
    COOKIE,
    FIN_LOWER,
    FIN_UPPER,
    FIRST_UPPER,
    FLAGS,
    LAST,
    PACKETS_BACK,
    PACKETS_OUT,
    RESET,
    SOURCE_PORT,
    TARGET,
    Flows,
    active,
    age,
    assign,
    ended,
    expired,
    find,
    find_fragment,
    insert,
    make_flows,
    note_fragment,
    remove,
)
from everwall.balancer.targets import Reason, State, Targets
from everwall.flow import hash_of, make_key
from everwall.kernels import kernel
from everwall.limits import (
    AGEING_PERIOD_NS,
    AGEING_TICKS,
    GWLB_FLOWS_DEFAULT,
    GWLB_SOURCE_PORT_FIRST,
    GWLB_SOURCE_PORTS,
    GWLB_TARGETS_MAX,
    LB_IDLE_OTHER_S,
    LB_IDLE_TCP_S,
    SECOND_NS,
)
from everwall.verdict import VERDICTS, Verdict
from everwall.wire.geneve import (
    ENCAPSULATION_BYTES,
    PROTOCOL_TYPE_IPV4,
    PROTOCOL_TYPE_IPV6,
    decapsulate,
    encapsulate,
)
from everwall.wire.meta import (
    BARE,
    DESTINATION_PORT,
    DIRECTION,
    END,
    ENDPOINT,
    FAMILY,
    FIRST_FRAGMENT,
    FRAGMENT,
    HASH,
    ICMP_ERROR,
    ICMP_KIND,
    INNER,
    INNER_END,
    LATER_FRAGMENT,
    LOCAL_ADDRESS,
    PEER_ADDRESS,
    PEER_PORT,
    PROTOCOL,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    SESSION,
    START,
    TCP_ACK,
    TCP_FIN,
    TCP_FLAG_BITS,
    TCP_RST,
    TCP_SYN,
    VERDICT,
    Batch,
)
from everwall.wire.meta import COOKIE as RETURNED_COOKIE
from everwall.wire.meta import SOURCE_PORT as PACKET_SOURCE_PORT
from everwall.wire.packet import parse

_FORWARD = int(Verdict.FORWARD)
_OVERSIZE = int(Verdict.OVERSIZE)
_GENEVE_NO_ENDPOINT = int(Verdict.GENEVE_NO_ENDPOINT)
_ICMP_ERROR_UNMATCHED = int(Verdict.ICMP_ERROR_UNMATCHED)
_FRAGMENT_UNMATCHED = int(Verdict.FRAGMENT_UNMATCHED)
_TUNNEL = int(Verdict.INVALID_GENEVE_TUNNEL)
_ENDPOINT_ID = int(Verdict.INVALID_GWLB_ENDPOINT_ID)
_FLOW_COOKIE = int(Verdict.INVALID_GWLB_FLOW_COOKIE)
_NO_TARGET = int(Verdict.NO_TARGET)
_FLOW_TABLE_FULL = int(Verdict.FLOW_TABLE_FULL)
_FLOW_EXPIRED = int(Verdict.FLOW_EXPIRED)
_TARGET_FAILED = int(Verdict.TARGET_FAILED)

# Words of Tables.numbers
_SEED = 0
_LOCAL = 1
_PORT_MASK = 2
_REBALANCE = 3
_ADOPT_UNTIL = 4  # ns; until then TCP without SYN may begin a flow
_COOKIES = 5  # given so far
_NEW = 6
_MOVED = 7
_EXPIRED = 8
_NEXT_AGEING = 9
_NUMBERS = 16

# Columns of Tables.traffic, a row for each target
_PACKETS_TO, _BYTES_TO, _PACKETS_FROM, _BYTES_FROM = range(4)


class Tables(NamedTuple):
    """All that the data path of one gateway reads and writes."""

    flows: Flows
    targets: npt.NDArray[np.int64]  # written by Targets
    endpoints: npt.NDArray[np.int64]  # ids
    traffic: npt.NDArray[np.int64]
    out: npt.NDArray[np.int64]  # counters by verdict, packets from endpoints
    back: npt.NDArray[np.int64]  # counters by verdict, packets from targets
    numbers: npt.NDArray[np.int64]


@kernel
def _make_key(tables, meta, i):
    """The flow key; only TCP and UDP flows are told apart by ports."""
    protocol = meta[i, PROTOCOL]
    if protocol != PROTOCOL_TCP and protocol != PROTOCOL_UDP:
        meta[i, PACKET_SOURCE_PORT] = 0
        meta[i, DESTINATION_PORT] = 0
    make_key(meta, i, tables.numbers[_SEED])


@kernel
def _has_ports(meta, i):
    protocol = meta[i, PROTOCOL]
    return protocol == PROTOCOL_TCP or protocol == PROTOCOL_UDP


@kernel
def _needs_note(meta, i):
    return meta[i, FRAGMENT] == LATER_FRAGMENT and _has_ports(meta, i)


@kernel
def _is_tcp_segment(meta, i):
    return meta[i, PROTOCOL] == PROTOCOL_TCP and meta[i, ICMP_KIND] != ICMP_ERROR


@kernel
def _opens(meta, i):
    """Whether the packet is the first of a TCP connection."""
    return _is_tcp_segment(meta, i) and meta[i, TCP_FLAG_BITS] & (TCP_SYN | TCP_ACK) == TCP_SYN


@kernel
def _next_cookie(tables):
    """32 bits that cannot be foretold without the seed; a mark to tell flows apart, not a secret."""
    tables.numbers[_COOKIES] += 1
    return hash_of(tables.numbers[_COOKIES], tables.numbers[_SEED], 0, tables.numbers[_SEED]) & 0xFFFFFFFF


@kernel
def _begin(tables, meta, i, now):
    """Enter packet ``i`` as the first of its flow; returns (place or -1, verdict)."""
    if meta[i, ICMP_KIND] == ICMP_ERROR:
        return -1, _ICMP_ERROR_UNMATCHED
    if _is_tcp_segment(meta, i) and not _opens(meta, i) and now >= tables.numbers[_ADOPT_UNTIL]:
        return -1, _FLOW_EXPIRED
    row = choose(tables.targets, flow_hash(meta, i), 1)
    if row < 0:
        return -1, _NO_TARGET
    port = GWLB_SOURCE_PORT_FIRST + (meta[i, HASH] & tables.numbers[_PORT_MASK])
    flags = FIRST_UPPER if meta[i, DIRECTION] == 1 else 0
    slot = insert(
        tables.flows, meta, i, tables.targets[row, REFERENCE], _next_cookie(tables), port, flags, now
    )
    if slot < 0:
        return -1, _FLOW_TABLE_FULL
    tables.numbers[_NEW] += 1
    return slot, _FORWARD


@kernel
def _flow_of(tables, meta, i, now):
    """The flow of a packet from an endpoint, begun where it is new; returns (place or -1, verdict)."""
    flows = tables.flows
    if _needs_note(meta, i):
        slot = find_fragment(flows, meta, i, now)
        return slot, (_FORWARD if slot >= 0 else _FRAGMENT_UNMATCHED)
    _make_key(tables, meta, i)
    slot = find(flows, meta, i)
    if slot >= 0:
        over = expired(flows, slot, now)
        if over:
            tables.numbers[_EXPIRED] += 1
        if over or (ended(flows, slot) and _opens(meta, i)):
            remove(flows, slot)
            slot = -1
    if slot >= 0:
        return slot, _FORWARD
    return _begin(tables, meta, i, now)


@kernel
def _target_of(tables, meta, i, slot):
    """The row of the target that the flow goes to now, moved where its own failed; or -1 and why."""
    flow = tables.flows.rows[slot]
    targets = tables.targets
    row = flow[TARGET] % GWLB_TARGETS_MAX
    here = targets[row, REFERENCE] == flow[TARGET]
    if here and targets[row, MOVE] == 0:
        return row, _FORWARD
    if tables.numbers[_REBALANCE] == 0:
        return -1, _TARGET_FAILED
    if _needs_note(meta, i):
        # It carries no key to choose by; its first fragment or the next packet moves the flow.
        return (row, _FORWARD) if here else (-1, _TARGET_FAILED)
    other = choose(targets, flow_hash(meta, i), 0 if here else 1)
    if other < 0:
        return (row, _FORWARD) if here else (-1, _NO_TARGET)
    assign(tables.flows, slot, targets[other, REFERENCE])
    tables.numbers[_MOVED] += 1
    return other, _FORWARD


@kernel
def _to_target(tables, data, meta, i, now):
    """One packet from an endpoint; returns its verdict."""
    verdict = meta[i, VERDICT]
    if verdict == _OVERSIZE or meta[i, START] < ENCAPSULATION_BYTES:
        return _OVERSIZE
    meta[i, BARE] = 1
    meta[i, INNER] = meta[i, START]
    verdict = parse(data, meta, i)
    if verdict != _FORWARD:
        return verdict
    slot, verdict = _flow_of(tables, meta, i, now)
    if slot < 0:
        return verdict
    row, verdict = _target_of(tables, meta, i, slot)
    if row < 0:
        return verdict
    flow = tables.flows.rows[slot]
    if meta[i, ICMP_KIND] != ICMP_ERROR:
        flow[LAST] = now
        if meta[i, FRAGMENT] == FIRST_FRAGMENT and _has_ports(meta, i):
            note_fragment(tables.flows, meta, i, slot, now)
    flow[PACKETS_OUT] += 1
    start = meta[i, INNER] - ENCAPSULATION_BYTES
    protocol_type = PROTOCOL_TYPE_IPV4 if meta[i, FAMILY] == 4 else PROTOCOL_TYPE_IPV6
    encapsulate(data, i, start, protocol_type, meta[i, ENDPOINT], 0, flow[COOKIE])
    meta[i, START] = start
    meta[i, END] = meta[i, INNER_END]
    meta[i, BARE] = 0
    meta[i, PEER_ADDRESS] = tables.targets[row, ADDRESS]
    meta[i, PEER_PORT] = flow[SOURCE_PORT]
    meta[i, LOCAL_ADDRESS] = tables.numbers[_LOCAL]
    meta[i, SESSION] = slot
    tables.traffic[row, _PACKETS_TO] += 1
    tables.traffic[row, _BYTES_TO] += meta[i, INNER_END] - meta[i, INNER]
    return _FORWARD


@kernel
def from_endpoint(tables, batch, count, now):
    """Judge ``count`` bare packets from endpoints (START, END and ENDPOINT set).

    Fills VERDICT; a row with ``FORWARD`` is a GENEVE packet from START to END then, its header
    written into the room before the packet, and its three outer columns name the target.
    """
    for i in range(count):
        batch.meta[i, SESSION] = -1
        verdict = _to_target(tables, batch.data, batch.meta, i, now)
        batch.meta[i, VERDICT] = verdict
        tables.out[verdict] += 1


@kernel
def endpoint_row(tables, endpoint):
    """Which of the gateway's endpoints has this id, or -1."""
    for k in range(tables.endpoints.shape[0]):
        if tables.endpoints[k] == endpoint:
            return k
    return -1


@kernel
def _flow_returned(tables, meta, i, now):
    """The place of a returned packet's flow, or -1."""
    if _needs_note(meta, i):
        return find_fragment(tables.flows, meta, i, now)
    _make_key(tables, meta, i)
    slot = find(tables.flows, meta, i)
    if slot >= 0 and expired(tables.flows, slot, now):
        return -1
    return slot


@kernel
def _why_unknown(tables, meta, i, now):
    """Which check a return of no known flow fails: right but for its endpoint, or its cookie."""
    claimed = meta[i, ENDPOINT]
    verdict = _FLOW_COOKIE
    for k in range(tables.endpoints.shape[0]):
        meta[i, ENDPOINT] = tables.endpoints[k]
        if tables.endpoints[k] != claimed and _flow_returned(tables, meta, i, now) >= 0:
            verdict = _ENDPOINT_ID
            break
    meta[i, ENDPOINT] = claimed
    return verdict


@kernel
def _to_endpoint(tables, data, meta, i, now):
    """One packet from a target; returns its verdict."""
    if meta[i, VERDICT] == _OVERSIZE:
        return _OVERSIZE
    verdict = decapsulate(data, meta, i)
    if verdict == _GENEVE_NO_ENDPOINT:
        return _ENDPOINT_ID
    if verdict != _FORWARD:
        return _TUNNEL
    if endpoint_row(tables, meta[i, ENDPOINT]) < 0:
        return _ENDPOINT_ID
    if parse(data, meta, i) != _FORWARD:
        return _TUNNEL
    slot = _flow_returned(tables, meta, i, now)
    if slot < 0:
        return _why_unknown(tables, meta, i, now)
    flow = tables.flows.rows[slot]
    row = flow[TARGET] % GWLB_TARGETS_MAX
    if (
        tables.targets[row, REFERENCE] != flow[TARGET]
        or tables.targets[row, ADDRESS] != meta[i, PEER_ADDRESS]
    ):
        return _TUNNEL
    if meta[i, RETURNED_COOKIE] != flow[COOKIE]:
        return _FLOW_COOKIE
    if _is_tcp_segment(meta, i) and meta[i, FRAGMENT] != LATER_FRAGMENT:
        if meta[i, TCP_FLAG_BITS] & TCP_FIN:
            flow[FLAGS] |= FIN_LOWER if meta[i, DIRECTION] == 0 else FIN_UPPER
        if meta[i, TCP_FLAG_BITS] & TCP_RST:
            flow[FLAGS] |= RESET
    flow[PACKETS_BACK] += 1
    meta[i, SESSION] = slot
    tables.traffic[row, _PACKETS_FROM] += 1
    tables.traffic[row, _BYTES_FROM] += meta[i, INNER_END] - meta[i, INNER]
    return _FORWARD


@kernel
def from_target(tables, batch, count, now):
    """Judge ``count`` packets from targets as a port received them.

    Fills VERDICT; a row with ``FORWARD`` goes out at ENDPOINT as the bare packet INNER to INNER_END.
    """
    for i in range(count):
        batch.meta[i, SESSION] = -1
        verdict = _to_endpoint(tables, batch.data, batch.meta, i, now)
        batch.meta[i, VERDICT] = verdict
        tables.back[verdict] += 1


@kernel
def age_flows(tables, now):
    """One slice of the ageing hand, when it is due: the whole table once per AGEING_PERIOD_NS."""
    numbers = tables.numbers
    if now < numbers[_NEXT_AGEING]:
        return
    tick = AGEING_PERIOD_NS // AGEING_TICKS
    late = (now - numbers[_NEXT_AGEING]) // tick
    slices = min(late + 1, AGEING_TICKS)
    numbers[_NEXT_AGEING] = now + tick
    buckets = (tables.flows.tags.shape[0] + AGEING_TICKS - 1) // AGEING_TICKS
    numbers[_EXPIRED] += age(tables.flows, now, buckets * slices)


class Gateway:
    """One gateway load balancer; time is passed in, packets come and go in batches."""

    def __init__(
        self,
        *,
        address: int,
        endpoints: list[int],
        targets: Targets,
        now: int,
        max_flows: int = GWLB_FLOWS_DEFAULT,
        idle_tcp: int = LB_IDLE_TCP_S * SECOND_NS,
        source_ports: int = GWLB_SOURCE_PORTS,
        seed: int = 0,
    ) -> None:
        """``address``: own outer IPv4 address as a number. ``idle_tcp``: nanoseconds.

        ``endpoints``: their 64-bit ids as int64. ``source_ports``: a power of two. ``seed``: random
        63 bits in production, so that nobody can aim at one bucket of the table.
        """
        if source_ports & (source_ports - 1) or not 0 < source_ports <= GWLB_SOURCE_PORTS:
            raise ValueError(f"source_ports must be a power of two up to {GWLB_SOURCE_PORTS}: {source_ports}")
        numbers = np.zeros(_NUMBERS, np.int64)
        numbers[_SEED] = seed
        numbers[_LOCAL] = address
        numbers[_PORT_MASK] = source_ports - 1
        numbers[_REBALANCE] = int(targets.rebalance)
        numbers[_ADOPT_UNTIL] = now + idle_tcp
        numbers[_NEXT_AGEING] = now
        self.targets = targets
        self.tables = Tables(
            make_flows(max_flows, idle_tcp, LB_IDLE_OTHER_S * SECOND_NS, seed),
            targets.rows,
            np.array(endpoints, np.int64),
            np.zeros((GWLB_TARGETS_MAX, 4), np.int64),
            np.zeros(VERDICTS, np.int64),
            np.zeros(VERDICTS, np.int64),
            numbers,
        )

    def from_endpoint(self, batch: Batch, count: int, now: int) -> None:
        """See the kernel of this name."""
        from_endpoint(self.tables, batch, count, now)

    def from_target(self, batch: Batch, count: int, now: int) -> None:
        """See the kernel of this name."""
        from_target(self.tables, batch, count, now)

    def set_target_state(self, target_id: str, state: str, now: int) -> None:
        """Call a registered target ``healthy`` or ``unhealthy`` at once, without any probe.

        Raises KeyError for an unknown target, ValueError for another state.
        """
        if state not in (State.HEALTHY, State.UNHEALTHY):
            raise ValueError(f"only healthy and unhealthy can be set, not {state}")
        healthy = state == State.HEALTHY
        self.targets.judge(target_id, healthy, Reason.NONE if healthy else Reason.FAILED_CHECKS, now)

    def next_timer(self) -> int | None:
        """Nanoseconds of the next end of a deregistration delay; ageing rides along with packets."""
        return self.targets.next_timer()

    def handle_timer(self, now: int) -> None:
        """End deregistration delays and age flows."""
        self.targets.handle_timer(now)
        age_flows(self.tables, now)

    @property
    def counters(self) -> dict[str, int]:
        """Packets by outcome: ``to-target`` and ``to-endpoint`` went on, all others are drops by name."""
        found = {"to-target": int(self.tables.out[_FORWARD]), "to-endpoint": int(self.tables.back[_FORWARD])}
        dropped = self.tables.out + self.tables.back
        found |= {v.label: int(dropped[v]) for v in Verdict if v > Verdict.PARK and dropped[v]}
        return found

    @property
    def metrics(self) -> dict[str, int]:
        """The figures that AWS publishes as metrics of a gateway load balancer, by its names."""
        traffic = self.tables.traffic.sum(axis=0)
        states = [target.state for target in self.targets]
        rejected = self.tables.out[_FLOW_EXPIRED] + self.tables.out[_TARGET_FAILED]
        return {
            "ActiveFlowCount": active(self.tables.flows),
            "NewFlowCount": int(self.tables.numbers[_NEW]),
            "RejectedFlowCount": int(
                self.tables.out[_NO_TARGET] + self.tables.out[_FLOW_TABLE_FULL] + rejected
            ),
            "HealthyHostCount": states.count(State.HEALTHY),
            "UnHealthyHostCount": states.count(State.UNHEALTHY),
            "ProcessedPackets": int(traffic[_PACKETS_TO] + traffic[_PACKETS_FROM]),
            "ProcessedBytes": int(traffic[_BYTES_TO] + traffic[_BYTES_FROM]),
            "PacketsDroppedCount_InvalidGeneveTunnel": int(self.tables.back[_TUNNEL]),
            "PacketsDroppedCount_InvalidGwlbEndpointId": int(self.tables.back[_ENDPOINT_ID]),
            "PacketsDroppedCount_InvalidGwlbFlowCookie": int(self.tables.back[_FLOW_COOKIE]),
        }

    @property
    def moved(self) -> int:
        """Flows that were given another target so far."""
        return int(self.tables.numbers[_MOVED])

    def target_rows(self, now: int) -> list[dict[str, Any]]:
        """One row for each target, for people and programs."""
        flows, traffic = self.tables.flows.per_target, self.tables.traffic
        return [
            {
                "id": target.id,
                "address": target.address,
                "state": str(target.state),
                "reason": str(target.reason),
                "since_ms": max(0, now - target.since) // 1_000_000,
                "flows": int(flows[target.row]),
                "packets_out": int(traffic[target.row, _PACKETS_TO]),
                "packets_back": int(traffic[target.row, _PACKETS_FROM]),
            }
            for target in self.targets
        ]
