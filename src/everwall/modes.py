"""When the store gets a rule's sessions: the four modes, as words and as the numbers that kernels compare.

A mode is 16 bits in the compiled policy and in each session: ASYNC, STRICT, OFF, or for ``min-age`` the age in
units of MIN_AGE_UNIT_NS. Zero is ASYNC, so that what nobody has set is written as always.
"""

from __future__ import annotations

import re

from everwall.limits import MIN_AGE_S_MAX, MS_NS

ASYNC = 0  # written at once, nobody waits
STRICT = 0xFFFF  # the first answer waits until the store has acknowledged the session
OFF = 0xFFFE  # never written
MIN_AGE_UNIT_NS = 100 * MS_NS

MODE_EXPECTED = f"async, strict, off or min-age 3s (0.1s to {MIN_AGE_S_MAX}s)"

_WORDS = {"async": ASYNC, "strict": STRICT, "off": OFF}
_UNITS_PER_S = 10

assert MIN_AGE_S_MAX * _UNITS_PER_S < OFF
assert MIN_AGE_UNIT_NS * _UNITS_PER_S == 1000 * MS_NS


def parse_mode(text: str) -> int | None:
    """The number of ``async``, ``strict``, ``off`` or ``min-age 3s``; None for anything else."""
    if text in _WORDS:
        return _WORDS[text]
    found = re.fullmatch(r"min-age ([0-9]{1,5})(?:\.([0-9]))?s", text)
    if found is None:
        return None
    units = int(found[1]) * _UNITS_PER_S + int(found[2] or 0)
    return units if 0 < units <= MIN_AGE_S_MAX * _UNITS_PER_S else None
