"""What goes over the wire: byte for byte what hiredis would pack from commands put together one by one."""

from __future__ import annotations

import hiredis
import numpy as np
import pytest

from everwall.session import image
from everwall.session.record import derive_keys
from everwall.store import resp
from everwall.store.layout import Epoch, Layout
from everwall.store.protocol import DELETE_SCRIPT, WRITE_SCRIPT, Protocol, script_sha
from tests.naive import resp as naive
from tests.store.stores import NOW, sessions

SECRET = b"a cluster secret of 32 bytes ..."
OTHER_SECRET = b"another cluster secret, 32 bytes"
SHAS = {image.WRITE: script_sha(WRITE_SCRIPT), image.DELETE: script_sha(DELETE_SCRIPT)}
OPERATIONS = [image.LOOKUP, image.WRITE_FIRST, image.WRITE, image.DELETE]


@pytest.mark.parametrize("buckets", [1, 17, 4688, 1 << 24])
@pytest.mark.parametrize("count", [1, 31, 33, 400])
def test_a_pipeline_is_what_plain_python_would_send(count: int, buckets: int) -> None:
    protocol = Protocol(derive_keys(SECRET), "wall", buckets)
    lives_until, dice = [0] * buckets, np.random.default_rng(count)
    for now_s in (NOW, NOW + 10, NOW + 5000):  # of a bucket that lives long enough nothing is asked
        rows = sessions(count, seed=now_s)
        rows[:, image.OP] = dice.choice(OPERATIONS, count)
        rows[:, image.EXPIRY] = now_s + dice.integers(0, 100_000, count)
        batch = protocol.encoded(rows, now_s)
        expected = naive.commands(rows, SECRET, b"{wall:0:", SHAS, lives_until, now_s)
        sent = batch.commands[2:] if batch.loads_scripts else batch.commands
        assert sent == expected
        assert bytes(batch.data).endswith(b"".join(map(hiredis.pack_command, expected)))
        assert len(batch.spoken_for()) == len(batch.commands)


@pytest.mark.parametrize("count", [1, 33, 100])
def test_a_pipeline_to_several_places_is_what_plain_python_would_send(count: int) -> None:
    protocol = Protocol(derive_keys(SECRET, OTHER_SECRET), "wall", 17)
    protocol.hear(str(Layout(Epoch(10, 40), Epoch(9, 17), NOW, NOW + 9999)).encode())
    protocol.move(NOW)
    assert protocol.places == 4
    others = [(SECRET, b"{wall:9:", 17), (OTHER_SECRET, b"{wall:10:", 40), (OTHER_SECRET, b"{wall:9:", 17)]
    lives_until, dice = [0] * 40, np.random.default_rng(count)
    rows = sessions(count)
    rows[:, image.OP] = dice.choice([*OPERATIONS, image.CLEAR], count)
    batch = protocol.encoded(rows, NOW)
    expected = naive.commands(rows, SECRET, b"{wall:10:", SHAS, lives_until, NOW, others)
    sent = batch.commands[2:] if batch.loads_scripts else batch.commands
    assert sent == expected
    assert len(batch.spoken_for()) == len(batch.commands)


def test_the_widest_rows_fit_the_room_made_for_them() -> None:
    """Each a script call and two expiries, which is the most that one row can need."""
    protocol = Protocol(derive_keys(SECRET), "w" * 200, 1 << 24)
    for row in sessions(50):
        row[[image.OP, image.EXPIRY]] = image.WRITE, NOW + 2**32
        data = protocol.encoded(row.reshape(1, -1), NOW).data
        scripts = sum(len(script) + 60 for script in (WRITE_SCRIPT, DELETE_SCRIPT))
        assert len(data) <= resp.room_for(1, 208) + scripts


def test_rows_that_are_no_requests_are_not_sent() -> None:
    rows = sessions(2)
    rows[:, image.OP] = image.WRITTEN
    with pytest.raises(ValueError, match="no requests"):
        Protocol(derive_keys(SECRET)).encoded(rows, NOW)
