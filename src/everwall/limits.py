"""Every bound and time-out of the product, with its unit in the name, and the relations between them.

Times are int64 nanoseconds (``_NS``) unless the name says otherwise. Time-outs of the session
table are the defaults that firewall operators know (PAN-OS, Device > Setup > Session > Session
Timeouts); the load balancer's idle time-outs are those of AWS Gateway Load Balancer.
"""

import math

MS_NS = 1_000_000
SECOND_NS = 1_000_000_000

# Packets ---------------------------------------------------------------------------------------
GENEVE_PORT = 6081
BATCH_PACKETS = 64
"""Packets a port receives, an engine judges and a port sends in one breath."""
FRAME_BYTES = 2048
"""Bytes of one packet slot: headroom and a GENEVE packet over an MTU of 1500 inside (1540 bytes)."""
JUMBO_FRAME_BYTES = 9152
"""The same over an MTU of 8500 inside, the most that the load balancer carries, and for any packet that an
interface with the cloud's MTU of 9001 takes. Small packets are judged no slower in slots of this size."""
GENEVE_OVERHEAD_BYTES = 68
"""What GENEVE with the load balancer's three options adds to a packet: IPv4 20, UDP 8, GENEVE 8, options 32."""
INNER_MTU_MAX = 8500
"""The longest packet that AWS's load balancer carries."""
JUMBO_MTU_MIN = INNER_MTU_MAX + GENEVE_OVERHEAD_BYTES
"""What an interface needs to take that packet in GENEVE: 8568."""
HEADROOM_BYTES = 64
"""Room before a received packet, for the outer headers that a port writes in place on return."""
GENEVE_OPTIONS_BYTES_MAX = 252
XDP_FRAMES = 4096
"""Of each queue of an AF_XDP port: what waits in the kernel, what we have, and what is on its way out."""
XDP_FILL_FRAMES = 2048
"""Of these, frames that the kernel may have for what comes."""
XDP_RING_ROWS = 2048
"""Descriptors of an AF_XDP port's rx and tx rings."""
XDP_PIECES_MAX = 18
"""Frames of one packet: one, and as many fragments as the kernel's own packets may have (MAX_SKB_FRAGS)."""
XDP_HEADROOM_BYTES = 256
"""What the kernel leaves free before a packet in its frame (XDP_PACKET_HEADROOM)."""
XDP_HELD_ROWS = 4096
"""Frames of one batch, in all; a batch that needs more has fewer packets."""
XDP_BUSY_POLL_US = 20
IPV6_EXTENSIONS_MAX = 8
"""Extension headers followed in one IPv6 packet; a longer chain is dropped by name."""

# Sessions --------------------------------------------------------------------------------------
BUCKET_SLOTS = 8
SESSIONS_DEFAULT = 100_000
SESSIONS_MIN = 64
SESSIONS_MAX = 16_000_000
SET_CHOICES = 4
"""Sets that a key may stand in."""
TABLE_LOAD_MAX = 0.84
"""Sessions over slots at which a table is sized. Sessions come and go there for ever, and fewer than one
insertion in a thousand finds all sets full (``docs/decisions/0003``)."""

TCP_INIT_NS = 5 * SECOND_NS
TCP_HANDSHAKE_NS = 10 * SECOND_NS
TCP_ESTABLISHED_NS = 3600 * SECOND_NS
TCP_HALF_CLOSED_NS = 120 * SECOND_NS
TCP_TIME_WAIT_NS = 15 * SECOND_NS
TCP_UNVERIFIED_RST_NS = 30 * SECOND_NS
UDP_NS = 30 * SECOND_NS
ICMP_NS = 6 * SECOND_NS
OTHER_NS = 30 * SECOND_NS

STORED_IDLE_NS = TCP_ESTABLISHED_NS
"""The longest silence that the store keeps a session for, whatever time-out an operator wants: half of what its bucket
lives without a write, which is when a write renews it."""

AGEING_PERIOD_NS = SECOND_NS
"""Time in which the ageing hand passes over the whole table once."""
AGEING_TICKS = 64
"""Slices of one ageing period."""

