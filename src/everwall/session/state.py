"""All that one worker's sessions consist of, as arrays: made once, filled by kernels ever after.

``words`` holds configuration and cursors by the index constants below, so that compiled code needs
no further arguments and Python can look and adjust from outside.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall import limits
from everwall.counters import COUNTERS
from everwall.limits import BUCKET_SLOTS
from everwall.rings import Ring, make_ring, zeros_apart
from everwall.session import control, image, tcp
from everwall.session.table import ADDRESS_COLUMNS, SharedTable, Table, make_table
from everwall.verdict import VERDICTS
from everwall.wire.meta import COLUMNS, Batch, make_batch

# Indices of ``words`` -------------------------------------------------------------------------------
MAX_SESSIONS = 0
RESILIENCY = 1  # 1: sessions are written to the store and looked up there
INSPECT = 2  # 1: GENEVE is accepted
OWNER = 3  # this node's 32-bit id
SEED = 4  # of the hash, drawn at each start
REFRESH_DIVISOR = 5
NEXT_ID = 6
AGEING_HAND = 7  # next slot to look at
AGEING_DUE = 8  # ns
FREE_ROW = 9  # head of the list of free arena rows, -1 = none
MISS_TOKENS = 10  # as all tokens: see session.tokens
MISS_REFILLED = 11  # ns
LOOKUP_MARK = 12  # grows with every look-up
DEADLINE_HEAD = 13  # cursors of ``deadlines``
DEADLINE_TAIL = 14
MISS_BUDGET = 15  # misses a second
LOOKUP_DEADLINE = 16  # ns
CUT_THROUGH = 17  # 1: a program bounces what is offloaded
WORKER = 18  # whose control words are ours
EPOCH = 19  # of offloading, 15 bits
OFFLOADS = 20  # so many times a session was offloaded
PASSED = 21  # ns at which the loop passed last, 0 = not yet
GAP = 22  # ns of the last gap: a session not written since is unconfirmed
CONNECTIONS = 23  # to the store, as many as were noticed; -1 = resiliency was off
ID_STEP = 24  # between session ids: the number of workers
ELSEWHERE = 25  # sessions of the other workers
URGENT = 26  # 1: a packet waits for the answer to a request that the store was not told of yet
RESYNC = 39  # what the resync hand does, see session.resync
RESYNC_BEGAN = 27  # ns
RESYNC_DONE = 28  # slots that the hand has passed
RESYNC_TOTAL = 29
RESYNC_ROUND = 30  # grows with every pass
RESYNC_ASKED = 31  # writes of this round
RESYNC_ANSWERED = 32
RESYNC_HEARD = 33  # ns of the last answer
RESYNC_TOKENS = 34
RESYNC_REFILLED = 35  # ns
RESYNC_RATE = 36  # sessions a second
HOLD_HEAD = 37  # cursors of ``holds``
HOLD_TAIL = 38
LAYOUT = 40  # moves of the records that were noticed
REMATCH_LEFT = 41  # slots that the rematch hand has before it, see everwall.rematch
ADMIT_NON_SYN = 42  # 1: policy is asked about a connection whose SYN nobody saw; 0: it is refused
AGEING_PASS = 43  # how often the hand has begun anew
ANSWER = 44  # what the policy's last refusal wants the ends to be told: bits below
REFUSED_UNTIL = 45  # ns at which the last of ``refused`` is forgotten
MADE = 46  # rows of ``made`` that wait to be sent
MADE_TOKENS = 47
MADE_REFILLED = 48  # ns
MADE_BUDGET = 49  # packets made in a second
RESYNC_HAND = 50  # the slot that it comes to next
RESYNC_MOST = 51  # writes that may wait for their answers at once
RESYNC_GIVEN_UP = 52  # answers of this round that are not waited for any more
LOG_TOKENS = 53
LOG_REFILLED = 54  # ns
LOG_BUDGET = 55  # lines about refused packets in a second
WORDS = 56

# Bits of words[ANSWER]: those of ``policy.match``, and
ANSWER_MASK = 15  # of the former
ANSWER_CLIENT_UPPER = 16  # the client is the upper end
ANSWER_KNOWN = 32  # of a connection that both ends have

# Indices of ``clock``
CLOCK_OFFSET = 0  # store time minus local time, ns
CLOCK_CONNECTIONS = 1  # times at which the store may lack what it was told: new connections, say
CLOCK_LAYOUT = 2  # so many times records were to be written to other places than before
CLOCK_GUESSED = 3  # 1: nobody has told store time yet, the offset is by this machine's own clock

# Columns of ``pending``, look-ups and flows that strict mode holds: a key as in the table, then
PENDING_DEADLINE = 3  # ns
PENDING_FIRST = 4  # arena row of the first parked packet, -1 = none
PENDING_LAST = 5
PENDING_COUNT = 6
PENDING_TAG = 7  # of the look-up, returned with its answer
PENDING_COLUMNS = 8

# Columns of ``fragments``: a key and its addresses, then
FRAGMENT_ADDRESSES = 3
FRAGMENT_SOURCE_PORT = 7
FRAGMENT_DESTINATION_PORT = 8
FRAGMENT_PROTOCOL = 9
FRAGMENT_EXPIRY = 10  # ns
FRAGMENT_COLUMNS = 11

# Columns of ``negative`` and ``refused``, flows that are remembered (``session.remembered``): a key, then
REMEMBERED_UNTIL = 3  # ns
REMEMBERED_COLUMNS = 4
# and of ``refused``
REFUSED_ANSWER = 4  # as words[ANSWER]
REFUSED_COLUMNS = 5

# Events are images with these differences
EVENT_KIND = image.OP
EVENT_SESSION = image.TAG
EVENT_REFUSED_BY = image.EXPIRY  # id of the rule that ended the session or refused it, 0 = none did
EVENT_REASON = 22  # session.tcp END_*
EVENT_TIME = 23  # ns

EVENT_ENDED = 1
EVENT_TAKEN_OVER = 2
EVENT_STARTED = 3  # of rules with ``log-start`` only
EVENT_ENDED_UNLOGGED = 4  # as EVENT_ENDED, of rules without ``log-end``
EVENT_REFUSED = 5  # no session: policy denied its first packet


class Sessions(NamedTuple):
    """The arrays of one worker; shapes in ``make_sessions``."""

    table: Table
    shared: npt.NDArray[np.int64]  # the control words of all workers, see session.control
    timeouts: npt.NDArray[np.int64]  # ns by state
    words: npt.NDArray[np.int64]
    clock: npt.NDArray[np.int64]  # what the store's thread knows, indices above; only it writes here
    counters: npt.NDArray[np.int64]  # by Counter
    verdicts: npt.NDArray[np.int64]  # by Verdict
    pending: npt.NDArray[np.int64]  # look-ups under way; with the next two a table as that of sessions
    pending_tags: npt.NDArray[np.uint8]
    pending_addresses: npt.NDArray[np.int64]
    deadlines: npt.NDArray[np.int64]  # tags in the order of their deadlines
    holds: npt.NDArray[np.int64]  # the same for packets that strict mode holds
    arena: Batch  # parked packets
    next_row: npt.NDArray[np.int64]  # list links of arena rows
    released: npt.NDArray[np.int64]  # arena rows to send after an answer
    scratch: npt.NDArray[np.int64]  # one descriptor, for flows that come from the store
    fragments: npt.NDArray[np.int64]
    negative: npt.NDArray[np.int64]
    refused: npt.NDArray[np.int64]
    made: Batch  # packets of our own that wait to be sent
    made_rows: npt.NDArray[np.int64]  # their rows: 0, 1, 2 and so on
    requests: Ring
    events: Ring


def default_timeouts() -> npt.NDArray[np.int64]:
    """Idle time-outs by state, ns: what operators of firewalls are used to."""
    timeouts = np.zeros(tcp.STATES, np.int64)
    timeouts[tcp.TCP_INIT] = limits.TCP_INIT_NS
    timeouts[tcp.TCP_HANDSHAKE] = limits.TCP_HANDSHAKE_NS
    timeouts[tcp.TCP_ESTABLISHED] = limits.TCP_ESTABLISHED_NS
    timeouts[tcp.TCP_HALF_CLOSED_CLIENT] = limits.TCP_HALF_CLOSED_NS
    timeouts[tcp.TCP_HALF_CLOSED_SERVER] = limits.TCP_HALF_CLOSED_NS
    timeouts[tcp.TCP_TIME_WAIT] = limits.TCP_TIME_WAIT_NS
    timeouts[tcp.TCP_CLOSED] = limits.TCP_TIME_WAIT_NS
    timeouts[tcp.TCP_UNVERIFIED_RST] = limits.TCP_UNVERIFIED_RST_NS
    timeouts[tcp.UDP] = limits.UDP_NS
    timeouts[tcp.ICMP] = limits.ICMP_NS
    timeouts[tcp.OTHER] = limits.OTHER_NS
    return timeouts


def make_sessions(
    max_sessions: int,
    *,
    parked_packets: int = limits.PARKED_PACKETS_MAX,
    lookups: int = limits.LOOKUPS_MAX,
    frame_bytes: int = limits.FRAME_BYTES,
    ring_rows: int = limits.REQUEST_RING_ROWS,
    shared: SharedTable | None = None,
    control_words: npt.NDArray[np.int64] | None = None,
    worker: int = 0,
) -> Sessions:
    """Empty arrays for one worker, with fewer ``parked_packets`` than that where they would take too much room.

    ``shared``: what the cut-through program sees of the table; with it come ``control_words``, those of all workers,
    of which this is number ``worker``. Without, nothing is offloaded.

    Raises ValueError when ``lookups`` is not a power of two of at least one set.
    """
    if lookups < BUCKET_SLOTS or lookups & (lookups - 1):
        raise ValueError(f"lookups must be a power of two of at least {BUCKET_SLOTS}, got {lookups}")
    words = zeros_apart(WORDS)
    words[MAX_SESSIONS] = max_sessions
    words[REFRESH_DIVISOR] = limits.REFRESH_DIVISOR
    words[MISS_BUDGET] = words[MISS_TOKENS] = limits.MISS_BUDGET_PER_S
    words[RESYNC_RATE] = limits.RESYNC_PER_S
    words[MADE_BUDGET] = words[MADE_TOKENS] = limits.ANSWERS_PER_S
    words[LOG_BUDGET] = words[LOG_TOKENS] = limits.LOGGED_REFUSALS_PER_S
    words[RESYNC_MOST] = limits.RESYNC_UNANSWERED_MAX
    words[RESYNC_ROUND] = 1
    words[LOOKUP_DEADLINE] = limits.LOOKUP_DEADLINE_NS
    words[NEXT_ID] = words[ID_STEP] = 1
    words[WORKER] = worker
    words[CUT_THROUGH] = int(shared is not None)
    if control_words is None:
        control_words = np.zeros(control.WORDS, np.int64)
    control_words[control.WORKER + worker * control.WORKER_WORDS + control.WANT] = 1  # epoch 0
    parked_packets = min(parked_packets, limits.PARKED_BYTES_MAX // frame_bytes)
    next_row = np.arange(1, parked_packets + 1, dtype=np.int64)
    next_row[-1] = -1
    return Sessions(
        table=make_table(max_sessions, shared),
        shared=control_words,
        timeouts=default_timeouts(),
        words=words,
        clock=zeros_apart(4),
        counters=zeros_apart(COUNTERS),
        verdicts=zeros_apart(VERDICTS),
        pending=np.zeros((lookups, PENDING_COLUMNS), np.int64),
        pending_tags=np.zeros(lookups, np.uint8),
        pending_addresses=np.zeros((lookups, ADDRESS_COLUMNS), np.int64),
        deadlines=np.zeros(lookups * 4, np.int64),
        holds=np.zeros(lookups * 4, np.int64),
        arena=make_batch(parked_packets, frame_bytes),
        next_row=next_row,
        released=np.zeros(parked_packets, np.int64),
        scratch=zeros_apart((1, COLUMNS)),
        fragments=np.zeros((limits.FRAGMENTS_MAX, FRAGMENT_COLUMNS), np.int64),
        negative=np.zeros((limits.NEGATIVE_ENTRIES, REMEMBERED_COLUMNS), np.int64),
        refused=np.zeros((limits.REFUSED_FLOWS, REFUSED_COLUMNS), np.int64),
        made=make_batch(limits.ANSWERS_MADE_MAX),
        made_rows=np.arange(limits.ANSWERS_MADE_MAX, dtype=np.int64),
        requests=make_ring(ring_rows, image.COLUMNS),
        events=make_ring(limits.EVENT_RING_ROWS, image.COLUMNS),
    )
