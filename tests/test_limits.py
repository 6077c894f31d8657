"""Every limit has a unit that its name tells, and the relations that the design rests on."""

from __future__ import annotations

from everwall import limits

NUMBERS = {
    name: value for name, value in vars(limits).items() if name.isupper() and isinstance(value, int | float)
}


def test_every_limit_is_positive() -> None:
    assert {name: value for name, value in NUMBERS.items() if value <= 0} == {}


def test_nanoseconds_are_whole_numbers_within_64_bits() -> None:
    for name, value in NUMBERS.items():
        if name.endswith("_NS"):
            assert isinstance(value, int), name
            assert value < 2**62, name


def test_a_session_in_the_store_outlives_the_load_balancers_patience() -> None:
    assert limits.LB_IDLE_TCP_S < limits.TCP_ESTABLISHED_NS // limits.SECOND_NS
    assert limits.UDP_NS // limits.SECOND_NS < limits.LB_IDLE_OTHER_S


def test_a_hung_worker_is_noticed_before_it_could_be_taken_for_an_idle_one() -> None:
    assert limits.POLL_MS_MAX * limits.MS_NS < limits.HEARTBEAT_STALE_NS
    assert limits.HEALTH_WATCH_S * limits.SECOND_NS < limits.HEARTBEAT_STALE_NS


def test_a_packet_of_an_ordinary_network_fits_a_slot() -> None:
    geneve_with_all_options = 8 + limits.GENEVE_OPTIONS_BYTES_MAX
    assert limits.HEADROOM_BYTES + geneve_with_all_options + 1500 <= limits.FRAME_BYTES


def test_slots_follow_the_mtu_of_the_data_interface() -> None:
    assert limits.frame_bytes_for(1500) == limits.frame_bytes_for(1568) == limits.FRAME_BYTES
    outer = limits.INNER_MTU_MAX + limits.GENEVE_OVERHEAD_BYTES
    assert outer == 8568, "what AWS asks an appliance to take"
    assert limits.frame_bytes_for(outer) == limits.frame_bytes_for(9001) == limits.JUMBO_FRAME_BYTES
    assert limits.frame_bytes_for(65536) == limits.JUMBO_FRAME_BYTES, (
        "nothing larger comes from a load balancer"
    )


def test_a_packet_always_fits_the_slot_of_its_mtu() -> None:
    for mtu in range(68, 9002):
        assert limits.HEADROOM_BYTES + mtu < limits.frame_bytes_for(mtu)
