"""What a policy says about sessions: each key within its bounds, what surprises said, nothing said as usual."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from everwall.config import ConfigError
from everwall.engine import EngineConfig, make_state, use_settings
from everwall.limits import SECOND_NS
from everwall.policy.checksum import policy_checksum
from everwall.policy.match import allow_all
from everwall.policy.rules import read_policy
from everwall.policy.settings import REJECT_NON_SYN, TIMEOUTS, SessionSettings
from everwall.session import state
from everwall.session.state import default_timeouts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "policy.md"
ALL = {
    "timeout-tcp": 1,
    "timeout-udp": 15_999_999,
    "timeout-icmp": 3,
    "timeout-default": 4,
    "timeout-tcpinit": 60,
    "timeout-tcphandshake": 6,
    "timeout-tcp-half-closed": 604_800,
    "timeout-tcp-time-wait": 600,
    "timeout-tcp-unverified-rst": 9,
}


def read(section: str) -> SessionSettings:
    return read_policy("p.yaml", f"sessions: {section}").settings


def test_every_key_is_taken_and_nothing_said_is_nothing_changed() -> None:
    lines = ", ".join(f"{key}: {seconds}" for key, seconds in ALL.items())
    assert read(f"{{{lines}, tcp-reject-non-syn: yes}}") == SessionSettings(
        tcp=1,
        udp=15_999_999,
        icmp=3,
        other=4,
        tcp_init=60,
        tcp_handshake=6,
        tcp_half_closed=604_800,
        tcp_time_wait=600,
        tcp_unverified_rst=9,
        reject_non_syn=True,
    )
    assert read("") == read("{}") == SessionSettings()


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ("{timeout-tcp: 0}", "sessions.timeout-tcp: '0': expected seconds from 1 to 15999999"),
        ("{timeout-tcpinit: 61}", "sessions.timeout-tcpinit: '61': expected seconds from 1 to 60"),
        ("{timeout-udp: 1.5}", "sessions.timeout-udp: '1.5': expected seconds from 1 to 15999999"),
        ("{tcp-reject-non-syn: 1}", "sessions.tcp-reject-non-syn: '1': expected true or false"),
        ("{timeout-tpc: 5}", "did you mean timeout-tcp?"),
        ("[timeout-tcp]", "sessions: 'a list of 1': expected a mapping"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(section: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(section)
    assert str(caught.value).startswith("p.yaml:1:")
    assert complaint in str(caught.value)


def test_what_surprises_is_said() -> None:
    told = read_policy("p.yaml", "sessions: {timeout-tcp: 3601, timeout-udp: 3600, tcp-reject-non-syn: no}")
    long, lenient = (each for each in told.warnings if "timeout-" in each or "tcp-" in each)
    assert long.startswith("p.yaml: timeout-tcp 3601: the store keeps a silent session for 3600 s")
    assert "tcp-reject-non-syn is off" in lenient


def test_nodes_that_keep_sessions_differently_have_different_policies() -> None:
    sums = {
        policy_checksum(read_policy("p.yaml", f"sessions: {section}"), 0)
        for section in ("{}", "{timeout-tcp: 60}", "{tcp-reject-non-syn: no}")
    }
    assert len(sums) == 3


def test_an_engine_begins_with_them_and_goes_back_to_what_is_usual() -> None:
    sessions = make_state(
        EngineConfig(max_sessions=64, settings=SessionSettings(udp=7, reject_non_syn=False)), allow_all()
    ).sessions
    usual = default_timeouts()
    (changed,) = (sessions.timeouts != usual).nonzero()
    assert [int(sessions.timeouts[which]) for which in changed] == [7 * SECOND_NS]
    assert sessions.words[state.ADMIT_NON_SYN] == 1
    use_settings(sessions, SessionSettings(reject_non_syn=True))
    assert sessions.timeouts.tolist() == usual.tolist()
    assert sessions.words[state.ADMIT_NON_SYN] == 0


def test_the_page_has_every_key_with_its_bounds() -> None:
    rows = re.findall(r"^\| `(timeout-[a-z-]+)` \| 1 to (\d+) \| \d+ \|", PAGE.read_text(), re.MULTILINE)
    assert {key: int(most) for key, most in rows} == dict(TIMEOUTS.values())
    assert f"| `{REJECT_NON_SYN}` | `true`, `false` | `true` |" in PAGE.read_text()