REFUSED_FLOWS = 1 << 14
"""Connections that a new policy refused while they were alive, remembered by a worker; a power of two."""
REFUSED_NS = 90 * SECOND_NS
"""For so long, which is what PAN-OS keeps a discarded TCP session for."""
LOGGED_REFUSALS_PER_S = 1000
"""Lines that a node's traffic log gets about refused first packets, however many there are."""
ANSWERS_PER_S = 1000
"""Packets that a node makes in answer to refused ones."""
ANSWERS_MADE_MAX = 128
"""Of these, what one worker makes between two sends."""
ANSWER_HOPS = 64
"""TTL or hop limit of a made packet."""
UNREACHABLE_BYTES_4 = 576
"""The longest ICMP error (RFC 1812 section 4.3.2.3)."""
UNREACHABLE_BYTES_6 = 1280
"""The longest ICMPv6 error: the minimum MTU (RFC 4443 section 2.4 c)."""

FRAGMENTS_MAX = 4096
FRAGMENT_NS = 30 * SECOND_NS
"""Life of a fragment entry (RFC 791 suggests 15 s as a lower bound, RFC 8200 says 60 s for reassembly)."""

# Policy ----------------------------------------------------------------------------------------
POLICY_NAME_MAX = 63
DESCRIPTION_MAX = 1024
POLICY_RULES_MAX = 65_000
POLICY_ZONES_MAX = 200
POLICY_HOST_NAMES_MAX = 2000
"""Names whose addresses a node asks for."""
NAME_ADDRESSES_MAX = 64
"""Addresses of one host name that are used, the lowest."""
NAME_REFRESH_NS = 60 * SECOND_NS
"""After an answer a name is asked for again; the system's resolver tells no time to live."""
NAME_RETRY_NS = 10 * SECOND_NS
NAME_LOOKUPS_MAX = 8
"""Names asked for at once."""
NAME_WATCH_S = 0.1
NAME_PATIENCE_S = 5.0
"""A reload waits for the addresses of names that are new for so long: live sessions are asked about by them."""
POLICY_COVERAGE_RULES_MAX = 20_000
"""Largest policy that is searched for rules that are never reached."""
SERVICE_PORTS_MAX = 1024
"""Pairs of a destination's and a source's ports that one imported service may have."""
POLICY_WARNINGS_SHOWN = 20
"""Of one kind; what is more is only counted."""
WILDCARD_RANGES_MAX = 1024
"""Ranges that an address with a wildcard mask may stand for."""
REMATCH_SESSIONS = 32
"""Sessions that are asked about again, after another policy came, in one pass of the loop: tens of microseconds."""
REMATCH_SLOTS = 1 << 12
"""Slots of the table that are passed meanwhile at most."""
RELOAD_SWITCH_S = 0.0005
"""While a policy is read and compiled no other thread waits longer for the interpreter (Python's own is ten times as
long)."""
RELOAD_TIMEOUT_S = 120.0
"""For the answer to a reload: the largest policies take some ten seconds."""
HOST_NAME_MAX = 253

