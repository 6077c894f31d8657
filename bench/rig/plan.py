"""What is measured, in which order, and what is kept of it."""

from __future__ import annotations

import statistics
from typing import Any

from bench import bounds
from bench.rig import measures
from bench.rig.contenders import Contender, Rig
from bench.rig.frames import Kind
from bench.rig.generator import Traffic
from bench.rig.measures import FEW, Openings, Round, Rounds
from bench.rig.network import wait_for

SANE = {"bounce_pps": 2_500_000, "kernel_pps": 300_000, "kernel_cps": 75_000}
MANY = 1_000_000
ENGINE_SESSIONS = 3_000_000
SIZES = (64, 512, 1400)
"""Of inner packets, bytes."""
FLOOD_RATE = 1_000_000.0
FLOOD_SHARE = 0.3
"""Of saturation: what established flows are offered beside the flood."""
BOUNDS = {
    "cutthrough_vs_bounce": (">=", 0.65),
    "cutthrough_1m_vs_bounce": (">=", 0.35),
    "cutthrough_ns": ("<=", 100),
    "engine_xdp_vs_kernel": (">=", 0.75),
    "cps_vs_kernel": (">=", 0.8),
    "cps_with_store_vs_kernel": (">=", 0.6),
    "resiliency_throughput_tax": ("<=", 0.10),
    "resiliency_latency_us": ("<=", 30),
    "node_bytes_per_session": ("<=", 256),
    "flood_established_loss": ("<=", 0.01),
}
"""What the project holds its figures against."""
_WARM_S_MAX = 20.0
_DRAIN_S = 2.0
_FLOOD_STEPS, _FLOOD_TRIALS, _FLOOD_TRIAL_S = 4, 3, 0.3
_FLOOD_MARGIN, _FLOOD_EXCESS = 1.01, 1.03
_CACHES_S = 0.25
_REFRESHES_PER_S = 1000
"""Due in the measurement of resiliency: what 1.2 million TCP sessions need, each every twenty minutes."""

BOUNCE, SINK, KERNEL = "bounce", "sink", "kernel"
CUT, CUT_MANY = "cut-through", "cut-through 1M"
ENGINE, RAW, UDP = "engine over AF_XDP", "engine over raw", "engine over UDP"


