/* The cut-through: what the engine decided for a session, repeated in the driver.
 *
 * A packet of a session that the engine has offloaded goes back to the load balancer it came from: counted, its MACs
 * and outer addresses swapped, everything else as it came. Whatever is not plainly such a packet is handed up to the
 * engine through an AF_XDP socket, and what is no GENEVE for this node goes on to the kernel. Nothing is decided here.
 *
 * One linear program: cheap refusals first, then the key, the hash, the table. `everwall.h` holds the constants that the
 * build takes from the Python sources, so both sides read one number. The whole is inline, so that the benchmark's
 * program can rewrite a packet's tuple and run the very same code.
 */
#include "everwall.h"

#include <linux/bpf.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;

/* What the engine shares ------------------------------------------------------------------------------------- */

/* The words of session/control.py; `.bss` is a memory-mapped array that is read without a look-up. */
volatile u64 control[CONTROL_WORDS] __attribute__((aligned(64)));

struct hot_line { /* one session, 64 bytes: columns of session/table.py */
    union {
        volatile u64 wide[8];
        volatile u32 half[16];
    };
};

struct addresses_line { /* lower high, lower low, upper high, upper low */
    volatile u64 half[4];
};

/* The loader sets how many entries these have. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, struct hot_line);
} hot SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, u64); /* the tags of one set */
} tags SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, struct addresses_line);
} addresses SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, u32);
} sockets SEC(".maps");

struct outcomes {
    u64 count[OUTCOMES];
};

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, struct outcomes);
} counters SEC(".maps");

/* Reading packets: any alignment, network order as it stands -------------------------------------------------- */

#define READ8(at) (*(const u8 *)(at))
#define READ16(at) (*(const u16 *)(at))
#define READ32(at) (*(const u32 *)(at))
#define READ64(at) (*(const u64 *)(at))
#define WRITE16(at, value) (*(u16 *)(at) = (value))
#define WRITE32(at, value) (*(u32 *)(at) = (value))
#define WRITE64(at, value) (*(u64 *)(at) = (value))

enum { /* offsets in the frame */
    MAC_DESTINATION = 0,
    MAC_SOURCE = 6,
    ETHER_TYPE = 12,
    IP = 14,
    IP_LENGTH = IP + 2,
    IP_FRAGMENT = IP + 6,
    IP_TTL = IP + 8,
    IP_PROTOCOL = IP + 9,
    IP_CHECKSUM = IP + 10,
    IP_ADDRESSES = IP + 12,
    UDP = IP + 20,
    UDP_DESTINATION = UDP + 2,
    UDP_LENGTH = UDP + 4,
    UDP_CHECKSUM = UDP + 6,
    GENEVE = UDP + 8,
    OPTIONS = GENEVE + GENEVE_HEADER_BYTES,
};

#define OPTION_BYTES_MIN 12 /* an endpoint alone */
#define OPTION_BYTES_MAX 32 /* endpoint, attachment and cookie */
#define HEADERS_MIN (OPTIONS + OPTION_BYTES_MIN + 20 + 8)
_Static_assert(HEADERS_MIN - OPTIONS >= OPTION_BYTES_MAX + 4, "options are read without further checks");

#define FRAGMENTED bpf_htons(0x3FFF) /* more fragments, or an offset */
#define TCP_URG 0x20
#define OPTION(type, words) bpf_htonl(GENEVE_CLASS_AWS << 16 | (type) << 8 | (words))
#define OPTION_MASK bpf_htonl(0xFFFFFF1F) /* without the reserved bits beside the length */

/* On arm64 loads may overtake each other; an address that hangs on the value loaded before may not. On x86-64 loads
 * keep their order, and this is the pointer alone. */
#ifdef LOADS_ARE_UNORDERED
#define AFTER(pointer, value)                                       \
    ({                                                              \
        u64 nothing_ = (value);                                     \
        asm volatile("%0 &= 0" : "+r"(nothing_));                   \
        (typeof(pointer))((char *)(pointer) + nothing_);            \
    })
#else
#define AFTER(pointer, value) (pointer)
#endif