# Store -----------------------------------------------------------------------------------------
LB_IDLE_TCP_S = 350
LB_IDLE_OTHER_S = 120
FAILOVER_S = 120
"""A stored session outlives its idle time-out by this, so that a quiet flow survives the failover itself."""
REFRESH_DIVISOR = 3
"""A live session is written again once a third of its idle time-out has passed since the last write."""
REFRESH_PASSES = 8
"""The ageing hand asks an eighth of the sessions whether they want that in each of its passes: no record lives so short
that a few seconds matter, and what tells stands in a cache line that is read for nothing else. A power of two."""
CONFIRM_NS = 60 * SECOND_NS
"""For so long after a gap it looks in every pass for those that are to be confirmed."""
RECORD_BYTES_MAX = 52
FIELD_BYTES = 8
BUCKETS_DEFAULT = 1 << 16
STORE_PREFIX_DEFAULT = "everwall"
STORE_NAME_MAX = 64
"""Characters of an ACL user's name, and of the name that a cluster has in the store."""
SESSIONS_PER_BUCKET = 64
BUCKET_TTL_S = 2 * 3600 + 600
"""Expiry of a store bucket, renewed while it is written to."""
BUCKETS_MAX = 1 << 24
LAYOUT_LEASE_NS = 3 * SECOND_NS
"""What a node knows of the layout is good for so long; then it asks again before it asks or writes anything else."""
LAYOUT_NOTICE_S = 10
"""Between the announcement of another number of buckets and the first write to them: by then every node knows, or
asks before it does anything."""
LAYOUT_NOTICE_CLUSTER_S = 30
"""The same on a Redis Cluster, where the rest of it serves on while the primary with the layout's key fails over:
longer than that takes with the servers' usual time-out of 15 s."""
LAYOUT_TRUST_NS = (LAYOUT_NOTICE_CLUSTER_S - 1) * SECOND_NS
"""For so long a node that cannot hear of the layout there takes what it knows for true."""
MOVED_BUCKETS_PER_S = 2000
"""Buckets of a former epoch that are looked through, and emptied, in a second."""
REFUSED_LOG_S = 10.0
"""Records that were refused are logged at most this often, with how many there were."""
CLUSTER_SECRETS_MAX = 2
STORE_PLACES_MAX = 2 * CLUSTER_SECRETS_MAX
"""Places in which a record may lie: two epochs, two secrets."""
CLUSTER_SECRET_BYTES_MIN = 32
MIN_AGE_S_MAX = 3600
"""Greatest age that a rule may ask of a session before it is written."""

RESYNC_PER_S = 50_000
"""Sessions of a node that are offered to the store in a second, after a new connection or a gap."""
RESYNC_SLOTS = 1 << 14
"""Slots of the table that the resync hand passes at most in one pass of the loop."""
RESYNC_UNANSWERED_MAX = 512
"""Of these, so many may wait for the store's answers: a look-up stands behind no more of them at the server."""
RESYNC_WATCH_S = 0.2
"""How often the command line asks how far the store is."""
RESYNC_PATIENCE_NS = 2 * SECOND_NS
"""A store that says nothing for so long has refused what it has not acknowledged."""

STRICT_WAIT_NS = 100 * MS_NS
"""Longest wait of strict mode for the store's acknowledgement."""

LOOKUP_DEADLINE_NS = 50 * MS_NS
NEGATIVE_NS = 100 * MS_NS
"""A miss is remembered this long, so that a stray flow asks the store at most ten times a second."""
NEGATIVE_ENTRIES = 4096
DOUBT_NS = 250 * MS_NS
"""A session quiet for longer here may live on elsewhere: a packet that does not fit it asks the store."""
LOOKUPS_MAX = 4096
"""Look-ups under way at once."""
PARKED_PACKETS_MAX = 8192
PARKED_PER_FLOW_MAX = 64
PARKED_BYTES_MAX = 64 << 20
"""Of the slots for parked packets; with jumbo slots there are fewer of them for it."""
MISS_BUDGET_PER_S = 20_000
"""Misses charged to the store per second; hits are free, so a failover is not throttled."""

