# For scripts that run stages, each with its time. A failed stage does not keep the others from running, so that one
# run tells everything; `summary` ends the script, with 1 when any stage failed.
#
# Expects the checkout as the working directory.

python=.venv/bin/python
began=$(date +%s)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

stage() {
    title=$1
    shift
    printf '\n=== %s\n' "$title"
    start=$(date +%s)
    "$@"
    status=$?
    seconds=$(($(date +%s) - start))
    verdict=ok
    if [ $status -ne 0 ]; then
        verdict=FAILED
        echo "$title" >>"$work/failed"
    fi
    printf '%-46s %5d s  %s\n' "$title" $seconds $verdict >>"$work/times"
    return $status
}

summary() {
    printf '\n=== times\n%s\n%-46s %5d s\n' "$(cat "$work/times")" total $(($(date +%s) - began))
    [ ! -e "$work/failed" ] || { echo "failed: $(paste -s -d ';' "$work/failed")" >&2; exit 1; }
    exit 0
}
