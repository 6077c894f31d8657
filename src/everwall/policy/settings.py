"""What a policy says about sessions beside its rules: idle time-outs, and whether a connection has to begin with SYN.

The keys and bounds are those of PAN-OS (``deviceconfig/setting/session``), in a policy file as in a ``bootstrap.xml``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

from everwall.limits import SECOND_NS, STORED_IDLE_NS

_WEEK_S, _LONGEST_S = 604_800, 15_999_999
REJECT_NON_SYN = "tcp-reject-non-syn"


class Timeout(NamedTuple):
    """The key of a time-out, and the most that it may be, in seconds; the least is 1."""

    key: str
    most_s: int


@dataclass(frozen=True)
class SessionSettings:
    """Idle time-outs in seconds; None: nothing was said, and the default stays."""

    tcp: int | None = None
    udp: int | None = None
    icmp: int | None = None
    other: int | None = None
    tcp_init: int | None = None
    tcp_handshake: int | None = None
    tcp_half_closed: int | None = None
    tcp_time_wait: int | None = None
    """After both ends have sent FIN, and after an RST."""
    tcp_unverified_rst: int | None = None
    reject_non_syn: bool | None = None
    """Whether a TCP packet that is not SYN, of a flow that the store does not know, is refused; by default it is."""


DEFAULT_SETTINGS = SessionSettings()


TIMEOUTS = {
    "tcp": Timeout("timeout-tcp", _LONGEST_S),
    "udp": Timeout("timeout-udp", _LONGEST_S),
    "icmp": Timeout("timeout-icmp", _LONGEST_S),
    "other": Timeout("timeout-default", _LONGEST_S),
    "tcp_init": Timeout("timeout-tcpinit", 60),
    "tcp_handshake": Timeout("timeout-tcphandshake", 60),
    "tcp_half_closed": Timeout("timeout-tcp-half-closed", _WEEK_S),
    "tcp_time_wait": Timeout("timeout-tcp-time-wait", 600),
    "tcp_unverified_rst": Timeout("timeout-tcp-unverified-rst", 600),
}
"""By field of ``SessionSettings``."""
SETTING_KEYS = (*(timeout.key for timeout in TIMEOUTS.values()), REJECT_NON_SYN)
assert {item.name for item in fields(SessionSettings)} == {*TIMEOUTS, "reject_non_syn"}


def findings(file: str, settings: SessionSettings) -> Iterator[str]:
    """What is right as it stands and yet surprises."""
    stored_s = STORED_IDLE_NS // SECOND_NS
    for name, timeout in TIMEOUTS.items():
        seconds = getattr(settings, name)
        if seconds is not None and seconds > stored_s:
            yield (
                f"{file}: {timeout.key} {seconds}: the store keeps a silent session for {stored_s} s, so that one that "
                "is silent for longer outlives no firewall"
            )
    if settings.reject_non_syn is False:
        yield (
            f"{file}: {REJECT_NON_SYN} is off: a TCP packet of an unknown connection opens a session where a rule "
            "allows its sender"
        )
