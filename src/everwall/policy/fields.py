"""The matching half of a compiled policy: for every value of a field the set of rules that it suits.

Each field is cut into the intervals between the ends of what the rules name. All values of an interval suit the same
rules, and many intervals suit the same ones as others: such a set is kept once. Sets are made block by block, 512
places at a time (``match``): within a block only its own rules have ends, a few hundred intervals instead of tens of
thousands, so that no step needs memory of rules times intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from everwall.policy.match import LINE_BITS, LINE_WORDS, TABLE_COLUMNS, TABLES
from everwall.policy.model import AddressRange, Rule, Service

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Entries = Sequence[tuple[int, int]]
"""First and last value of each range that a rule names."""

_ADDRESS_BITS = 32
_SERVICE_BITS = 24
_PORT_BITS = 16
_JUMP_BITS_MAX = 16
"""Of a table's jumps: 65,536 entries are 256 KiB."""
_STEP = 2048
"""Intervals that are laid out at once, one byte and more for each of their 512 places."""
_LINE_BYTES = LINE_WORDS * 8
_SIGN = 1 << 63
_LOW_HALF = (1 << 64) - 1


@dataclass(frozen=True)
class _Place:
    """One bit: a rule, or of a rule with several ranges of source ports the services that have one of them."""

    row: int
    rule: Rule
    services: tuple[Service, ...] | None
    source_ports: tuple[int, int] | None


@dataclass
class _Wanted:
    """What every place asks of one field."""

    entries: Sequence[Entries | None]
    """By place; None where any value will do."""
    negated: Flags
    """Where every value but these will do; of ``any`` that leaves none."""
    allowed: Flags
    """Where the field may match at all."""


