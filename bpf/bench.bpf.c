// The benchmark's own traffic: a generator that runs on live frames (BPF_PROG_RUN), the bare bounce that
// everything is measured against, and the receiver that counts what comes back.
//
// All of it shares one struct in .bss, which user space maps. Generator and receiver run on one processor,
// where neither interrupts the other, so that plain counters do.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include "everwall.h"

#define KINDS 16
#define EPOCHS 4
#define TEMPLATE_WORDS 20
#define BUCKETS 65536
#define BUCKET_NS 250
#define HURRY 8 // while it is behind, packets follow each other closer by one part in so many

enum kind { CLIENT_DATA, SERVER_DATA, SYN, SYN_ACK, ACK, STRAY, MALFORMED };
enum mode { DATA, OPEN, MIX, FLOOD };

#define ETHERNET 14
#define OUTER (ETHERNET + 20 + 8 + 40) // IPv4, UDP, GENEVE with AWS's three options
#define INNER_BYTES 64
#define UDP_PORTS (ETHERNET + 20)
#define OUTER_SOURCE (ETHERNET + 12)
#define COOKIE (OUTER - 4)
#define GENEVE_VERSION (ETHERNET + 20 + 8)
// Of the inner packet
#define IDENT 4 // epoch and kind, a byte each
#define HEADER_CHECKSUM 10
#define SOURCE 12
#define PORTS 20
#define TCP_CHECKSUM 36
#define STAMP 40

struct {
    // What to send; written before a run.
    __u64 mode;
    __u64 geneve;
    __u64 clients; // interface that the clients' packets leave by
    __u64 servers;
    __u64 interval; // ns * 256 between packets, 0 = as fast as it goes
    __u64 backlog; // ns * 256 that are made up for at once; what is beyond, little by little
    __u64 first; // flow
    __u64 flows;
    __u64 opened; // first flow that a run opens
    __u64 open; // connections to open
    __u64 delay; // connections between the steps of one
    __u64 stamped; // 1: packets carry the time
    __u64 flood; // share of FLOOD in 1/65536
    __u64 ports; // mask: outer source ports in use, less one
    __u64 source; // outer addresses as a returned packet has them: low word source, high word destination
    __u64 lenient; // mask: of so many returned packets, less one, one outer header is checked
    // Where it is
    __u64 due;
    __u64 at;
    __u64 turn;
    __u64 step;
    __u64 connection;
    __u64 share;
    __u64 strays;
    __u64 behind; // ns * 256 that are still to be made up for
    __u64 pauses; // frames that were not due
    __u64 redirected; // 1: frames that go round are redirected, as XDP_TX reaches no device without a program
    __u64 mixed;
    __u64 come; // packets that came back
    __u64 loop; // 1: what comes back goes out again as the next packet
    __u64 began; // ns * 256, when the first frame could leave; of a run at a rate
    __u64 epoch; // of packets that leave now, 0 to 3; they carry it, so that lost ones are noticed
    __u64 spare;
    // Counters by kind
    __u64 sent[KINDS];
    __u64 returned[KINDS];
    __u64 others; // came back as something that was not sent
    __u64 sent_in[EPOCHS]; // by epoch
    __u64 come_in[EPOCHS];
    __u64 spares[7];
    __u64 sums[KINDS * 2]; // IPv4 and TCP checksum of a template's constant part, not folded
    __u64 templates[KINDS * TEMPLATE_WORDS]; // by kind: the frame's first bytes
    __u64 latencies[BUCKETS];
} rig;

