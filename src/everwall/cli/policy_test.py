"""``everwall policy test``: which rule would decide about a session, why none before it does, and who hears of it."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everwall.cli.common import fail
from everwall.config import ConfigError, did_you_mean

if TYPE_CHECKING:
    from everwall.policy.explain import Address, Decision, Question
    from everwall.policy.match import CompiledPolicy
    from everwall.policy.model import Policy

PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1}
WITH_PORTS = ("tcp", "udp")
_NAMES = {"6": "tcp", "17": "udp"}
EPHEMERAL = 49_152
RESET, UNREACHABLE = "RST", "ICMP unreachable"
NEAREST = 5
"""Rules that are shown before the deciding one; there may be thousands."""


def command(
    file: Annotated[Path, typer.Argument(help="The policy.")],
    source: Annotated[str, typer.Option("--src", help="The client's address.")],
    destination: Annotated[str, typer.Option("--dst", help="The server's address.")],
    from_zone: Annotated[
        str | None, typer.Option("--from", help="The client's zone; may be left out where there is but one.")
    ] = None,
    to_zone: Annotated[
        str | None, typer.Option("--to", help="The server's zone; by default the same.")
    ] = None,
    proto: Annotated[str, typer.Option(help="tcp, udp, icmp or the number of a protocol.")] = "tcp",
    dport: Annotated[int | None, typer.Option(min=0, max=65_535, help="The server's port.")] = None,
    sport: Annotated[int, typer.Option(min=0, max=65_535, help="The client's port.")] = EPHEMERAL,
    app: Annotated[
        str | None,
        typer.Option(
            help="The application: gives protocol and port where --dport does not, and no more so far."
        ),
    ] = None,
    accept_ports: Annotated[
        bool,
        typer.Option(
            "--accept-ports-for-applications",
            help="Take a rule that names applications for one that names their standard ports.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Which rule decides about a session, what its ends are told, and by what the nearest rules before it do not match.

    The compiled policy decides, as in a node, and is held against a plain reading of the rules. Ends with 1 when
    the policy or the question is wrong.
    """
    # The compiler of policies brings Numba along: half a second for those who ask for help only.
    from everwall.policy.compile import compile_policy
    from everwall.policy.explain import Question, explain
    from everwall.policy.files import read_policy_file

    try:
        policy = read_policy_file(file, accept_ports)
        compiled, _ = compile_policy(policy)
    except ConfigError as error:
        fail(str(error))
    client, server = _address("--src", source), _address("--dst", destination)
    if client.version != server.version:
        fail(f"--src and --dst are of one family, got {client} and {server}")
    if app is not None and dport is None:
        proto, dport = _standard(app)
    proto = _NAMES.get(proto, proto)
    number = _protocol(proto, client.version)
    if dport is None and proto in WITH_PORTS:
        fail(f"--dport: {proto} has ports; expected the server's")
    begin = _zone(policy, "--from", from_zone)
    asked = Question(
        from_zone=begin,
        to_zone=begin if to_zone is None else _zone(policy, "--to", to_zone),
        source=client,
        destination=server,
        protocol=number,
        sport=sport if proto in WITH_PORTS else 0,
        dport=dport or 0,
    )
    decision = explain(policy, asked)
    row = _row(compiled, asked)
    if row != decision.row:
        fail(f"compiled, rule {row} decides; read plainly, rule {decision.row}: this is a fault of ours")
    facts = {**_facts(policy, decision), "told": _told(compiled, row, asked)}
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    _show(policy, asked, proto, app, facts)


def _address(option: str, text: str) -> Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        fail(f"{option}: {text!r}: expected an address, as 10.0.0.1 or 2001:db8::1")


def _protocol(text: str, version: int) -> int:
    if text == "icmp" and version == 6:
        return 58
    known = text in PROTOCOLS
    if not known and not (text.isascii() and text.isdigit() and int(text) <= 255):
        hint = did_you_mean(text, tuple(PROTOCOLS))
        fail(f"--proto: {text!r}: expected tcp, udp, icmp or a number up to 255{hint}")
    return PROTOCOLS[text] if known else int(text)


def _standard(app: str) -> tuple[str, int | None]:
    """Protocol and first port that an application is known for."""
    from everwall.policy.applications import STANDARD_PORTS

    if app not in STANDARD_PORTS:
        hint = did_you_mean(app, tuple(STANDARD_PORTS))
        fail(f"--app: {app!r}: its standard ports are not known{hint}; expected --proto and --dport with it")
    first = STANDARD_PORTS[app][0]
    names = {number: name for name, number in PROTOCOLS.items()}
    proto = names.get(first.protocol, str(first.protocol))
    return proto, first.first_port if proto in WITH_PORTS else None


