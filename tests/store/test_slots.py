"""In which slot of a cluster a bucket is."""

from __future__ import annotations

import random

import numpy as np
import pytest
from redis.crc import key_slot

from everwall.store.protocol import Protocol
from everwall.store.slots import homes_of, slots_of_buckets
from tests.store.stores import KEYS

pytestmark = pytest.mark.kernel


def test_the_slot_of_every_bucket_is_the_one_that_redis_py_works_out():
    for prefix, buckets in (("everwall", 4099), ("a.b-c_d", 17)):
        slots = slots_of_buckets(Protocol(KEYS, prefix, buckets))
        keys = [b"{%s:0:%x}" % (prefix.encode(), bucket) for bucket in range(buckets)]
        assert slots.tolist() == [key_slot(key) for key in keys]


def test_a_field_is_at_home_where_its_bucket_is():
    fields = np.array([random.Random(1).randrange(-(2**63), 2**63) for _ in range(100)], np.int64)
    owners = np.arange(64, dtype=np.int64) % 3
    assert homes_of(fields, owners).tolist() == [(int(field) % 2**64) % 64 % 3 for field in fields]
