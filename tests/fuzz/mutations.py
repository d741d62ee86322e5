"""Ways to damage bytes, cheap enough for tens of thousands of inputs a second."""

import random
import re
from collections.abc import Sequence

_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null')

HOSTILE_JSON = (
    b"null",
    b"true",
    b"{}",
    b"[]",
    b'""',
    b"0",
    b"-1",
    b"1",
    b"2",
    b"NaN",
    b"Infinity",
    b"-0.0",
    b"1e999",
    b"0.1",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"9" * 400,
    b"9" * 5_000,
    b'"' + b"9" * 40 + b'"',
    b'"-99999999.00"',
    b'"0.33001"',
    b'"1e2"',
    b'"0.0001"',
    b'"0.9999"',
    b'"1.0000"',
    b'"10000000000000.00"',
    b'"\\u0663.\\u0663"',
    b'"\\ud800"',
    b'"\\ud83d\\ude00"',
    b'"\xff\xfe"',
    b'"\xed\xa0\x80"',
    b'"\\u0000"',
    b'"' + b"X" * 199 + b'"',
    b'"' + b"X" * 201 + b'"',
    b'"' + "\N{GREEK SMALL LETTER ALPHA}".encode() * 150 + b'"',
    b'"' + b"long " * 20_000 + b'"',
    b"[" * 50 + b"]" * 50,
    # Around the interpreter's recursion limit, wherever a decoder meets it.
    *(b"[" * depth + b"]" * depth for depth in range(940, 1_000, 3)),
    *(b'{"a":' * depth + b"1" + b"}" * depth for depth in range(960, 1_000, 7)),
    b"[" * 20_000,
    b'[["0.3300","1.00"],["0.3300","2.00"]]',
    b'[["0.3300"]]',
    b'[["0.0001","0.01"],["0.9999","0.01"]]',
    b'"yes"',
    b'"no"',
    b'"orderbook_delta"',
    b'"orderbook_snapshot"',
    b'"subscribed"',
    b'"ok"',
    b'"error"',
    b'"2026-11-20T18:04:11.207Z"',
    b'"2026-99-99T99:99:99Z"',
    b'"created"',
    b'"settled"',
)
HOSTILE_MSGPACK = (
    b"\xc0",
    b"\xc1",
    b"\xc2",
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\xdd\xff\xff\xff\xff",
    b"\xdc\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xd4\x00\x00",
    b"\x90",
    b"\x91" * 200,
    b"\x81\xa1a\x01",
    b"\xa0",
    b"\xa3\xff\xfe\xfd",
    b"\xd9\xff" + b"X" * 255,
    b"\xcd\x27\x0f",
    b"\x00",
    b"\xff",
)


def json_tokens(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of the strings, numbers and words of a JSON text."""
    return [match.span() for match in _JSON_TOKEN.finditer(data)]


def flip_bits(data: bytes, chance: random.Random) -> bytes:
    """1-8 bits changed."""
    if not data:
        return data
    damaged = bytearray(data)
    for _ in range(chance.randrange(1, 9)):
        position = int(chance.random() * len(damaged))
        damaged[position] ^= 1 << int(chance.random() * 8)
    return bytes(damaged)


def truncate(data: bytes, chance: random.Random) -> bytes:
    """A beginning."""
    return data[: int(chance.random() * len(data))]


def splice(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """A beginning of one and an end of another."""
    return data[: int(chance.random() * len(data))] + other[int(chance.random() * len(other)) :]


def insert(data: bytes, chance: random.Random) -> bytes:
    """Random bytes in between."""
    position = int(chance.random() * len(data))
    return data[:position] + chance.randbytes(1 + int(chance.random() * 20)) + data[position:]


def repeat_part(data: bytes, chance: random.Random) -> bytes:
    """A part twice: duplicate keys, messages, brackets."""
    start = int(chance.random() * len(data))
    end = start + int(chance.random() * min(200, len(data) - start))
    return data[:end] + data[start:]


def substitute(
    data: bytes, spans: Sequence[tuple[int, int]], hostile: Sequence[bytes], chance: random.Random
) -> bytes:
    """One token replaced by a hostile one."""
    start, end = spans[int(chance.random() * len(spans))]
    return data[:start] + hostile[int(chance.random() * len(hostile))] + data[end:]