/* Hash and signature, as flow.py has them: NH over 32-bit halves under secrets, then a mix ------------------------ */

#define SPREAD 0xD6E8FEB86659FD93ULL

static __always_inline u32 rotate(u32 word, u32 bits)
{
    return word << bits | word >> (32 - bits);
}

static __always_inline u64 product(u64 word, u32 number)
{
    u64 key = control[CONTROL_SECRET + number];

    return (u64)((u32)word + (u32)key) * ((u32)(word >> 32) + (u32)(key >> 32));
}

static __always_inline u64 mix(u64 word)
{
    word = (word ^ word >> 32) * SPREAD;
    word = (word ^ word >> 32) * SPREAD;
    return word ^ word >> 32;
}

/* What is known of a packet ---------------------------------------------------------------------------------------- */

struct flow {
    u64 key0, key1, key2;
    u64 lower_high, lower_low, upper_high, upper_low; /* IPv6 only */
};

/* The ones-complement sum of a 20-byte IPv4 header is all ones where its checksum is right. */
static __always_inline int header_is_right(const void *header)
{
    u64 sum = (u64)READ32(header) + READ32(header + 4) + READ32(header + 8) + READ32(header + 12) +
              READ32(header + 16);

    sum = (sum >> 32) + (u32)sum;
    sum = (sum >> 16) + (sum & 0xFFFF);
    sum = (sum >> 16) + (sum & 0xFFFF);
    return sum == 0xFFFF;
}

static __always_inline int is_local(u64 address)
{
    u64 count = control[CONTROL_ADDRESSES];

    if (count == 0)
        return 1;
    for (u32 i = 0; i < CONTROL_ADDRESSES_MAX && i < count; i++)
        if (control[CONTROL_ADDRESS + i] == address)
            return 1;
    return 0;
}

static __always_inline int source_allowed(u64 address)
{
    u64 count = control[CONTROL_SOURCES];

    for (u32 i = 0; i < CONTROL_SOURCES_MAX && i < count; i++)
        if (control[CONTROL_SOURCE + 2 * i] <= address && address <= control[CONTROL_SOURCE + 2 * i + 1])
            return 1;
    return 0;
}

/* One option that a gateway load balancer writes, each at most once; nothing at the end of them. HEADERS_MIN has been
 * checked, and bounds everything that is read here. */
static __always_inline int read_option(const void *options, u32 length, u32 *at, u32 *seen, u64 *endpoint)
{
    u32 head, option, bytes = 12;

    if (*at == length)
        return 1;
    head = READ32(options + *at) & OPTION_MASK;
    if (head == OPTION(GENEVE_TYPE_ENDPOINT, 2)) {
        *endpoint = bpf_be64_to_cpu(READ64(options + *at + 4));
        option = 1;
    } else if (head == OPTION(GENEVE_TYPE_ATTACHMENT, 2)) {
        option = 2;
    } else if (head == OPTION(GENEVE_TYPE_COOKIE, 1)) {
        option = 4;
        bytes = 8;
    } else {
        return 0;
    }
    if (*seen & option)
        return 0;
    *seen |= option;
    *at += bytes;
    return 1;
}

/* Endpoint, attachment and cookie in any order; true when the endpoint is among them and nothing else. */
static __always_inline int read_options(const void *options, u32 length, u64 *endpoint)
{
    u32 at = 0, seen = 0;

    return read_option(options, length, &at, &seen, endpoint) && read_option(options, length, &at, &seen, endpoint) &&
           read_option(options, length, &at, &seen, endpoint) && at == length && seen & 1;
}

/* Addresses in canonical order and their signature; all ones when the source is the upper end. Apart from the rest,
 * so that it takes nothing from IPv4. */
