"""A session outside the table: one int64 row, as it travels between engine and store.

The engine fills a request row, the store's side seals it into the bytes of ``record.py``; a reply
comes back as the same row with ``OP`` saying what was found. Zones, applications and rules are
named by stable hashes of their names, so that nodes with differently ordered policies agree.
"""

OP = 0  # request or reply, below
TAG = 1  # returned unchanged with the reply; the engine's own mark
ENDPOINT = 2
LOWER_HIGH = 3
LOWER_LOW = 4
UPPER_HIGH = 5
UPPER_LOW = 6
KEY2 = 7  # ports, protocol and family as in the flow key
STATE = 8  # session.tcp state
FLAGS = 9
SCALES = 10  # window scale of the lower end | upper end << 4; 15 = not known
FROM_ZONE = 11  # 16-bit hash of the zone's name
TO_ZONE = 12
APPLICATION = 13  # 16-bit application id, 0 = not known
RULE = 14  # 32-bit hash of the rule's name
HOST = 15  # 32-bit id of an interned host name, 0 = none
OWNER = 16  # 32-bit id of the node that wrote it
GENERATION = 17  # raised by every takeover, 16 bits
START = 18  # milliseconds of store time
EXPIRY = 19  # seconds of store time
PACKETS = 20  # both directions, previous owners included; saturates at 2**40 - 1
BYTES = 21  # inner IP bytes; saturates at 2**48 - 1
CONFIRM = 22  # of a change: whether the engine waits for WRITTEN, below; else it hears only of a loss
WALK = 23  # how far a request has come that goes from place to place, below

COLUMNS = 24

# Requests
LOOKUP = 1
WRITE_FIRST = 2  # a session of our own that the store cannot know: no comparison
WRITE = 3  # loses against a newer start or a higher generation
DELETE = 4  # as WRITE: only what is not newer is deleted
CLEAR = 5  # what follows a WRITE while there are other places: deleted there, and answered as the write

# Replies
FOUND = 11
MISSING = 12
REFUSED = 13  # a record that does not open: forged, altered, moved, of another cluster, of another version
FAILED = 14  # the store could not be asked
WRITTEN = 15
LOST = 16  # the comparison was lost: somebody else owns the session now
FOREIGN = 17  # a genuine record of another version; the engine is told REFUSED

# Values of CONFIRM
PRIMARY = 1  # once the server has it
REPLICATED = 2  # once as many replicas have it as the store waits for

# Bits of WALK
ASKED = 1  # of a look-up: the store was asked already, and the record may have been moving then
PLACE_SHIFT = 1  # which place is next, 0 to 3, where places are apart (``store/protocol.py``)
PLACE_BITS = 3
SO_FAR_SHIFT = 3  # of a look-up: what the places before have answered, a reply from above or 0
SO_FAR_BITS = 31
SEEN_SHIFT = (
    8  # of a write: 1 more than the expiry of the record that was in its way and is none, or is over; else 0
)

# Bits of FLAGS, 8 of them
INITIATOR_UPPER = 1  # the client is the upper end
REPLIED = 2  # packets were seen in both directions
PARTIAL = 4  # totals are a lower bound: a former owner died
NO_SCALING = 8  # the client's SYN had no window scale option (RFC 7323)
