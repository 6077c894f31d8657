"""In which slot of a cluster a bucket is."""

from __future__ import annotations

import numpy as np
import pytest
from redis.crc import key_slot

from everwall.session import image
from everwall.session.record import derive_keys, field_of
from everwall.store.layout import Epoch, Layout
from everwall.store.protocol import Protocol
from everwall.store.slots import homes_of, slots_of_buckets
from tests.store.stores import KEYS, sessions

pytestmark = pytest.mark.kernel


def test_the_slot_of_every_bucket_is_the_one_that_redis_py_works_out():
    for prefix, buckets in (("everwall", 4099), ("a.b-c_d", 17)):
        protocol = Protocol(KEYS, prefix, buckets)
        slots = slots_of_buckets(protocol, protocol.epochs[0])
        keys = [b"{%s:0:%x}" % (prefix.encode(), bucket) for bucket in range(buckets)]
        assert slots.tolist() == [key_slot(key) for key in keys]


def test_a_row_is_at_home_where_the_bucket_of_its_place_is():
    """Four places, of two epochs and two secrets, each with buckets of its own."""
    keys = derive_keys(b"a cluster secret of 32 bytes ...", b"the one after it, of 32 bytes ..")
    protocol = Protocol(keys, "test", 8, clustered=True)
    protocol.layout = Layout(Epoch(1, 50), Epoch(0, 8), 1, 9)
    protocol.move(2)
    owners = [np.arange(50, dtype=np.int64) % 3, 10 + np.arange(8, dtype=np.int64) % 3]
    rows = sessions(40)
    rows[:, image.WALK] = (np.arange(40) % 4) << image.PLACE_SHIFT
    fields = np.array([field_of(rows, i, keys, 0) for i in range(40)], np.int64)
    homes = homes_of(rows, fields, protocol, owners).tolist()
    for i, home in enumerate(homes):
        secret, former = divmod(i % 4, 2)
        field = int(field_of(rows, i, keys, secret)) % 2**64
        assert home == (10 + field % 8 % 3 if former else field % 50 % 3)