REQUEST_RING_ROWS = 1 << 13
"""Requests between worker and store's thread: 1.5 MB, which stay in a processor's cache while they are written anew
again and again. What finds no room is marked and tried again by the ageing hand."""
STORE_QUEUE_ROWS = 1 << 15
"""Requests of each kind that wait for the server; of writes that wait for a connection the newest are kept."""
STORE_ASKED_ROWS = 1 << 12
"""Requests that one server of a cluster sent to another while a slot moves, and that wait there."""
REPLY_RING_ROWS = 1 << 13
EVENT_RING_ROWS = 1 << 14
STORE_FLUSH_NS = MS_NS
"""Requests that no packet waits for gather so long, or until there are STORE_BATCH_RECORDS of them."""
STORE_FLUSH_BUSY_NS = 8 * MS_NS
"""The same on a worker that is at its limit (``docs/decisions/0007``)."""
BUSY_BATCH_PACKETS = BATCH_PACKETS // 4
"""Packets of a batch, on average, from which on a worker is at its limit: the next ones wait by the time it is done."""
STORE_BATCH_RECORDS = 512
STORE_TIMEOUT_S = 1.0
"""For connecting, for TLS, and for each reply as a whole."""
STORE_STOP_S = 2 * STORE_TIMEOUT_S
"""A node that ends waits so long for all that speaks to its store."""
STORE_SHARDS_MAX = 500
"""Primaries of a cluster that a node speaks to, each over a connection of its own from each worker."""
STORE_DIAL_S = 3 * STORE_TIMEOUT_S
"""For all that makes a connection: connecting, TLS, going in and the greeting."""
STORE_RECONNECT_MIN_S = 0.05
STORE_STEADY_S = 4.0
"""A connection that is lost before it has held for so long is followed by the next after a longer pause, up to"""
STORE_RECONNECT_MAX_S = 2.0
SENTINEL_WATCH_S = 1.0
"""Longest pause between two questions who is primary, asked of Sentinels while the former one answers."""
STORE_SURVEY_MAX_S = 1.0
"""Longest pause between two questions who has which slots, while a primary of a cluster is missing."""
MOVED_TRUST_NS = 50 * MS_NS
"""A cluster's server that sends a slot's requests elsewhere is followed once in this time."""
SHARD_LEAVING_NS = 60 * SECOND_NS
"""A cluster's server without slots is left after so long: it may be about to get some."""
WAIT_REPLICAS_MS = 80
"""Longest wait of the server for its replicas: nobody waits for the answer any more after STRICT_WAIT_NS."""
REFUSAL_PAUSE_MIN_S = 2.0
"""What a server refused (out of memory) it is offered again after so long, each time after twice as long, up to"""
REFUSAL_PAUSE_MAX_S = 60.0
CLOCK_STEP_NS_MAX = 10 * SECOND_NS
"""A cluster's time that moved by more makes the expiries in the store untrue: sessions are written again."""
CLOCK_TOLERANCE_NS = 20 * MS_NS
"""By so much a node's time may be ahead of the cluster's before the others are told."""
CLOCK_SLEW_NS = MS_NS
"""So much slower the time of a node goes that is ahead, in each second: more than clocks differ, or are slewed by."""
CLOCK_PAUSE_S = 3
"""Between two questions of anybody for the cluster's time less than that passes, as long as there are nodes."""
CLOCK_AHEAD_MAX_S = 24 * 3600
"""A server's clock that was set back by more is followed."""

# Housekeeping of the store: one thread of a node, on a connection of its own --------------------
SWEEP_PASS_S = 600
"""In which all nodes together look through every bucket, and so how long a dead record stays at most."""
SWEEP_BUCKETS = 16
"""Buckets that a node takes on at a time."""
SWEEP_IDLE_S = 1.0
"""Between two of a node's looks at what is due, while it finds fewer buckets than it may take."""
SWEEP_BUSY_S = 0.025
"""The same while there is more: a node sweeps at most 640 buckets a second, whatever is due."""
SWEEP_FIELDS_MAX = 4096
"""A bucket with more fields is none of ours, and would hold the server up: it is counted and left to its expiry."""
SURVEY_S = 10.0
"""How often a node tells its policy, hears those of the others and asks for the server's memory."""
MEMBER_TTL_S = 60
"""A node that did not tell its policy for so long has gone."""
MEMBERS_MAX = 1024
"""More than these are forged; nobody reads so many."""
MEMBER_BYTES_MAX = 512
HOUSEKEEPING_RECONNECT_MIN_S = 0.5
HOUSEKEEPING_RECONNECT_MAX_S = 30.0
RATES_S = 5
"""Seconds over which rates of the store are shown."""

HOST_NAME_BYTES_MAX = 253
"""The longest name of a host, without the dot at its end (RFC 1035, section 2.3.4)."""
HOST_NAME_BUCKETS = 1024
"""Hashes of host names. 20 thousand names, those of a million sessions, are 20 in each, and all of them compact up to
half a million."""
HOST_NAME_PLACES = 4
"""Ids that a name may have: the next one where another name has the first."""
HOST_NAME_TTL_S = 4 * 3600
"""A host name's life in the store after it was renewed; two hours before its end it is renewed while it is used."""
HOST_NAMES_CACHED = 1 << 16