class Bench:
    """One run."""

    def __init__(self, rig: Rig, rounds: int, seconds: float) -> None:
        self.rig, self.rounds, self.seconds = rig, rounds, seconds
        self.details: dict[str, Any] = {}
        self._openings = Openings(MANY)
        self._found: dict[str, float | None] = {}

    # The contenders ---------------------------------------------------------------------------------------

    def prepare(self, *, sockets: bool) -> None:
        """Everything that is compared, standing and with its sessions."""
        rig = self.rig
        rig.add_node(CUT_MANY, "xdp", MANY, inserted=MANY, cut_through=True)
        rig.add_bounce(BOUNCE)
        rig.add_bounce(SINK, "sink")
        rig.add_forwarding(KERNEL)
        rig.add_node(CUT, "xdp", FEW, cut_through=True, with_store=True)
        rig.add_node(ENGINE, "xdp", ENGINE_SESSIONS, with_store=True)
        if sockets:
            rig.add_node(RAW, "raw", ENGINE_SESSIONS)
            rig.add_node(UDP, "udp", ENGINE_SESSIONS)
        for name, why in rig.missing.items():
            print(f"{name}: not available here: {why.strip().splitlines()[-1]}")
        for contender in self._present(KERNEL, CUT, ENGINE, RAW, UDP, CUT_MANY):
            self._set_up(contender, _flows(contender))

    def _present(self, *names: str) -> list[Contender]:
        return [self.rig.contenders[name] for name in names if name in self.rig.contenders]

    def _get(self, name: str) -> Contender | None:
        return self.rig.contenders.get(name)

    def _set_up(self, contender: Contender, flows: int) -> None:
        if contender.program is not None:
            contender.ask("resiliency", on=0)
        there = flows if flows == MANY else measures.set_up(self.rig, contender, flows)
        if contender.name in (CUT, CUT_MANY):
            self._warm_up(contender, flows)
        if there < flows * 0.999:
            print(f"{contender.name}: only {there} of {flows} sessions could be set up")

    def _warm_up(self, contender: Contender, flows: int) -> None:
        """Traffic until every session is offloaded.

        The engine has to see both directions of each; of those that were inserted it learns the windows for ten
        seconds first, as after any takeover.
        """

        def offloaded() -> int:
            return int(contender.ask("counters")["counters"]["offloaded"])

        traffic = Traffic(flows=flows)
        with contender.measured():
            self.rig.generator.circle(contender.route, traffic, _WARM_S_MAX, lambda: offloaded() >= flows)
        if (there := offloaded()) < flows:
            print(f"{contender.name}: {there} of {flows} sessions are offloaded")

    # Everything -------------------------------------------------------------------------------------------

    def measure(self, sizes: list[int]) -> None:
        """All measurements; packets of ``sizes``, where the size matters."""
        full = len(sizes) > 1
        self._generator()
        self._full_speed()
        for size in sizes:
            self._saturation(size)
            if full:
                self._steady(size)
        self._connections()
        self._program_time()
        self._latency()
        self._resiliency()
        self._memory()
        self._flood()

    def _generator(self) -> None:
        """How fast the generator alone is: nothing comes back."""
        count = self.rig.generator.run(self.rig.contenders[SINK].route, Traffic(), self.seconds)
        self.details["generator_pps"] = count.offered
        print(f"The generator alone: {count.offered:,.0f} packets/s")

    def _saturation(self, size: int) -> None:
        """Everybody always busy and never flooded."""
        contenders = self._present(BOUNCE, CUT, CUT_MANY, ENGINE, RAW, UDP, KERNEL)
        rounds = measures.alternate(
            self.rounds,
            {
                c.name: lambda c=c: measures.saturate(self.rig, c, self.seconds, _flows(c), size)  # type: ignore[misc]
                for c in contenders
            },
        )
        self._packets(f"Saturation, {size} bytes inside, packets going round", f"saturation {size}", rounds)
        self._drops(contenders)
        if size == 64:
            self._keep("kernel_pps", rounds, KERNEL)
            self._keep("engine_xdp_pps", rounds, ENGINE)
            self._keep("engine_xdp_vs_kernel", rounds, ENGINE, KERNEL)
            self._keep("bounce_circling_pps", rounds, BOUNCE)
            self._keep("cutthrough_circling_pps", rounds, CUT)
            self._keep("cutthrough_vs_bounce_circling", rounds, CUT, BOUNCE)
            self._keep("cutthrough_1m_vs_bounce_circling", rounds, CUT_MANY, BOUNCE)

    def _full_speed(self) -> None:
        """What is about as fast as the generator, beside it: it sends as fast as it can, and much of it in vain."""
        rounds = measures.alternate(
            self.rounds,
            {
                c.name: lambda c=c: measures.full_speed(self.rig, c, self.seconds, _flows(c))  # type: ignore[misc]
                for c in self._present(BOUNCE, CUT, CUT_MANY)
            },
        )
        self._packets("The generator at full speed, 64 bytes inside", "full speed", rounds)
        self._keep("bounce_pps", rounds, BOUNCE)
        self._keep("cutthrough_pps", rounds, CUT)
        self._keep("cutthrough_vs_bounce", rounds, CUT, BOUNCE)
        self._keep("cutthrough_1m_vs_bounce", rounds, CUT_MANY, BOUNCE)

    def _packets(self, title: str, key: str, rounds: Rounds) -> None:
        base = KERNEL if KERNEL in rounds else BOUNCE
        table = Table(
            f"{title}, medians of {self.rounds} rounds",
            ["packets/s", "of-bounce", f"of-{base}", "CPU-ns", "busy", "loss", "refused"],
        )
        for name, of in rounds.items():
            table.row(
                name,
                measures.median(of),
                measures.ratio(rounds, name, BOUNCE),
                measures.ratio(rounds, name, base),
                statistics.median(each.ns_per_packet for each in of),
                statistics.median(each.busy for each in of),
                statistics.median(each.count.loss() for each in of),
                sum(each.count.others for each in of),
            )
        self.details[key] = table.show()

    def _drops(self, contenders: list[Contender]) -> None:
        """What the nodes say of packets that they did not forward."""
        for contender in contenders:
            if contender.program is None:
                continue
            counters = contender.ask("counters")
            self.details.setdefault("counters", {})[contender.name] = counters

    def _steady(self, size: int) -> None:
        table = Table(f"Steady state, {size} bytes inside, loss < 0.1 %", ["packets/s"])
        for contender in self._present(BOUNCE, CUT, CUT_MANY, ENGINE, RAW, UDP, KERNEL):
            table.row(contender.name, measures.steady(self.rig, contender, _flows(contender), size))
        self.details[f"steady {size}"] = table.show()

    # Connections ------------------------------------------------------------------------------------------

    def _connections(self) -> None:
        """New connections per second, the engine's without and with the store."""
        kernel, engine = self.rig.contenders[KERNEL], self._get(ENGINE)
        acts = {KERNEL: lambda: self._open_kernel(kernel)}
        if engine is not None:
            acts[ENGINE] = lambda: self._open_engine(engine, False)
            acts[f"{ENGINE}, store"] = lambda: self._open_engine(engine, True)
        rounds = measures.alternate(self.rounds, acts)
        self.rig.forget_connections()
        self._set_up(kernel, FEW)
        table = Table(
            f"New connections, medians of {self.rounds} rounds",
            ["connections/s", "of-kernel", "CPU-ns/connection", "busy", "loss"],
        )
        for name, of in rounds.items():
            table.row(
                name,
                measures.median(of),
                measures.ratio(rounds, name, KERNEL),
                statistics.median(each.cpu_ns / max(1, each.amount * each.count.seconds) for each in of),
                statistics.median(each.busy for each in of),
                statistics.median(each.count.loss() for each in of),
            )
        self.details["connections"] = table.show()
        self._keep("kernel_cps", rounds, KERNEL)
        self._keep("engine_cps", rounds, ENGINE)
        self._keep("cps_vs_kernel", rounds, ENGINE, KERNEL)
        self._keep("cps_with_store_vs_kernel", rounds, f"{ENGINE}, store", KERNEL)

    def _open_kernel(self, kernel: Contender) -> Round:
        self.rig.forget_connections()
        found = measures.open_connections(self.rig, kernel, self._openings, self.seconds)
        opened = int(found.count.returned[Kind.ACK])
        entries = self.rig.conntrack_entries()
        if entries < opened:
            raise RuntimeError(f"conntrack holds {entries} connections, {opened} seemed to be open")
        return found

    def _open_engine(self, engine: Contender, store: bool) -> Round:
        """With the store, a connection counts only if its record was acknowledged by the end of the round."""
        if store:
            self._settle(engine)
        engine.ask("resiliency", on=int(store))
        before = self._created(engine)
        found = measures.open_connections(self.rig, engine, self._openings, self.seconds)
        after = self._created(engine)
        engine.ask("resiliency", on=0)
        opened = int(found.count.returned[Kind.ACK])
        if after["created"] - before["created"] < opened:
            raise RuntimeError(f"{opened} connections seemed to be open, the engine knows of fewer: {after}")
        if store:
            written = after["written"] - before["written"]
            found = Round(found.count, found.cpu_ns, min(found.amount, written / found.count.seconds))
        return found

    def _created(self, engine: Contender) -> dict[str, int]:
        counters = engine.ask("counters")["counters"]
        return {"created": counters["sessions-created"], "written": engine.ask("store").get("written", 0)}

    def _settle(self, engine: Contender) -> None:
        """Wait until the store has what was given to it."""

        def settled() -> bool:
            status = engine.ask("store")
            return bool(status["connected"]) and status["queue"] + status["pipelines"] == 0

        wait_for("the store takes what is waiting", settled, _DRAIN_S * 5)

    # Time -------------------------------------------------------------------------------------------------

    def _program_time(self) -> None:
        """Nanoseconds by BPF_PROG_TEST_RUN; making the packets is in it."""
        table = Table("BPF_PROG_TEST_RUN, ns with the making of packets", ["one-session", "cycling"])
        for contender in self._present(SINK, BOUNCE, CUT, CUT_MANY):
            program = self.rig.program_of(contender)
            times = [
                self.rig.generator.nanoseconds(contender.route, program, n) for n in (1, _flows(contender))
            ]
            table.row(contender.name, *times)
            if contender.name == CUT:
                self._found["cutthrough_ns"] = times[1]
        self.details["program_ns"] = table.show()

    def _latency(self) -> None:
        contenders = self._present(BOUNCE, CUT, CUT_MANY, ENGINE, RAW, UDP, KERNEL)
        rounds = measures.alternate(
            3,
            {c.name: lambda c=c: measures.latency(self.rig, c, self.seconds) for c in contenders},  # type: ignore[misc]
        )
        table = Table("Latency at 50,000 packets/s, us", ["p50", "p99", "CPU-ns"])
        for name, of in rounds.items():
            table.row(
                name,
                measures.median(of),
                statistics.median(each.count.latency_us(0.99) for each in of),
                statistics.median(each.ns_per_packet for each in of),
            )
        self.details["latency"] = table.show()

    # Resiliency, memory, floods ---------------------------------------------------------------------------

    def _resiliency(self) -> None:
        """What the store costs: of twenty packets one opens a session, and refreshes are due."""
        engine = self._get(ENGINE)
        if engine is None:
            return
        for what, rate in (("throughput", 0.0), ("latency", measures.LATENCY_RATE)):
            rounds = measures.alternate(
                self.rounds if rate else 3 * self.rounds + 2,  # two rates that hardly differ
                {
                    "off": lambda rate=rate: self._mixed(engine, rate, False),  # type: ignore[misc]
                    "on": lambda rate=rate: self._mixed(engine, rate, True),  # type: ignore[misc]
                },
            )
            off, on = measures.median(rounds["off"]), measures.median(rounds["on"])
            if rate:
                self._found["resiliency_latency_us"] = on - off
            else:
                self._found["resiliency_throughput_tax"] = 1 - measures.ratio(rounds, "on", "off")
            print(f"Resiliency, {what}: off {off:,.1f}, on {on:,.1f}")
            self.details[f"resiliency {what}"] = {
                name: [each.amount for each in of] for name, of in rounds.items()
            }
        engine.ask("resiliency", on=0)

    def _mixed(self, engine: Contender, rate: float, store: bool) -> Round:
        if store:
            self._settle(engine)
        # Both pass over the whole table, with the store and without, and what follows at once does not count: until
        # the caches are warm again, which takes a quarter of a second.
        engine.ask("resiliency", on=int(store))
        engine.ask("refresh", count=int(_REFRESHES_PER_S * (_CACHES_S + self.seconds)))
        measures.mixed(self.rig, engine, self._openings, _CACHES_S, rate)
        return measures.mixed(self.rig, engine, self._openings, self.seconds, rate)

    def _memory(self) -> None:
        for contender in self._present(CUT_MANY, ENGINE):
            memory = contender.ask("memory")
            each = memory["bytes"] / memory["sessions"]
            self.details.setdefault("memory", {})[contender.name] = {**memory, "bytes_per_session": each}
            print(f"Memory of {contender.name}: {each:.1f} bytes for each of {memory['sessions']:,} sessions")
            self._found.setdefault("node_bytes_per_session", each)

    def _flood(self) -> None:
        """Strays and malformed packets beside established flows; the node asks the store about the strays.

        The bare bounce gets the same packets in turns with it: what it loses, wire and machine lose by themselves.
        Comes last: it fills the processor, so that the other nodes, which age their sessions, have to go before.
        """
        cut = self._get(CUT)
        if cut is None:
            return
        self.rig.end_others(cut)
        self._warm_up(cut, FEW)
        self._settle(cut)
        cut.ask("resiliency", on=1)
        established = FLOOD_SHARE * (self._found["cutthrough_pps"] or 0.0)
        more = self._flood_asked(cut, established)
        asked = cut.ask("counters")["counters"]["lookups"]
        found = measures.alternate(
            2 * self.rounds + 1,  # most lose next to nothing, and some much
            {
                each.name: lambda each=each: measures.flooded(  # type: ignore[misc]
                    self.rig, each, more * established, more * FLOOD_RATE, self.seconds
                )
                for each in self._present(CUT, BOUNCE)
            },
        )
        rounds, bare = found[CUT], found.get(BOUNCE)
        asked = cut.ask("counters")["counters"]["lookups"] - asked
        cut.ask("resiliency", on=0)
        table = Table(
            "Established flows beside a flood", ["offered/s", "flood/s", "loss", "behind-s", "busy"]
        )
        for name, of in found.items():
            for number, each in enumerate(of):
                count = each.count
                rates = count.sent_rate(*measures.ESTABLISHED), count.sent_rate(*measures.FLOOD)
                table.row(f"{name}, {number + 1}", *rates, each.amount, count.behind_s, each.busy)
        counts = [each.count for each in rounds]
        self._found["flood_pps"] = statistics.median(each.sent_rate(*measures.FLOOD) for each in counts)
        self._found["flood_established_pps"] = statistics.median(
            each.sent_rate(*measures.ESTABLISHED) for each in counts
        )
        self._found["flood_established_loss"] = measures.median(rounds)
        self._found["calibration_flood_loss_of_bounce"] = measures.median(bare) if bare else None
        self._found["flood_behind_s"] = statistics.median(each.behind_s for each in counts)
        self.details["flood"] = {**table.show(), "asked_for": more, "lookups": asked}
        print(f"Of the strays {asked / sum(each.seconds for each in counts):,.0f}/s were asked of the store")
        self._drops([cut])

    def _flood_asked(self, cut: Contender, established: float) -> float:
        """By how much more has to be asked for so that the whole flood really leaves.

        The generator's receiver goes before it on their processor, and not all of the time can be made up for.
        """
        more = 1.0
        for _ in range(_FLOOD_STEPS):
            trials = [
                measures.flooded(self.rig, cut, more * established, more * FLOOD_RATE, _FLOOD_TRIAL_S)
                for _ in range(_FLOOD_TRIALS)
            ]
            sent = statistics.median(each.count.sent_rate(*measures.FLOOD) for each in trials)
            if FLOOD_RATE <= sent <= _FLOOD_EXCESS * FLOOD_RATE:
                return more
            more *= FLOOD_RATE * _FLOOD_MARGIN / sent
        print(f"The flood asked for is not sure to be {FLOOD_RATE:,.0f} packets/s")
        return more

    # The result -------------------------------------------------------------------------------------------

    def _keep(self, key: str, rounds: Rounds, name: str, base: str | None = None) -> None:
        if name not in rounds:
            self._found[key] = None
        elif base is None:
            self._found[key] = measures.median(rounds[name])
        else:
            self._found[key] = measures.ratio(rounds, name, base)

    def figures(self) -> dict[str, Any]:
        """What is written: the figures by name, and everything that was seen."""
        low = {key: self._found[key] for key, least in SANE.items() if (self._found.get(key) or 0.0) < least}
        why = ", ".join(f"{key} is {value:,.0f}, not {SANE[key]:,}" for key, value in low.items())
        print()
        for key, value in self._found.items():
            print(f"{key:32}{'not available' if value is None else f'{value:>16,.3f}'}")
        held = bounds.held_against(BOUNDS, self._found)
        bounds.show(held)
        return {
            "sane": not low,
            "why_not_sane": why,
            **dict.fromkeys(FIGURES),
            **self._found,
            "bounds": held,
            "missing": self.rig.missing,
            "machine": bounds.machine(),
            "details": self.details,
        }