static __always_inline __u16 fold(__u64 sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

// A frame of a kind and flow, sent off or (``back_out``) back where a frame came from; sums are taken over words as they lie in memory (RFC 1071, 2B).
static __always_inline int emit(struct xdp_md *ctx, __u32 kind, __u64 flow, __u64 now, int geneve, int back_out)
{
    const int at = geneve ? OUTER : ETHERNET;
    const int length = at + INNER_BYTES;
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

    if (data + length > end || kind >= KINDS)
        return XDP_ABORTED;
    void *template = rig.templates + kind * TEMPLATE_WORDS;
#pragma unroll
    for (int i = 0; i < length / 8 * 8; i += 8)
        *(__u64 *)(data + i) = *(__u64 *)(template + i);
#pragma unroll
    for (int i = length / 8 * 8; i < length; i += 2)
        *(__u16 *)(data + i) = *(__u16 *)(template + i);

    __u32 client = __builtin_bswap32(0x0a000000 | (flow & 0x7fffff));
    __u32 server = __builtin_bswap32(0xc6120000 | (flow & 0xff));
    __u16 port = __builtin_bswap16(1024 + ((flow >> 23) & 0x7fff));
    int back = kind == SERVER_DATA || kind == SYN_ACK;
    void *inner = data + at;
    *(__u32 *)(inner + SOURCE) = back ? server : client;
    *(__u32 *)(inner + SOURCE + 4) = back ? client : server;
    *(__u16 *)(inner + PORTS + (back ? 2 : 0)) = port;
    __u32 epoch = rig.epoch & (EPOCHS - 1);
    *(__u8 *)(inner + IDENT) = epoch;
    __u64 sum = (__u64)client + server;
    __u64 tcp = rig.sums[kind * 2 + 1] + sum + port;
    if (rig.stamped && (kind <= SERVER_DATA || kind == ACK)) {
        *(__u64 *)(inner + STAMP) = now;
        tcp += (now & 0xffffffff) + (now >> 32);
    }
    *(__u16 *)(inner + HEADER_CHECKSUM) = fold(rig.sums[kind * 2] + sum + epoch);
    *(__u16 *)(inner + TCP_CHECKSUM) = fold(tcp);
    if (geneve) {
        *(__u16 *)(data + UDP_PORTS) = __builtin_bswap16(40000 + (flow & rig.ports));
        *(__u32 *)(data + COOKIE) = flow;
        if (kind == MALFORMED) {
            // Four ways of being wrong.
            switch (rig.strays & 3) {
            case 0: *(__u8 *)(data + GENEVE_VERSION) = 0x48; break; // version 1
            case 1: *(__u8 *)(data + GENEVE_VERSION) = 0x3f; break; // options beyond the packet's end
            case 2: *(__u8 *)(inner) = 0x44; break; // an IPv4 header too short
            case 3: *(__u8 *)(inner + 2) = 0x7f; break; // longer than what carries it
            }
        }
    }
    rig.sent[kind]++;
    rig.sent_in[epoch]++;
    return back_out && !rig.redirected ? XDP_TX : bpf_redirect(back ? rig.servers : rig.clients, 0);
}

// The next of the three packets of connections that are opened ``delay`` connections apart; a step that has
// nothing to do, at the beginning and the end, is passed over.
static __always_inline int opening(__u32 *kind, __u64 *flow)
{
#pragma unroll
    for (int i = 0; i < 3; i++) {
        __u64 step = rig.step, connection = rig.connection, behind = step * rig.delay;

        rig.step = step == 2 ? 0 : step + 1;
        rig.connection = connection + (step == 2);
        if (connection >= behind && connection - behind < rig.open) {
            *kind = SYN + step;
            *flow = rig.opened + connection - behind;
            return 1;
        }
    }
    return 0;
}

static __always_inline void established(__u32 *kind, __u64 *flow)
{
    __u64 at = rig.at;

    *flow = rig.first + at;
    *kind = (rig.turn ^ at) & 1 ? SERVER_DATA : CLIENT_DATA;
    if (at + 1 >= rig.flows) {
        rig.at = 0;
        rig.turn ^= 1;
    } else {
        rig.at = at + 1;
    }
}

// What the mode sends next; 0 when there is nothing left.
static __always_inline int choose(__u32 *kind, __u64 *flow)
{
    switch (rig.mode) {
    case OPEN:
        return opening(kind, flow);
    case MIX:
        // Of twenty packets one opens a connection, two go on with it.
        rig.mixed = rig.mixed >= 19 ? 0 : rig.mixed + 1;
        if (rig.mixed >= 3 || !opening(kind, flow))
            established(kind, flow);
        return 1;
    case FLOOD:
        rig.share += rig.flood;
        if (rig.share >= 65536) {
            rig.share -= 65536;
            rig.strays++;
            *kind = STRAY + (rig.strays >> 2 & 1);
            *flow = 0x100000000 | (__u32)(rig.strays * 2654435761);
            return 1;
        }
    }
    established(kind, flow);
    return 1;
}

static __always_inline int generate_any(struct xdp_md *ctx, int geneve)
{
    __u64 now = 0, flow;
    __u32 kind;

    if (rig.interval || rig.stamped)
        now = bpf_ktime_get_ns();
    if (rig.interval) {
        __u64 scaled = now << 8;
        if (!rig.began)
            rig.began = rig.due = scaled;
        if (scaled < rig.due) {
            rig.pauses++;
            return XDP_DROP;
        }
        if (scaled - rig.due > rig.backlog) {
            rig.behind += scaled - rig.backlog - rig.due;
            rig.due = scaled - rig.backlog;
        }
        __u64 hurry = rig.interval / HURRY;
        if (hurry > rig.behind)
            hurry = rig.behind;
        rig.behind -= hurry;
        rig.due += rig.interval - hurry;
    }
    if (!choose(&kind, &flow))
        return XDP_DROP;
    return emit(ctx, kind, flow, now, geneve, 0);
}

SEC("xdp")
int generate_geneve(struct xdp_md *ctx)
{
    return generate_any(ctx, 1);
}

SEC("xdp")
int generate_plain(struct xdp_md *ctx)
{
    return generate_any(ctx, 0);
}

static __always_inline void count(void *inner)
{
    __u32 kind = *(__u8 *)(inner + IDENT + 1);

    if (kind >= KINDS) {
        rig.others++;
        return;
    }
    rig.returned[kind]++;
    rig.come_in[*(__u8 *)(inner + IDENT) & (EPOCHS - 1)]++;
    if (rig.stamped && (kind <= SERVER_DATA || kind == ACK)) {
        __u64 bucket = (bpf_ktime_get_ns() - *(__u64 *)(inner + STAMP)) / BUCKET_NS;
        if (bucket >= BUCKETS)
            bucket = BUCKETS - 1;
        rig.latencies[bucket & (BUCKETS - 1)]++;
    }
}

SEC("xdp")
int receive_geneve(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    __u64 flow;
    __u32 kind;

    if (data + OUTER + INNER_BYTES > end)
        return XDP_DROP;
    // The device under test has just written there: from the other processor it is slow to read.
    if ((rig.come++ & rig.lenient) == 0 &&
        (*(__u16 *)(data + 12) != __builtin_bswap16(ETH_P_IP) ||
         *(__u8 *)(data + ETHERNET + 9) != IPPROTO_UDP ||
         *(__u16 *)(data + UDP_PORTS + 2) != __builtin_bswap16(GENEVE_PORT) ||
         *(__u32 *)(data + OUTER_SOURCE) != (__u32)rig.source ||
         *(__u32 *)(data + OUTER_SOURCE + 4) != (__u32)(rig.source >> 32) ||
         (__u16)(__builtin_bswap16(*(__u16 *)(data + UDP_PORTS)) - 40000) > rig.ports)) {
        rig.others++;
        return XDP_DROP;
    }
    count(data + OUTER);
    if (rig.loop && choose(&kind, &flow))
        return emit(ctx, kind, flow, 0, 1, 1);
    return XDP_DROP;
}

SEC("xdp")
int receive_plain(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    __u64 flow;
    __u32 kind;

    if (data + ETHERNET + INNER_BYTES > end || *(__u16 *)(data + 12) != __builtin_bswap16(ETH_P_IP))
        return XDP_DROP;
    rig.come++;
    count(data + ETHERNET);
    if (rig.loop && choose(&kind, &flow))
        return emit(ctx, kind, flow, 0, 0, 0);
    return XDP_DROP;
}

// Turn every packet around, and nothing else.
SEC("xdp")
int bounce(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

    if (data + OUTER > end)
        return XDP_DROP;
    __u16 *ethernet = data;
#pragma unroll
    for (int i = 0; i < 3; i++) {
        __u16 kept = ethernet[i];
        ethernet[i] = ethernet[i + 3];
        ethernet[i + 3] = kept;
    }
    __u32 *address = data + OUTER_SOURCE;
    __u32 kept = address[0];
    address[0] = address[1];
    address[1] = kept;
    return XDP_TX;
}

struct {
    __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u32);
} target SEC(".maps");

// For BPF_PROG_TEST_RUN, which always takes the same packet: the next flow's packet, handed to ``target``.
SEC("xdp")
int cycle(struct xdp_md *ctx)
{
    __u32 kind;
    __u64 flow;

    established(&kind, &flow);
    emit(ctx, kind, flow, 0, 1, 1);
    bpf_tail_call(ctx, &target, 0);
    return XDP_ABORTED;
}

// Where packets end that show how fast the generator alone is.
SEC("xdp")
int sink(struct xdp_md *ctx)
{
    (void)ctx;
    return XDP_DROP;
}

const char fingerprint[] SEC("everwall") = FINGERPRINT;
const char terms[] SEC("license") = "GPL";
