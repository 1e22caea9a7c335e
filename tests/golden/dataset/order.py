"""Orders and splits of `dolly_core::dataset`, by an implementation of its own.

ChaCha is written from RFC 8439's quarter round with 8 rounds and a 64-bit block counter and stream;
the rest from the words at the head of `dolly-core/src/dataset/order.rs`.

    python tests/golden/dataset/order.py > tests/golden/dataset/order.json
"""

import json
import struct

MASK = 0xFFFFFFFF


def rotate(value, bits):
    return ((value << bits) | (value >> (32 - bits))) & MASK


def quarter(s, a, b, c, d):
    s[a] = (s[a] + s[b]) & MASK
    s[d] = rotate(s[d] ^ s[a], 16)
    s[c] = (s[c] + s[d]) & MASK
    s[b] = rotate(s[b] ^ s[c], 12)
    s[a] = (s[a] + s[b]) & MASK
    s[d] = rotate(s[d] ^ s[a], 8)
    s[c] = (s[c] + s[d]) & MASK
    s[b] = rotate(s[b] ^ s[c], 7)


def block(key, counter, stream, rounds=8):
    state = list(struct.unpack("<4I", b"expand 32-byte k")) + list(struct.unpack("<8I", key))
    state += [counter & MASK, counter >> 32, stream & MASK, stream >> 32]
    work = list(state)
    for _ in range(rounds // 2):
        for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            quarter(work, a, b, c, d)
        for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            quarter(work, a, b, c, d)
    return struct.pack("<16I", *((x + y) & MASK for x, y in zip(work, state)))


def words(seed, stream):
    key = struct.pack("<Q", seed) + bytes(24)
    counter = 0
    while True:
        yield from struct.unpack("<8Q", block(key, counter, stream))
        counter += 1


def order(count, seed, stream):
    source = words(seed, stream)
    places = list(range(count))
    for i in range(count - 1, 0, -1):
        n = i + 1
        while True:
            x = next(source)
            if x < 2**64 - 2**64 % n:
                break
        j = x % n
        places[i], places[j] = places[j], places[i]
    return places


# RFC 8439, section 2.3.2, with 20 rounds: the quarter rounds and the layout are right.
rfc = block(bytes(range(32)), 1 | (0x09000000 << 32), 0x4A000000, rounds=20)
assert rfc[:8].hex() == "10f1e7e4d13b5915", rfc[:8].hex()

cases = []
for seed, count in [(0, 3), (1, 5), (42, 10), (42, 100), (2**63, 33), (2**64 - 1, 257)]:
    apart = set(order(count, seed, 1)[: count // 3])
    cases.append(
        {
            "seed": str(seed),
            "rows": count,
            "shuffle": order(count, seed, 0),
            "test": [row for row in range(count) if row in apart],
            "train": [row for row in range(count) if row not in apart],
        }
    )
print(json.dumps({"command": "python tests/golden/dataset/order.py", "cases": cases}))