static __noinline u64 read_ipv6_ends(const void *inner, u32 ports, struct flow *flow)
{
    u64 source_high = bpf_be64_to_cpu(READ64(inner + 8)), source_low = bpf_be64_to_cpu(READ64(inner + 16));
    u64 destination_high = bpf_be64_to_cpu(READ64(inner + 24)), destination_low = bpf_be64_to_cpu(READ64(inner + 32));
    u64 high = source_high ^ destination_high, low = source_low ^ destination_low, turned;

    if (high)
        turned = destination_high < source_high;
    else if (low)
        turned = destination_low < source_low;
    else
        turned = (ports & 0xFFFF) < ports >> 16;
    turned = -turned;
    flow->lower_high = source_high ^ (high & turned);
    flow->lower_low = source_low ^ (low & turned);
    flow->upper_high = destination_high ^ (high & turned);
    flow->upper_low = destination_low ^ (low & turned);
    flow->key1 = mix(product(flow->lower_high, 3) + product(flow->lower_low, 4) + product(flow->upper_high, 5) +
                     product(flow->upper_low, 6));
    return turned;
}

/* The table ---------------------------------------------------------------------------------------------------------- */

#define LANES 0x0101010101010101ULL

/* 0x80 in every byte of `set` that equals the tag. */
static __always_inline u64 equal_lanes(u64 set, u64 pattern)
{
    const u64 low = 0x7F * LANES;
    u64 different = set ^ pattern;

    return ~(((different & low) + low) | different | low);
}

/* The place of the only bit that is set, by a de Bruijn sequence. */
static const u8 bit_place[64] = {
    0,  1,  48, 2,  57, 49, 28, 3,  61, 58, 50, 42, 38, 29, 17, 4,  62, 55, 59, 36, 53, 51,
    43, 22, 45, 39, 33, 30, 24, 18, 12, 5,  63, 47, 56, 27, 60, 41, 37, 16, 54, 35, 52, 21,
    44, 32, 23, 11, 46, 26, 40, 15, 34, 20, 31, 10, 25, 14, 19, 9,  13, 8,  7,  6,
};
#define BIT_PLACES 0x03F79D71B4CB0A89ULL

_Static_assert(SET_CHOICES == 4 && BUCKET_SLOTS == 8, "find compares four sets of eight tags");

/* The line of a flow, or none. All four sets are asked at once: which of them holds it is as good as random, and four
 * cache misses that overlap cost as much as one. */
static __always_inline struct hot_line *find(const struct flow *flow, u64 hashed, u32 worker, u32 *line_control)
{
    u32 low = hashed, step = hashed >> 32 | 1, tag = hashed >> 32 & 0xFF;
    u64 sets = control[CONTROL_SETS], pattern, lanes;
    u64 first = worker * sets;
    u32 set[4];
    u64 *tags0, *tags1, *tags2, *tags3;

    set[0] = first + (low * sets >> 32);
    set[1] = first + ((u32)(low + step) * sets >> 32);
    set[2] = first + ((u32)(low + 2 * step) * sets >> 32);
    set[3] = first + ((u32)(low + 3 * step) * sets >> 32);
    tags0 = bpf_map_lookup_elem(&tags, &set[0]);
    tags1 = bpf_map_lookup_elem(&tags, &set[1]);
    tags2 = bpf_map_lookup_elem(&tags, &set[2]);
    tags3 = bpf_map_lookup_elem(&tags, &set[3]);
    if (!tags0 || !tags1 || !tags2 || !tags3)
        return 0;
    pattern = (tag ? tag : 1) * LANES;
    /* Bit 8 * lane + choice. */
    lanes = equal_lanes(*tags0, pattern) >> 7 | equal_lanes(*tags1, pattern) >> 6 |
            equal_lanes(*tags2, pattern) >> 5 | equal_lanes(*tags3, pattern) >> 4;

    for (int k = 0; k < 4 * BUCKET_SLOTS && lanes; k++, lanes &= lanes - 1) {
        u32 place = bit_place[(lanes & -lanes) * BIT_PLACES >> 58];
        u32 slot = set[place & 3] * BUCKET_SLOTS + (place >> 3);
        struct hot_line *line = bpf_map_lookup_elem(&hot, &slot);
        u64 difference;

        if (!line)
            return 0;
        *line_control = line->half[HOT_CONTROL];
        line = AFTER(line, *line_control);
        difference = (line->wide[HOT_KEY0] ^ flow->key0) | (line->wide[HOT_KEY1] ^ flow->key1) |
                     (line->wide[HOT_KEY2] ^ flow->key2);
        if (difference)
            continue;
        if (flow->key2 >> 40 == 6) { /* key1 is but a signature of the addresses */
            struct addresses_line *ends = bpf_map_lookup_elem(&addresses, &slot);

            if (!ends)
                return 0;
            ends = AFTER(ends, *line_control);
            difference = (ends->half[ADDRESS_LOWER_HIGH] ^ flow->lower_high) |
                         (ends->half[ADDRESS_LOWER_LOW] ^ flow->lower_low) |
                         (ends->half[ADDRESS_UPPER_HIGH] ^ flow->upper_high) |
                         (ends->half[ADDRESS_UPPER_LOW] ^ flow->upper_low);
            if (difference)
                continue;
        }
        return AFTER(line, difference);
    }
    return 0;
}

