"""Ways to damage bytes, JSON and files, all drawn from a seed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b\nsize 12345\n"
)
DEEP = "[" * 100_000 + "]" * 100_000
DIGITS = "9" * 5000

# what a field of JSON may hold in place of what it should, as JSON text
ODD = [
    *("null", "true", "false", "-1", "0", "1.5", "1e308", "NaN", "Infinity", "-Infinity", "1e999", DIGITS, DEEP),
    *('""', '" "', '"x"', r'"\u0000"', r'"\ud800"', r'"a\nb"', r'"\u001b[31m"', '"../../etc/passwd"', '"/etc/passwd"'),
    *("[]", "[1]", "{}", '{"a": 1}', "[[]]", "[null]", str(2**31), str(2**63), str(-(2**63))),
    f'"{"y" * 10_000}"',
]


def cut(data: bytes, rng: Random) -> bytes:
    """The first 1 to 70 hundredths."""
    return data[: max(1, int(len(data) * rng.uniform(0.01, 0.7)))]


def flip(data: bytes, rng: Random, count: int = 1, first: int = 0, last: int | None = None) -> bytes:
    """With ``count`` bytes changed, of those from ``first`` to ``last``."""
    changed = bytearray(data)
    for _ in range(count):
        place = rng.randrange(first, min(last or len(data), len(data)))
        changed[place] ^= rng.randrange(1, 256)
    return bytes(changed)


def zeros(data: bytes, rng: Random) -> bytes:
    """With a tenth of zero bytes somewhere."""
    first, length = rng.randrange(len(data)), max(1, len(data) // 10)
    return data[:first] + bytes(min(length, len(data) - first)) + data[first + length :]


def insert(data: bytes, rng: Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.randrange(1, 50)) + data[place:]


def drop(data: bytes, rng: Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + data[place + rng.randrange(1, 1 + max(1, len(data) // 5)) :]


# of a file that a library wrote: what makes it unreadable for certain
RUINS: dict[str, Callable[[bytes, Random], bytes]] = {
    "cut": cut,
    "empty": lambda data, rng: b"",
    "zeros alone": lambda data, rng: bytes(len(data)),
    "random": lambda data, rng: rng.randbytes(max(8, min(len(data), 5000))),
    "pointer": lambda data, rng: POINTER,
    "text": lambda data, rng: b"not found\n",
    "web page": lambda data, rng: b"<!DOCTYPE html><html><body>404</body></html>",
}
HARMS: dict[str, Callable[[bytes, Random], bytes]] = {
    "one byte": flip,
    "ten bytes": lambda data, rng: flip(data, rng, 10),
    "hundred bytes": lambda data, rng: flip(data, rng, 100),
    "head": lambda data, rng: flip(data, rng, 3, 0, 64),
    "block of zeros": zeros,
    "inserted": insert,
    "dropped": drop,
}
TEXT_RUINS: dict[str, Callable[[bytes, Random], bytes]] = {
    "empty": lambda data, rng: b"",
    "cut": lambda data, rng: data[: rng.randrange(1, max(2, len(data) // 2))],
    "latin-1": lambda data, rng: data.replace(b"a", b"\xe4"),
    "utf-16": lambda data, rng: data.decode().encode("utf-16"),
    "deep": lambda data, rng: DEEP.encode(),
    "digits": lambda data, rng: DIGITS.encode(),
    "null": lambda data, rng: b"null",
    "list": lambda data, rng: b"[1, 2]",
    "text": lambda data, rng: b'"x"',
    "surrogate": lambda data, rng: rb'{"a": "\ud800"}',
    "pointer": lambda data, rng: POINTER,
    "NUL": lambda data, rng: data[:20] + b"\0" + data[20:],
    "random": lambda data, rng: rng.randbytes(300),
}
PLACES: dict[str, Callable[[Path], None]] = {  # what may stand where a file should
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "nothing": lambda path: None,
}


def put(path: Path, kind: str) -> None:
    """One of `PLACES` in the place of a file."""
    path.unlink()
    PLACES[kind](path)


def places_of(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all that a JSON value holds."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, part in parts for path in ((*where, key), *places_of(part, (*where, key)))]


def with_text(value: Any, place: tuple[Any, ...], text: str | None) -> str:
    """JSON text of a value in which ``text`` stands in one place, or nothing if it is None."""
    mark = "@@here@@"
    changed = json.loads(json.dumps(value))
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    if text is None:
        del holder[place[-1]]
        return json.dumps(changed)
    holder[place[-1]] = mark
    return json.dumps(changed).replace(f'"{mark}"', text)
