"""Which target a new flow goes to: the highest random weight of all targets that may take it.

Every target gets a weight from a hash of the flow and the target's address, and the heaviest wins
(rendezvous hashing, Thaler and Ravishankar 1998). So each target carries an equal share, a target
that leaves gives its flows evenly to the others, and no flow between two others moves.

The weight knows nothing of one process: no boot seed, no order of registration. A gateway chooses
after its restart as it did before, and so does a second gateway beside it.
"""

from __future__ import annotations

from everwall.flow import hash_of
from everwall.kernels import kernel
from everwall.wire.meta import KEY0, KEY2, LOWER_HIGH, LOWER_LOW, UPPER_HIGH, UPPER_LOW

# Columns of the array of targets; written by ``targets.py``, read per packet.
REFERENCE = 0
"""Names the target in flow entries: the row plus a multiple of the number of rows, never used twice."""
ADDRESS = 1
CHOICE = 2
"""Whether new flows may come here, below."""
MOVE = 3
"""1: flows that are here go elsewhere with their next packet, as soon as there is a healthy target."""
COLUMNS = 8

NEVER = 0  # draining, deregistered, or a free row
HEALTHY = 1
FAIL_OPEN = 2  # only while no target is healthy

_SEED = 0x45564552


@kernel
def flow_hash(meta, i):
    """A hash of the flow's key that is equal in both directions and in every process."""
    weight = hash_of(meta[i, KEY0], meta[i, LOWER_HIGH], meta[i, LOWER_LOW], _SEED)
    weight = hash_of(weight, meta[i, UPPER_HIGH], meta[i, UPPER_LOW], _SEED)
    return hash_of(weight, meta[i, KEY2], 0, _SEED)


@kernel
def choose(targets, flow, fail_open):
    """The row of the target for ``flow`` (a ``flow_hash``), or -1 when there is none.

    Healthy targets only; where there is none and ``fail_open`` is 1, any that is registered.
    """
    best = fallback = -1
    best_weight = fallback_weight = 0
    for row in range(targets.shape[0]):
        kind = targets[row, CHOICE]
        if kind == NEVER:
            continue
        weight = hash_of(flow, targets[row, ADDRESS], 0, _SEED)
        if kind == HEALTHY:
            if best < 0 or weight > best_weight:
                best, best_weight = row, weight
        elif fallback < 0 or weight > fallback_weight:
            fallback, fallback_weight = row, weight
    if best < 0 and fail_open == 1:
        return fallback
    return best
