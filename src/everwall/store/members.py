"""What the nodes of a cluster tell each other through the store: who they are and which policy they have.

One hash holds a field for each node, sealed, with an expiry of its own: whoever does not speak for MEMBER_TTL_S has
gone. Each node says its own and hears all others in one call.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from everwall.limits import MEMBER_BYTES_MAX, MEMBER_TTL_S, MEMBERS_MAX
from everwall.store import keys
from everwall.store.lua import Client, Script
from everwall.store.sealing import TAG_BYTES, Seal

_MEET = Script("meet")
_TEXT_MAX = 120
"""Characters of each fact: what is longer is cut, so that a member always fits."""


@dataclass(frozen=True)
class Member:
    """A node and its policy, as it says itself."""

    node: str
    policy: str
    """The name of its file."""
    checksum: str
    """Of everything the policy means."""
    release: str
    """Everwall's version there: another release may come to another checksum."""


def members_key(prefix: str) -> bytes:
    """The hash in which the nodes are."""
    return keys.shared_key(prefix, "nodes")


class Members:
    """One node's view of the others."""

    def __init__(self, secrets: Sequence[bytes], prefix: str, owner: int) -> None:
        self._key = members_key(prefix)
        self.use_secrets(secrets)
        self._field = b"%08x" % owner
        self.others: tuple[Member, ...] = ()
        self.refused = 0
        """Entries that nobody with the secret wrote, in the last answer."""

    def use_secrets(self, secrets: Sequence[bytes]) -> None:
        """Seal with the first of these and believe each, from now on."""
        self._seal = Seal(secrets, b"everwall member")

    def meet(self, client: Client, own: Member) -> None:
        """Say what this node has, hear what the others have. Raises redis.RedisError."""
        told = _MEET(
            client,
            [self._key],
            [self._field, self._seal.close(self._field, _written(own)), MEMBER_TTL_S, MEMBERS_MAX],
        )
        others = {
            field: self._read(field, stored)
            for field, stored in zip(told[::2], told[1::2], strict=True)
            if field != self._field
        }
        self.refused = sum(member is None for member in others.values())
        self.others = tuple(sorted((m for m in others.values() if m is not None), key=lambda m: m.node))

    def leave(self, client: Client) -> None:
        """This node is no longer there. Raises redis.RedisError."""
        client.hdel(self._key, self._field)

    def _read(self, field: bytes, stored: bytes) -> Member | None:
        text = self._seal.open(field, stored) if len(stored) <= TAG_BYTES + MEMBER_BYTES_MAX else None
        return None if text is None else _member(text)


def differing(own: Member, others: Iterable[Member]) -> tuple[Member, ...]:
    """Those that may decide otherwise about a session of this node's."""
    return tuple(other for other in others if other.checksum != own.checksum)


def by_checksum(members: Iterable[Member]) -> dict[str, list[Member]]:
    """Nodes that have one policy, together; the most of them first."""
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(member.checksum, []).append(member)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def unsealed(told: dict[bytes, bytes], now_s: int) -> list[Member]:
    """Members as they stand in the hash, for one who has not the secret: believed as they are."""
    found = []
    for stored in told.values():
        if int.from_bytes(stored[:4], "big") > now_s and (member := _member(stored[4 + TAG_BYTES :])):
            found.append(member)
    return sorted(found, key=lambda member: member.node)


def _written(member: Member) -> bytes:
    facts = {name: value[:_TEXT_MAX] for name, value in asdict(member).items()}
    text = json.dumps(list(facts.values()), separators=(",", ":"), ensure_ascii=False).encode(
        errors="replace"
    )
    return text if len(text) <= MEMBER_BYTES_MAX else _written_short(member)


def _written_short(member: Member) -> bytes:
    """Names of other alphabets, each character several bytes long."""
    return json.dumps(
        [member.node[:30], member.policy[-30:], member.checksum[:16], member.release[:16]],
        separators=(",", ":"),
        ensure_ascii=False,
    ).encode(errors="replace")


def _member(text: bytes) -> Member | None:
    """A later release may say more behind what is known here."""
    try:
        facts = json.loads(text)
    except ValueError:
        return None
    if not isinstance(facts, list) or len(facts) < 4 or not all(isinstance(f, str) for f in facts[:4]):
        return None
    return Member(*(_shown(fact) for fact in facts[:4]))


def _shown(fact: str) -> str:
    """As it may go to a terminal and a log."""
    return "".join(character for character in fact[:_TEXT_MAX] if character.isprintable())
