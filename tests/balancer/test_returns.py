"""Whatever a target sends, nothing but the flow's own packet gets through the return check."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everwall.verdict import Verdict
from tests.balancer.gateways import ENDPOINT, Story, cookie_of, returned
from tests.packets import udp

pytestmark = pytest.mark.kernel

INNER = udp("10.1.0.1", "10.2.0.2", 1000, 53, b"payload")
ADDRESSES_AND_PORTS = slice(12, 24)
CHECKS = {
    Verdict.INVALID_GENEVE_TUNNEL,
    Verdict.INVALID_GWLB_ENDPOINT_ID,
    Verdict.INVALID_GWLB_FLOW_COOKIE,
}


@settings(max_examples=300)
@given(
    changes=st.lists(st.tuples(st.integers(0, 74), st.integers(0, 255)), max_size=3),
    length=st.integers(0, 75),
    cut=st.booleans(),
)
def test_altered_return_goes_on_only_as_a_packet_of_its_flow(changes, length, cut):
    story = _story()
    name, outer = story.sent(INNER)
    packet = bytearray(returned(INNER, outer))
    for at, value in changes:
        packet[at] = value
    sent = bytes(packet[:length] if cut else packet)
    verdict, out = story.back(name, sent)
    if verdict is not Verdict.FORWARD:
        assert verdict in CHECKS
        return
    assert out[ADDRESSES_AND_PORTS] == INNER[ADDRESSES_AND_PORTS]
    assert ENDPOINT.to_bytes(8, "big") in sent
    assert cookie_of(outer).to_bytes(4, "big") in sent


_STORIES: list[Story] = []


def _story() -> Story:
    """One gateway for all examples: its table is not what is tried here."""
    if not _STORIES:
        _STORIES.append(Story())
    return _STORIES[0]