# Cut-through -----------------------------------------------------------------------------------
BEAT_STALE_NS = 500 * MS_NS
"""A worker whose loop has not passed for this long gets every packet: a node that hangs stops forwarding."""
SEQUENCE_JUMP_MAX = 1 << 24
"""Bytes by which a segment may lie before or behind the last one bounced; the engine judges those farther off."""
LOOP_GAP_NS_MAX = 250 * MS_NS
"""A loop that stood still for longer takes all sessions back from the cut-through: they may be another node's."""
OUTER_TTL = 64
"""Of the outer header of everything that is returned."""

# Workers ---------------------------------------------------------------------------------------
WORKERS_MAX = 64
HANDOVER_PACKETS = 256
"""Packets on their way from one worker to another; a power of two. What finds no room is dropped by name."""

# Node ------------------------------------------------------------------------------------------
HEARTBEAT_STALE_NS = 300 * MS_NS
"""A worker whose loop has not passed for this long is not healthy."""
POLL_MS_MAX = 50
"""Longest sleep of an idle worker; well under the heartbeat bound."""
POLL_OFFLOADED_MS_MAX = 5
"""The same while the cut-through bounces for it."""
BEAT_MS_MAX = 10
"""A worker that the cut-through bounces for stamps its word this often, unless something holds it up."""
UDP_SOURCE_PORTS_MAX = 64
"""Outer source ports the unprivileged UDP port answers from, one socket each."""
GWLB_SOURCE_PORTS_UNPRIVILEGED = 16
HEALTH_PORT_DEFAULT = 80
HEALTH_BACKLOG = 8
"""Connections the kernel accepts for us: eight concurrent probers, and as few as that, because a
stopped process still passes TCP checks through its backlog."""
HEALTH_REQUEST_BYTES_MAX = 4096
HEALTH_CONNECTIONS_MAX = 64
HEALTH_CONNECTION_S_MAX = 5.0
HEALTH_WATCH_S = 0.05
"""How often the health listener looks at the heartbeat; well under HEARTBEAT_STALE_NS."""
CONTROL_REQUEST_BYTES_MAX = 64 * 1024
CONTROL_ANSWER_BYTES_MAX = 64 * 1024 * 1024
CONTROL_CONNECTIONS_MAX = 64
CONTROL_TIMEOUT_S = 5.0
JOIN_GRACE_S_DEFAULT = 10.0
JOIN_GRACE_S_MAX = 3600.0
DRAIN_TIMEOUT_S_DEFAULT = 300.0
DRAIN_QUIET_S = 10
"""A draining node that receives nothing for this long has no flows any more."""
DRAIN_EMPTY_S = 2
"""The same for a node without a session: the load balancer may not have heard of the drain yet."""
MAINTENANCE_S = 0.1
"""Period of a node's management loop."""

# Bootstrap -------------------------------------------------------------------------------------
USER_DATA_BYTES_MAX = 1 << 16
"""EC2 allows a quarter of it, before base64."""
METADATA_ATTEMPTS = 3
METADATA_TIMEOUT_S = 2.0
"""For each question; the service is on the machine's own host and answers within milliseconds."""
METADATA_TOKEN_S = 60
"""How long a token of the instance metadata service is asked for; AWS allows 1 to 21600."""
PACKAGE_FILES_MAX = 1000
"""Files of a bootstrap package, or objects under its prefix in a bucket."""
SECRET_RETRY_S = 2.0
"""How often a node without a cluster secret looks whether its file is there."""
SECRET_FETCH_RETRY_S = 60.0
"""How often it asks Secrets Manager."""
DNS_TIMEOUT_S = 2.0

# Captures --------------------------------------------------------------------------------------
CAPTURED_BYTES_MAX = 1 << 18
"""Longest frame that a capture may hold; more is damage (libpcap allows no larger snapshot length)."""
CAPTURE_FRAME_BYTES = 65_600
"""Bytes of one packet slot for captures: any IP packet, as offloading hosts show them, behind a link header."""