@dataclass
class _Sets:
    """Lines and sets so far, each once."""

    blocks: int
    lines: dict[bytes, int] = field(default_factory=dict)
    sets: dict[bytes, int] = field(default_factory=dict)

    def add_lines(self, lines: Numbers) -> npt.NDArray[np.int32]:
        """The number of each of the lines [n, LINE_WORDS]."""
        return _numbered(self.lines, lines)

    def add_sets(self, blocks: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The number of each of the sets [n, blocks]."""
        if self.blocks == 0:
            self.sets.setdefault(b"", 0)
            return np.zeros(len(blocks), np.int32)
        return _numbered(self.sets, blocks)

    def arrays(self) -> tuple[npt.NDArray[np.int32], Numbers]:
        """``blocks`` and ``lines`` of the compiled policy."""
        blocks = np.frombuffer(b"".join(self.sets), np.int32).reshape(len(self.sets), self.blocks)
        lines = _on_lines(len(self.lines))
        lines[:] = np.frombuffer(b"".join(self.lines), np.int64).reshape(-1, LINE_WORDS)
        return blocks.copy(), lines


def _numbered(known: dict[bytes, int], rows: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """The number of each row in ``known``, which learns the new ones."""
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).reshape(-1)
    different, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
    numbers = np.zeros(len(different), np.int32)
    # In the order of their appearance, so that what belongs together stands together.
    for k in np.argsort(first):
        numbers[k] = known.setdefault(different[k].tobytes(), len(known))
    return numbers[inverse.reshape(-1)]


def _on_lines(count: int) -> Numbers:
    """Room for lines that each are one line of the processor's cache."""
    memory = np.zeros(count * _LINE_BYTES + _LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % _LINE_BYTES
    return memory[start : start + count * _LINE_BYTES].view(np.int64).reshape(count, LINE_WORDS)


def compile_fields(rules: Sequence[Rule], zones: dict[str, int]) -> dict[str, Any]:
    """``places`` and all behind it in a ``CompiledPolicy``; ``zones``: the index of each by its name."""
    places = list(_places(rules))
    sets = _Sets(-(-len(places) // LINE_BITS))
    every = np.ones(len(places), np.bool_)
    tables = _Tables(sets)

    for number, attribute in enumerate(("source", "destination")):
        negated = np.array([getattr(place.rule, f"negate_{attribute}") for place in places], np.bool_)
        named = [getattr(place.rule, attribute) for place in places]
        tables.add(_Wanted(_of_family(named, 4), negated, every), number, _ADDRESS_BITS)
        tables.add6(_Wanted(_of_family(named, 6), negated, every))
    for number, family in ((2, 4), (3, 6)):
        services = [_service_entries(place.services, family) for place in places]
        tables.add(_Wanted(services, ~every, every), number, _SERVICE_BITS)
    ports: list[Entries | None] = [
        None if place.source_ports is None else (place.source_ports,) for place in places
    ]
    tables.add(_Wanted(ports, ~every, every), 4, _PORT_BITS)
    zone_sets = _zone_sets(places, zones, sets)

    blocks, lines = sets.arrays()
    return {
        "places": np.array([place.row for place in places], np.int32),
        "zone_sets": zone_sets,
        **tables.arrays(),
        "blocks": blocks,
        "lines": lines,
    }


def _places(rules: Iterable[Rule]) -> Iterable[_Place]:
    for row, rule in enumerate(rules):
        if rule.service is None:
            yield _Place(row, rule, None, None)
            continue
        by_port: dict[tuple[int, int], list[Service]] = {}
        for entry in rule.service:
            by_port.setdefault((entry.first_source_port, entry.last_source_port), []).append(entry)
        for ports, services in by_port.items():
            yield _Place(row, rule, tuple(services), None if ports == (0, 0xFFFF) else ports)


def _of_family(named: Iterable[tuple[AddressRange, ...] | None], family: int) -> list[Entries | None]:
    """The ranges of one family; what is one object for many rules, as a group is, stays one."""
    known: dict[int, Entries | None] = {}
    found = []
    for ranges in named:
        if id(ranges) not in known:
            known[id(ranges)] = (
                None
                if ranges is None
                else tuple((entry.first, entry.last) for entry in ranges if entry.family == family)
            )
        found.append(known[id(ranges)])
    return found


def _service_entries(services: tuple[Service, ...] | None, family: int) -> Entries | None:
    """Protocol and destination ports as one number."""
    if services is None:
        return None
    return tuple(
        (entry.protocol << 16 | entry.first_port, entry.protocol << 16 | entry.last_port)
        for entry in services
        if entry.family in (0, family)
    )


def _zone_sets(places: Sequence[_Place], zones: dict[str, int], sets: _Sets) -> npt.NDArray[np.int32]:
    none = np.zeros(len(places), np.bool_)
    types = [place.rule.rule_type for place in places]
    same = np.array([kind != "interzone" for kind in types], np.bool_)
    other = np.array([kind != "intrazone" for kind in types], np.bool_)

    def wanted(attribute: str, allowed: Flags) -> _Wanted:
        named = [getattr(place.rule, attribute) for place in places]
        entries = [
            None if names is None else tuple((zones[name], zones[name]) for name in names) for names in named
        ]
        return _Wanted(entries, none, allowed)

    values = range(len(zones))
    columns = [
        _sets_of(wanted("from_zones", same), values, sets),
        _sets_of(wanted("from_zones", other), values, sets),
        _sets_of(wanted("to_zones", same | other), values, sets),
    ]
    return np.ascontiguousarray(np.stack(columns, axis=1))


class _Tables:
    """The fields that are found by intervals."""

    def __init__(self, sets: _Sets) -> None:
        self._all = sets
        self._tables = np.zeros((TABLES, TABLE_COLUMNS), np.int64)
        self._jumps: list[Numbers] = []
        self._starts: list[Numbers] = []
        self._sets: list[npt.NDArray[np.int32]] = []
        self._tables6: list[tuple[int, int]] = []
        self._starts6: list[int] = []
        self._sets6: list[npt.NDArray[np.int32]] = []

    def add(self, wanted: _Wanted, number: int, bits: int) -> None:
        """Table ``number``, of a field of so many bits."""
        starts, sets = self._intervals(wanted, 1 << bits)
        begins = np.array(starts, np.int64)
        jump_bits = min(bits, _JUMP_BITS_MAX, len(starts).bit_length())
        shift = bits - jump_bits
        first = np.arange((1 << jump_bits) + 1) << shift
        before = sum(map(len, self._starts))
        self._tables[number] = sum(map(len, self._jumps)), shift
        self._jumps.append(np.searchsorted(begins, first, side="right") - 1 + before)
        self._starts.append(begins)
        self._sets.append(sets)

    def add6(self, wanted: _Wanted) -> None:
        """The next table of IPv6 addresses."""
        starts, sets = self._intervals(wanted, 1 << 128)
        before = len(self._starts6)
        self._tables6.append((before, before + len(starts) - 1))
        self._starts6 += starts
        self._sets6.append(sets)

    def _intervals(self, wanted: _Wanted, values: int) -> tuple[list[int], npt.NDArray[np.int32]]:
        """First value and set of every interval from 0 to ``values`` - 1; no two neighbours have the same set."""
        named = {id(entries): entries for entries in wanted.entries if entries}.values()
        starts = {0} | {first for entries in named for first, _ in entries}
        starts |= {last + 1 for entries in named for _, last in entries}
        starts.discard(values)
        ordered = sorted(starts)
        sets = _sets_of(wanted, ordered, self._all)
        begins = np.flatnonzero(np.diff(sets, prepend=-1))
        return [ordered[k] for k in begins], sets[begins]

    def arrays(self) -> dict[str, Any]:
        halves = [(_flipped(start >> 64), _flipped(start & _LOW_HALF)) for start in self._starts6]
        return {
            "tables": self._tables,
            "jumps": np.concatenate(self._jumps).astype(np.int32),
            "starts": np.concatenate(self._starts),
            "sets": np.concatenate(self._sets),
            "tables6": np.array(self._tables6, np.int64),
            "starts6": np.array(halves, np.int64).reshape(len(halves), 2),
            "sets6": np.concatenate(self._sets6),
        }


def _flipped(half: int) -> int:
    """64 bits as an int64 that compares as they do without sign."""
    return half - _SIGN


def _sets_of(wanted: _Wanted, starts: Sequence[int], sets: _Sets) -> npt.NDArray[np.int32]:
    """The set of each interval; ``starts``, ascending from 0, has every value at which a range begins or has ended."""
    interval = {start: k for k, start in enumerate(starts)}
    known: dict[int, Numbers] = {}
    of_any = np.array([entries is None for entries in wanted.entries], np.bool_)
    blocks = np.zeros((len(starts), sets.blocks), np.int32)
    for block in range(sets.blocks):
        places = slice(block * LINE_BITS, (block + 1) * LINE_BITS)
        spans, columns = _spans(wanted.entries[places], interval, known)
        begins = np.unique(np.concatenate(([0], spans[:, 1], spans[:, 2])))
        begins = begins[begins < len(starts)]
        lines = []
        for covered in _covered(spans, begins, columns.max() + 1):
            suits = ((covered[:, columns] | of_any[places]) ^ wanted.negated[places]) & wanted.allowed[places]
            bits = np.zeros((len(covered), LINE_BITS), np.bool_)
            bits[:, : len(columns)] = suits
            lines.append(sets.add_lines(np.packbits(bits, axis=1, bitorder="little").view(np.int64)))
        at = np.searchsorted(begins, np.arange(len(starts)), side="right") - 1
        blocks[:, block] = np.concatenate(lines)[at]
    return sets.add_sets(blocks)


def _spans(
    entries: Sequence[Entries | None], interval: dict[int, int], known: dict[int, Numbers]
) -> tuple[Numbers, Numbers]:
    """Every range of a block's places as (column, its first interval, one past its last), and the column of each place.

    Places that name one and the same group share a column; column 0 is of those that name nothing.
    """
    numbers: dict[int, int] = {}
    columns = np.zeros(len(entries), np.int64)
    parts = [np.zeros((0, 3), np.int64)]
    for place, ranges in enumerate(entries):
        if not ranges:
            continue
        if id(ranges) not in known:
            ends = [(0, interval[first], interval.get(last + 1, len(interval))) for first, last in ranges]
            known[id(ranges)] = np.array(ends, np.int64)
        if id(ranges) not in numbers:
            numbers[id(ranges)] = len(numbers) + 1
            parts.append(known[id(ranges)] + (numbers[id(ranges)], 0, 0))
        columns[place] = numbers[id(ranges)]
    return np.concatenate(parts), columns


def _covered(spans: Numbers, begins: Numbers, columns: int) -> Iterable[Flags]:
    """Whether some span of a column covers the interval that begins at each of ``begins``: [n, columns], in pieces."""
    first, past = np.searchsorted(begins, spans[:, 1]), np.searchsorted(begins, spans[:, 2])
    open_ = np.zeros(columns, np.int32)
    for step in range(0, len(begins), _STEP):
        change = np.zeros((min(_STEP, len(begins) - step), columns), np.int32)
        for at, sign in ((first - step, 1), (past - step, -1)):
            inside = (at >= 0) & (at < len(change))
            np.add.at(change, (at[inside], spans[inside, 0]), sign)
        change[0] += open_
        np.cumsum(change, axis=0, out=change)
        open_ = change[-1].copy()
        yield change > 0