def _zone(policy: Policy, option: str, name: str | None) -> str:
    zones = tuple(dict.fromkeys(zone.name for zone in policy.zones))
    if not policy.mapped:
        zones = tuple(dict.fromkeys((policy.default_zone, *zones)))
    if name is None and (not policy.mapped or len(zones) == 1):
        return zones[0]
    if name is None:
        fail(f"{option}: expected one of the zones {', '.join(zones)}")
    if name not in zones:
        fail(f"{option}: {name!r}: expected one of the zones {', '.join(zones)}{did_you_mean(name, zones)}")
    return name


def _row(compiled: CompiledPolicy, asked: Question) -> int:
    """The deciding row as a node finds it."""
    from everwall.policy.match import match, zone_id

    index = {int(number): k for k, number in enumerate(compiled.zones)}
    numbers = [-1 if name is None else index[zone_id(name)] for name in (asked.from_zone, asked.to_zone)]
    numbers.append(asked.source.version)
    for address in (int(asked.source), int(asked.destination)):
        for half in (address >> 64, address & (1 << 64) - 1):
            numbers.append(half - (1 << 64) if half >> 63 else half)
    numbers += [asked.protocol, asked.sport, asked.dport, 0]
    return int(match(compiled, *numbers))


def _told(compiled: CompiledPolicy, row: int, asked: Question) -> dict[str, dict[str, str | None]] | None:
    """What client and server of a refused session hear, of a ``new`` one and of a ``live`` one; None where it is
    allowed."""
    from everwall.policy import match

    if compiled.rules[row, match.RULE_ACTION] == match.ACTION_ALLOW:
        return None
    bits = int(compiled.rules[row, match.RULE_ANSWER])
    is_tcp = asked.protocol == PROTOCOLS["tcp"]
    client = server = None
    if _is_host(asked.source) and _is_host(asked.destination):
        if is_tcp and bits & match.ANSWER_RESET_CLIENT:
            client = RESET
        elif bits & (match.ANSWER_UNREACHABLE_TCP if is_tcp else match.ANSWER_UNREACHABLE):
            client = UNREACHABLE
        if is_tcp and bits & match.ANSWER_RESET_SERVER:
            server = RESET
    # Of a new session nothing came to the server.
    return {"new": {"client": client, "server": None}, "live": {"client": client, "server": server}}


def _is_host(address: Address) -> bool:
    """Whether an address is that of one host on a network; nothing else is answered, as ``wire.answer`` has it."""
    first = int(address) >> 24
    return (
        0 < first < 224 and first != 127
        if address.version == 4
        else int(address) > 1 and not address.is_multicast
    )


def _facts(policy: Policy, decision: Decision) -> dict[str, Any]:
    rule = decision.rule
    return {
        "rule": rule.name,
        "action": rule.action,
        "line": getattr(rule, "line", None),
        "file": policy.file,
        "before": len(decision.misses),
        "nearest": [
            {"rule": miss.rule.name, "line": miss.rule.line, "does_not_match": list(miss.fields)}
            for miss in decision.nearest(NEAREST)
        ],
    }


def _show(policy: Policy, asked: Question, proto: str, app: str | None, facts: dict[str, Any]) -> None:
    ends = [str(asked.source), str(asked.destination)]
    if proto in WITH_PORTS:
        ends = [
            f"{f'[{end}]' if ':' in end else end}:{port}"
            for end, port in zip(ends, (asked.sport, asked.dport), strict=True)
        ]
    typer.echo(f"{proto} {ends[0]} to {ends[1]}, from zone {asked.from_zone} to zone {asked.to_zone}")
    if app is not None:
        typer.echo(
            f"application {app}: rules are matched by addresses and ports, and not by what is said there"
        )
    place = f" ({policy.file}:{facts['line']})" if facts["line"] else ""
    typer.echo(f"{facts['action']}, by rule {facts['rule']}{place}")
    if facts["told"] is not None:
        new, live = (_sentence(facts["told"][which]) for which in ("new", "live"))
        typer.echo(f"told: {new}" + (f"; of a live session: {live}" if live != new else ""))
    if not facts["before"]:
        return
    shown = len(facts["nearest"])
    title = "rule before it does" if facts["before"] == 1 else f"{facts['before']:,} rules before it do"
    typer.echo(f"{title} not match" + (f"; the nearest {shown}:" if shown < facts["before"] else ":"))
    for miss in facts["nearest"]:
        typer.echo(f"  {miss['rule']} (line {miss['line']}): not its {', '.join(miss['does_not_match'])}")


def _sentence(told: dict[str, str | None]) -> str:
    said = [f"{what} to the {end}" for end, what in told.items() if what is not None]
    return " and ".join(said) or "nothing"