# Load balancer ---------------------------------------------------------------------------------
GWLB_FLOWS_DEFAULT = 100_000
GWLB_TARGETS_MAX = 300
GWLB_ENDPOINTS_MAX = 64
GWLB_EVENTS_MAX = 1024
"""Changes of target states that are remembered."""
GWLB_SOURCE_PORT_FIRST = 49152
GWLB_SOURCE_PORTS = 16384
"""Outer source ports: the dynamic range (RFC 6335), so that targets spread flows over their queues."""
GWLB_EVENTS_SHOWN = 256
GWLB_WATCH_S = 0.05
"""How often the ends of deregistration delays are looked for, besides when one is due."""
PACKET_RING_BYTES = 8 << 20
"""Of received packets that wait in an endpoint on AF_PACKET: 4096 of ordinary size, 512 jumbo ones."""
GWLB_FRAGMENT_WAYS = 4
GWLB_TABLE_LOAD_MAX = 0.8
"""Flows over slots at which the flow table is sized: two choices of 8 slots."""
GWLB_PROBE_ANSWER_BYTES_MAX = 4096
"""Of the answer to a health check only the first line is read; a longer one fails."""

# Looking over an installation -------------------------------------------------------------------
NODE_SESSION_BYTES = 249
"""Of a node's memory for one session, at the load a table is sized for (``docs/benchmarks.md``)."""
NODE_WORKER_BYTES = 37_500_000
"""Everything of a worker that does not grow with its sessions, for packets of 1500 bytes: engine, loop and a queue of
AF_XDP (``docs/benchmarks.md``)."""
REPLICAS_MAX = 16
DOCTOR_TIMEOUT_S = 5.0
"""For connecting, and for each answer; a store this slow is of no use, but one may want to hear why."""
DOCTOR_ROUND_TRIPS = 200
DOCTOR_REPLY_BYTES_MAX = 4 << 20
SAME_ZONE_NS_MAX = MS_NS
"""A round trip within one zone is shorter; one between zones takes this long or longer."""
CERTIFICATE_DAYS_MIN = 30
SKEW_NS_MAX = SECOND_NS
"""Clocks that differ by more make logs hard to read; sessions go by the store's clock alone."""
REPLICA_LAG_S_MAX = 5
"""Replicas report once a second."""
BUCKET_FIELDS_SEEN = 2 * SESSIONS_PER_BUCKET
"""Sessions of the fullest bucket where there are 64 on average: among a million buckets none has more (Poisson)."""
PROBE_KEY_TTL_S = 10
BUCKET_SESSIONS_LOW = 16
BUCKET_SESSIONS_HIGH = 256
"""Sessions per bucket below and above which the number of buckets does not fit: memory is lost, or time."""

# What the load balancer is recommended to have (docs/failover.md).
DEREGISTRATION_S_ADVISED = 60
HEALTH_INTERVAL_S_ADVISED = 5
HEALTH_TIMEOUT_S_ADVISED = 2
HEALTH_THRESHOLD_ADVISED = 2

