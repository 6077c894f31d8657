/* The program as it is attached: in frames of one buffer, and in frames of several (jumbo). */
#include "cutthrough.h"

SEC("xdp")
int cutthrough(struct xdp_md *ctx)
{
    return cut_through(ctx, 0);
}

SEC("xdp.frags")
int cutthrough_frags(struct xdp_md *ctx)
{
    return cut_through(ctx, 1);
}

const char fingerprint[] SEC("everwall") = FINGERPRINT;
const char terms[] SEC("license") = "GPL";