/* The way of a packet ------------------------------------------------------------------------------------------------- */

static __always_inline void bounce_headers(void *data)
{
    u64 macs = READ64(data); /* destination, and the first bytes of the source */
    u32 rest = READ32(data + 8);
    u64 both = READ64(data + IP_ADDRESSES);
    u32 time = READ16(data + IP_TTL), sum;

    WRITE64(data, macs >> 48 | (u64)rest << 16 | macs << 48);
    WRITE32(data + 8, (u32)(macs >> 16));
    WRITE64(data + IP_ADDRESSES, both >> 32 | both << 32);
    /* RFC 1624: the swap leaves the checksum as it is, the new time to live does not. */
    sum = (u16)~READ16(data + IP_CHECKSUM) + (u16)~time + (OUTER_TTL | (time & 0xFF00));
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum = (sum & 0xFFFF) + (sum >> 16);
    WRITE32(data + IP_TTL, OUTER_TTL | (time & 0xFF00) | ~sum << 16);
    /* None: RFC 8926 section 3.3 allows it, and a sender on the same host may have left it half-done. */
    WRITE16(data + UDP_CHECKSUM, 0);
}

/* Whether it may be that the packet belongs to a session that is there. */
static __always_inline int is_known(u32 outcome)
{
    return outcome == OUTCOME_TCP_FLAGS || outcome >= OUTCOME_NOT_OFFLOADED || outcome == OUTCOME_DISABLED;
}

/* Count why, and give the packet to the engine; to the kernel where no socket waits on its queue. A socket that is full
 * drops the packet as well, but copies it first. */
static __noinline int hand_up(struct xdp_md *ctx, u32 outcome)
{
    u32 zero = 0, queue = ctx->rx_queue_index;
    struct outcomes *outcomes = bpf_map_lookup_elem(&counters, &zero);

    if (queue < CONTROL_QUEUES_MAX) {
        volatile u64 *room = &control[CONTROL_ROOM + queue * CONTROL_ROOM_WORDS];
        u64 limit = room[CONTROL_LIMIT], handed = room[CONTROL_HANDED];

        if (limit && (s64)(limit - handed) <= (is_known(outcome) ? 0 : CONTROL_ROOM_KEPT)) {
            if (outcomes)
                outcomes->count[OUTCOME_NO_ROOM] += 1;
            return XDP_DROP;
        }
        room[CONTROL_HANDED] = handed + 1;
    }
    if (outcomes && outcome < OUTCOMES)
        outcomes->count[outcome] += 1;
    return bpf_redirect_map(&sockets, queue, XDP_PASS);
}

/* Not ours. */
static __noinline int pass(void)
{
    u32 zero = 0;
    struct outcomes *outcomes = bpf_map_lookup_elem(&counters, &zero);

    if (outcomes)
        outcomes->count[OUTCOME_PASSED] += 1;
    return XDP_PASS;
}