assert BUCKET_SLOTS & (BUCKET_SLOTS - 1) == 0
assert FRAME_BYTES >= HEADROOM_BYTES + 40 + 1500
assert JUMBO_FRAME_BYTES > HEADROOM_BYTES + 9001
assert JUMBO_FRAME_BYTES > HEADROOM_BYTES + JUMBO_MTU_MIN
assert HEADROOM_BYTES >= 28, "an IPv4 and a UDP header are written before the packet"
assert FRAME_BYTES >= HEADROOM_BYTES + 8 + GENEVE_OPTIONS_BYTES_MAX + UNREACHABLE_BYTES_6
assert REFUSED_FLOWS & (REFUSED_FLOWS - 1) == 0
assert ANSWERS_MADE_MAX >= 2 * BATCH_PACKETS, "both ends of every packet of a batch"
assert CAPTURE_FRAME_BYTES >= 65_535 + 22, "the longest link header is Ethernet with two tags"
assert LOOKUP_DEADLINE_NS <= NEGATIVE_NS
assert PARKED_PER_FLOW_MAX <= PARKED_PACKETS_MAX
assert XDP_FILL_FRAMES + XDP_RING_ROWS <= XDP_FRAMES, "frames on their way out leave enough for what comes in"
assert XDP_HELD_ROWS + XDP_PIECES_MAX < 1 << 16, "a row names its frame in 16 bits"
assert HANDOVER_PACKETS & (HANDOVER_PACKETS - 1) == 0
assert HANDOVER_PACKETS >= BATCH_PACKETS, "a batch that came to the wrong worker finds room"
assert LOOP_GAP_NS_MAX < BEAT_STALE_NS, "the loop notices its own gap before it is taken for dead"
assert POLL_OFFLOADED_MS_MAX * 2 <= BEAT_MS_MAX
assert BEAT_MS_MAX * MS_NS * 10 <= BEAT_STALE_NS, "what delays a worker a little stops nothing"
assert POLL_MS_MAX * MS_NS * 2 <= HEARTBEAT_STALE_NS
assert HEALTH_WATCH_S * SECOND_NS * 2 <= HEARTBEAT_STALE_NS
assert GWLB_SOURCE_PORT_FIRST + GWLB_SOURCE_PORTS == 1 << 16
assert GWLB_SOURCE_PORTS_UNPRIVILEGED <= UDP_SOURCE_PORTS_MAX
assert BUCKET_TTL_S // 2 >= STORED_IDLE_NS // SECOND_NS + FAILOVER_S
assert LAYOUT_LEASE_NS > 2 * STORE_TIMEOUT_S * SECOND_NS, (
    "it is asked for once a second, and the answer may take one"
)
assert LAYOUT_NOTICE_S * SECOND_NS > 2 * LAYOUT_LEASE_NS
assert LAYOUT_NOTICE_CLUSTER_S >= LAYOUT_NOTICE_S
assert SWEEP_PASS_S < BUCKET_TTL_S // 4, "a bucket is renewed when half of its life has passed"
assert MEMBER_TTL_S > 3 * SURVEY_S
assert HOST_NAME_TTL_S - BUCKET_TTL_S > SWEEP_PASS_S, "a record's host name outlives the record"
assert RECORD_BYTES_MAX < 64, "the longest value of a compact hash"
assert RESYNC_UNANSWERED_MAX <= STORE_BATCH_RECORDS
assert RESYNC_PATIENCE_NS > STORE_TIMEOUT_S * SECOND_NS, "longer than a connection is silent"
assert STORE_RECONNECT_MIN_S <= STORE_RECONNECT_MAX_S < STORE_STEADY_S
assert MOVED_TRUST_NS <= LOOKUP_DEADLINE_NS
assert WAIT_REPLICAS_MS * MS_NS < STRICT_WAIT_NS < STORE_TIMEOUT_S * SECOND_NS
assert REFUSAL_PAUSE_MIN_S <= REFUSAL_PAUSE_MAX_S
assert CLOCK_SLEW_NS < CLOCK_TOLERANCE_NS < CLOCK_STEP_NS_MAX
assert CLOCK_PAUSE_S > 2 * STORE_TIMEOUT_S, "it is asked for once a second, and the answer may take one"
assert CLOCK_STEP_NS_MAX < FAILOVER_S * SECOND_NS, "a smaller step ends no record that a failover needs"
assert SAME_ZONE_NS_MAX < LOOKUP_DEADLINE_NS
assert BUCKET_SESSIONS_LOW < SESSIONS_PER_BUCKET < BUCKET_SESSIONS_HIGH


def frame_bytes_for(mtu: int) -> int:
    """Bytes of one packet slot for an interface of that MTU: an ordinary slot, or a jumbo one.

    What a larger MTU than the cloud's would let in is dropped as ``oversize``.
    """
    # One byte to spare: some ports know a cut packet only by its filling the slot.
    return FRAME_BYTES if HEADROOM_BYTES + mtu < FRAME_BYTES else JUMBO_FRAME_BYTES


def sessions_per_worker(max_sessions: int, workers: int) -> int:
    """Sessions that the table of one of ``workers`` is sized for.

    A hash deals them out, so some worker gets more than its share: by four standard deviations at most, but
    for one node in thousands.
    """
    if workers == 1:
        return max_sessions
    share = -(-max_sessions // workers)
    return share + 4 * math.isqrt(share) + 4
