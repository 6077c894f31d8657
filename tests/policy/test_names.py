"""Host names match what was last answered, and nothing before anything was."""

from __future__ import annotations

from everwall.limits import NAME_ADDRESSES_MAX, NAME_REFRESH_NS, NAME_RETRY_NS
from everwall.policy.compile import compile_policy
from everwall.policy.match import match
from everwall.policy.model import AddressRange, Policy
from everwall.policy.names import NameBook
from everwall.policy.rules import read_policy

TEXT = """\
addresses: {api: {fqdn: API.example.com}, both: [api, 192.0.2.1]}
rules:
- {name: to api, source: any, destination: api, service: any, action: allow}
- {name: both ways, source: both, destination: {fqdn: b.example.com}, service: any, action: deny}
- {name: old, source: {fqdn: c.example.com}, destination: any, service: any, action: allow, disabled: true}
"""


def policy() -> Policy:
    return read_policy("policy.yaml", TEXT)


def four(*octets: int) -> AddressRange:
    value = int.from_bytes(bytes(octets))
    return AddressRange(4, value, value)


def test_a_name_that_was_never_resolved_matches_nothing() -> None:
    book = NameBook(policy(), 0)
    to_api, both, _ = book.policy().rules
    assert (to_api.destination, both.source, both.destination) == ((), (four(192, 0, 2, 1),), ())
    assert book.unresolved() == ["api.example.com", "b.example.com"]
    compiled, _ = compile_policy(book.policy())
    assert match(compiled, 0, 0, 4, 0, 1, 0, 2, 6, 1000, 80, 0) == 2, "intrazone-default"


def test_an_answer_is_matched_and_the_last_one_stays_when_nobody_knows() -> None:
    book = NameBook(policy(), 0)
    assert book.due(0, 8) == ["api.example.com", "b.example.com"]
    assert book.answered("api.example.com", ["10.0.0.2", "2001:db8::1", "10.0.0.2"], 5)
    assert book.policy().rules[0].destination == (
        four(10, 0, 0, 2),
        AddressRange(6, *[(0x20010DB8 << 96) + 1] * 2),
    )
    assert book.policy().rules[1].source == (
        four(192, 0, 2, 1),
        four(10, 0, 0, 2),
        AddressRange(6, *[(0x20010DB8 << 96) + 1] * 2),
    )
    compiled, _ = compile_policy(book.policy())
    assert match(compiled, 0, 0, 4, 0, 1, 0, 0x0A000002, 6, 1000, 80, 0) == 0
    later = 5 + NAME_REFRESH_NS
    assert book.due(later, 8) == ["api.example.com"]
    book.failed("api.example.com", later)
    assert len(book.policy().rules[0].destination or ()) == 2
    assert book.unresolved() == ["b.example.com"]
    assert book.due(later + NAME_RETRY_NS - 1, 8) == []
    assert book.due(later + NAME_RETRY_NS, 8) == ["api.example.com"]
    assert not book.answered("api.example.com", [], later), "no address at all is no answer"
    assert len(book.policy().rules[0].destination or ()) == 2
    assert book.answered("api.example.com", ["10.0.0.3"], later)
    assert book.policy().rules[0].destination == (four(10, 0, 0, 3),)


def test_the_same_answer_in_another_order_changes_nothing() -> None:
    book = NameBook(policy(), 0)
    assert book.answered("api.example.com", ["10.0.0.2", "10.0.0.1"], 0)
    assert not book.answered("api.example.com", ["10.0.0.1", "10.0.0.2"], 1)


def test_names_are_asked_for_once_and_in_turn() -> None:
    book = NameBook(policy(), 0)
    assert book.due(0, 1) == ["api.example.com"]
    assert book.due(10**18, 1) == ["b.example.com"]
    assert book.due(10**18, 8) == [], "both are under way"
    book.failed("api.example.com", 0)
    assert book.due(NAME_RETRY_NS, 0) == []
    assert book.due(NAME_RETRY_NS, 1) == ["api.example.com"]


def test_an_answer_of_many_addresses_is_cut_the_same_way_each_time() -> None:
    book = NameBook(policy(), 0)
    many = [f"10.0.{k}.1" for k in range(2 * NAME_ADDRESSES_MAX)]
    assert book.answered("api.example.com", many, 0)
    assert len(book.policy().rules[0].destination or ()) == NAME_ADDRESSES_MAX
    assert not book.answered("api.example.com", reversed(many), 1)


def test_a_new_policy_begins_with_what_is_known() -> None:
    book = NameBook(policy(), 0)
    book.due(0, 8)
    book.answered("api.example.com", ["10.0.0.2"], 0)
    book = NameBook(policy(), 7, book)
    assert book.policy().rules[0].destination == (four(10, 0, 0, 2),)
    assert book.unresolved() == ["b.example.com"]
    assert book.due(7, 8) == ["api.example.com", "b.example.com"], "both are asked for at once"


def test_a_rule_that_refuses_by_name_says_that_it_may_refuse_nothing() -> None:
    (warning,) = [text for text in policy().warnings if "refuses" in text]
    assert warning.endswith(
        "rule both ways refuses by host names (api.example.com, b.example.com): "
        "what they stand for passes until they are resolved"
    )
