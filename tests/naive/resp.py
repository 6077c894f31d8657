"""The commands of one pipeline as plain Python puts them together: the oracle of ``store/resp.py``."""

from everwall.limits import BUCKET_TTL_S
from everwall.session import image
from tests.naive import record


def commands(
    rows,
    secret: bytes,
    prefix: bytes,
    shas: dict[int, bytes],
    lives_until: list[int],
    now_s: int,
    others: list[tuple[bytes, bytes, int]] = [],  # noqa: B006
) -> list[tuple[bytes, ...]]:
    """First writes, script calls of 32 records, look-ups, expiries; ``lives_until`` is raised as there.

    ``others``: secret, prefix and number of buckets of each other place.
    """
    fields = [record.field(row, secret) for row in rows]
    values = [record.seal(row, secret) for row in rows]
    numbers = [int.from_bytes(field, "big") % len(lives_until) for field in fields]
    keys = [b"%s%x}" % (prefix, number) for number in numbers]

    def of(operation: int) -> list[int]:
        return [i for i, row in enumerate(rows) if row[image.OP] == operation]

    def elsewhere(i: int, place: tuple[bytes, bytes, int]) -> tuple[bytes, bytes]:
        field = record.field(rows[i], place[0])
        return b"%s%x}" % (place[1], int.from_bytes(field, "big") % place[2]), field

    made = [(b"HSET", keys[i], fields[i], values[i]) for i in of(image.WRITE_FIRST)]
    for operation in (image.WRITE, image.DELETE):
        asked = of(operation)
        for at in range(0, len(asked), 32):
            group = asked[at : at + 32]
            pairs = [part for i in group for part in (fields[i], values[i])]
            made.append((b"EVALSHA", shas[operation], b"%d" % len(group), *(keys[i] for i in group), *pairs))
    for place in others:
        asked = of(image.DELETE) + of(image.CLEAR)
        for at in range(0, len(asked), 32):
            group = asked[at : at + 32]
            targets = [elsewhere(i, place)[0] for i in group]
            pairs = [part for i in group for part in (elsewhere(i, place)[1], values[i])]
            made.append((b"EVALSHA", shas[image.DELETE], b"%d" % len(group), *targets, *pairs))
    made += [(b"HGET", keys[i], fields[i]) for i in of(image.LOOKUP)]
    made += [(b"HGET", *elsewhere(i, place)) for place in others for i in of(image.LOOKUP)]
    for row, key, number in zip(rows, keys, numbers, strict=True):
        expiry = int(row[image.EXPIRY])
        if row[image.OP] in (image.WRITE_FIRST, image.WRITE) and expiry > lives_until[number]:
            life = max(BUCKET_TTL_S, 2 * (expiry - now_s))
            lives_until[number] = now_s + life
            made += [(b"EXPIRE", key, b"%d" % life, condition) for condition in (b"NX", b"GT")]
    return made
