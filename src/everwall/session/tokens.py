"""So many a second: rights that come back with time, at most a second's worth of them saved up."""

from __future__ import annotations

from everwall.kernels import inlined
from everwall.limits import SECOND_NS


@inlined
def refill(words, tokens, per_second, now):
    """How many rights there are in ``words[tokens]`` by now, ns; ``words[tokens + 1]`` is when some came last."""
    passed = min(now - words[tokens + 1], SECOND_NS)
    come = passed * per_second // SECOND_NS
    if come > 0:
        words[tokens] = min(words[tokens] + come, per_second)
        words[tokens + 1] = now
    return words[tokens]


@inlined
def take_token(words, tokens, per_second, now):
    """Use up one right; whether there was one."""
    if refill(words, tokens, per_second, now) <= 0:
        return False
    words[tokens] -= 1
    return True