static __always_inline int cut_through(struct xdp_md *ctx, const int frags)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end, *inner, *transport;
    u32 zero = 0, bytes, left, option_bytes, ports, protocol, sequence_end = 0, acknowledged = 0, direction, worker, line_control;
    struct outcomes *outcomes;
    struct hot_line *line;
    struct flow flow;
    u64 hashed, want, now, turned;
    u16 first, type;

    /* Is it GENEVE for us? Anything else is the kernel's. */
    if (data + GENEVE > end)
        return pass();
    if ((READ32(data + ETHER_TYPE) & bpf_htonl(0xFFFFFF00)) != bpf_htonl(0x08004500) || READ8(data) & 1)
        return pass();
    if (READ8(data + IP_PROTOCOL) != META_PROTOCOL_UDP || READ16(data + UDP_DESTINATION) != bpf_htons(GENEVE_PORT))
        return pass();
    if (READ16(data + IP_FRAGMENT) & FRAGMENTED || !header_is_right(data + IP))
        return pass();
    if (!is_local(bpf_ntohl(READ32(data + IP_ADDRESSES + 4))))
        return pass();

    /* Does the engine take it from there? */
    if (!control[CONTROL_ENABLED])
        return hand_up(ctx, OUTCOME_DISABLED);
    if (!source_allowed(bpf_ntohl(READ32(data + IP_ADDRESSES))))
        return hand_up(ctx, OUTCOME_SOURCE);

    /* Do all lengths agree? */
    if (data + HEADERS_MIN > end)
        return hand_up(ctx, OUTCOME_LENGTH);
    bytes = bpf_ntohs(READ16(data + IP_LENGTH));
    if (bpf_ntohs(READ16(data + UDP_LENGTH)) + (UDP - IP) != bytes)
        return hand_up(ctx, OUTCOME_LENGTH);
    if ((frags ? bpf_xdp_get_buff_len(ctx) : (u64)(end - data)) != bytes + IP)
        return hand_up(ctx, OUTCOME_LENGTH);

    /* GENEVE */
    first = READ16(data + GENEVE);
    type = READ16(data + GENEVE + 2);
    option_bytes = (first & 0xFF) * 4; /* too many where the version is not 0 */
    if (option_bytes < OPTION_BYTES_MIN || option_bytes > OPTION_BYTES_MAX)
        return hand_up(ctx, OUTCOME_OPTIONS);
    if (!read_options(data + OPTIONS, option_bytes, &flow.key0))
        return hand_up(ctx, OUTCOME_OPTIONS);
    if (first & 0x8000)
        return hand_up(ctx, OUTCOME_INNER_PROTOCOL); /* a control packet */

    /* The inner IP header */
    inner = data + OPTIONS + option_bytes;
    bytes -= OPTIONS - IP + option_bytes;
    if (type == bpf_htons(GENEVE_PROTOCOL_TYPE_IPV4)) {
        if (inner + 28 > end || READ16(inner + 2) != bpf_htons(bytes))
            return hand_up(ctx, OUTCOME_LENGTH);
        if (READ8(inner) != 0x45)
            return hand_up(ctx, OUTCOME_INNER_PROTOCOL);
        if (READ16(inner + 6) & FRAGMENTED)
            return hand_up(ctx, OUTCOME_FRAGMENT);
        if (!header_is_right(inner))
            return hand_up(ctx, OUTCOME_INNER_CHECKSUM);
        protocol = READ8(inner + 9);
        left = bytes - 20;
        transport = inner + 20;
        flow.key2 = 4ULL << 40;
    } else if (type == bpf_htons(GENEVE_PROTOCOL_TYPE_IPV6)) {
        left = bytes - 40;
        if (inner + 48 > end || READ16(inner + 4) != bpf_htons(left))
            return hand_up(ctx, OUTCOME_LENGTH);
        if (READ8(inner) >> 4 != 6)
            return hand_up(ctx, OUTCOME_INNER_PROTOCOL);
        protocol = READ8(inner + 6);
        transport = inner + 40;
        flow.key2 = 6ULL << 40;
    } else {
        return hand_up(ctx, OUTCOME_INNER_PROTOCOL);
    }

    /* The transport header */
    ports = bpf_ntohl(READ32(transport)); /* source in the high half */
    if (protocol == META_PROTOCOL_TCP) {
        u32 header, flags;

        if (transport + 20 > end)
            return hand_up(ctx, OUTCOME_LENGTH);
        flags = READ16(transport + 12); /* header length in the low byte, flags in the high one */
        header = (flags & 0xF0) >> 2;
        flags >>= 8;
        if (header < 20 || header > left)
            return hand_up(ctx, OUTCOME_TRANSPORT_HEADER);
        if ((flags & (META_TCP_ACK | META_TCP_SYN | META_TCP_FIN | META_TCP_RST | TCP_URG)) != META_TCP_ACK)
            return hand_up(ctx, OUTCOME_TCP_FLAGS);
        sequence_end = bpf_ntohl(READ32(transport + 4)) + left - header;
        acknowledged = bpf_ntohl(READ32(transport + 8));
    } else if (protocol == META_PROTOCOL_UDP) {
        u32 length = bpf_ntohs(READ16(transport + 4));

        if (length < 8 || length > left)
            return hand_up(ctx, OUTCOME_TRANSPORT_HEADER);
    } else {
        return hand_up(ctx, OUTCOME_INNER_PROTOCOL);
    }

    /* The key: ends in canonical order. Which one is lower is as good as random, so there is no branch. */
    if (type == bpf_htons(GENEVE_PROTOCOL_TYPE_IPV4)) {
        u64 both = bpf_be64_to_cpu(READ64(inner + 12)), other = both >> 32 | both << 32;

        turned = (s64)(((u64)(u32)both << 16 | (ports & 0xFFFF)) - ((both >> 32) << 16 | ports >> 16)) >> 63;
        flow.key1 = both ^ ((both ^ other) & turned);
    } else {
        turned = read_ipv6_ends(inner, ports, &flow);
    }
    flow.key2 |= (u64)protocol << 32 | (rotate(ports, 16) ^ ((rotate(ports, 16) ^ ports) & (u32)turned));
    direction = turned & 1;

    /* The session */
    hashed = mix(product(flow.key0, 0) + product(flow.key1, 1) + product(flow.key2, 2));
    worker = (hashed >> 32) * control[CONTROL_WORKERS] >> 32;
    if (worker >= CONTROL_WORKERS_MAX)
        return hand_up(ctx, OUTCOME_NO_SESSION);
    line = find(&flow, hashed, worker, &line_control);
    if (!line)
        return hand_up(ctx, OUTCOME_NO_SESSION);

    /* Does its worker want it bounced, and live? */
    want = control[CONTROL_WORKER + worker * CONTROL_WORKER_WORDS + CONTROL_WANT];
    if (!(want & 1) || (line_control & CONTROL_EPOCH_MASK) != want || line->half[HOT_CONTROL] != line_control)
        return hand_up(ctx, OUTCOME_NOT_OFFLOADED);
    now = bpf_ktime_get_coarse_ns();
    if ((s64)(now - control[CONTROL_WORKER + worker * CONTROL_WORKER_WORDS + CONTROL_BEAT]) > BEAT_STALE_NS)
        return hand_up(ctx, OUTCOME_STALE);

    /* Nothing speaks against it. */
    if (protocol == META_PROTOCOL_TCP) {
        s32 ahead = sequence_end - line->half[HOT_END_LOWER + direction];
        /* What was not sent cannot be acknowledged. Who guesses has to guess both numbers. */
        u32 behind = line->half[HOT_END_LOWER + 1 - direction] - acknowledged;

        if (ahead > SEQUENCE_JUMP_MAX || ahead < -SEQUENCE_JUMP_MAX || behind > SEQUENCE_JUMP_MAX)
            return hand_up(ctx, OUTCOME_SEQUENCE);
        if (ahead > 0)
            line->half[HOT_END_LOWER + direction] = sequence_end;
    }
    line->half[HOT_SEEN] = now >> HOT_SEEN_SHIFT;
    line->half[HOT_PACKETS_LOWER + direction] += 1;
    line->wide[HOT_BYTES_LOWER + direction] += bytes;
    bounce_headers(data);
    outcomes = bpf_map_lookup_elem(&counters, &zero);
    if (outcomes) {
        outcomes->count[OUTCOME_BOUNCED] += 1;
        outcomes->count[OUTCOME_BOUNCED_BYTES] += bytes;
    }
    return XDP_TX;
}