FIGURES = (
    *("bounce_pps", "cutthrough_pps", "cutthrough_vs_bounce", "cutthrough_1m_vs_bounce", "cutthrough_ns"),
    *("kernel_pps", "engine_xdp_pps", "engine_xdp_vs_kernel", "kernel_cps", "engine_cps", "cps_vs_kernel"),
    *("cps_with_store_vs_kernel", "resiliency_throughput_tax", "resiliency_latency_us"),
    *("node_bytes_per_session", "flood_pps", "flood_established_pps", "flood_established_loss"),
    *("calibration_flood_loss_of_bounce", "flood_behind_s"),
)


def _flows(contender: Contender) -> int:
    return MANY if contender.name == CUT_MANY else FEW


class Table:
    """Rows of numbers under names, printed as they come."""

    def __init__(self, title: str, columns: list[str]) -> None:
        self._columns = columns
        self._rows: dict[str, dict[str, float]] = {}
        print(f"\n{title}")
        print(f"{'':28}" + "".join(f"{name.replace('-', ' '):>19}" for name in columns))

    def row(self, name: str, *values: float) -> None:
        """One row; small numbers get decimals."""
        self._rows[name] = dict(zip(self._columns, map(float, values), strict=True))
        print(
            f"{name:28}" + "".join(f"{v:>19,.3f}" if abs(v) < 100 else f"{v:>19,.0f}" for v in values),
            flush=True,
        )

    def show(self) -> dict[str, dict[str, float]]:
        """All rows by name."""
        return self._rows
