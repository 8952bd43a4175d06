"""Damaged and absurd variants of a file, the same for the same generator."""

from __future__ import annotations

import json
import random
from typing import Any

ABSURD = [
    None, True, -1, 0, 1, 7, 10**6, 10**9, 2**31, 2**63, 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf"), "", "x",
    "\0", "🙂", "float16", [], [1], {}, {"a": 1}, "A" * 10_000, [[[[]]]],
]  # fmt: skip


def damaged(data: bytes, generator: random.Random) -> bytes:
    """A bit, a stretch or the rest of `data` changed, dropped, doubled or put in."""
    if not data:
        return b"\xff"
    place, size = generator.randrange(len(data)), generator.randint(1, min(64, len(data)))
    head, part, tail = data[:place], data[place : place + size], data[place + size :]
    one = bytes([part[0] ^ (1 << generator.randrange(8))]) + part[1:]
    choices = [
        head + one + tail, head + one + tail, head, head + tail, head + generator.randbytes(size) + part + tail,
        head + part * generator.randint(2, 5) + tail, head + bytes(size) + tail, head + b"\xff" * size + tail,
        head + generator.randbytes(size) + tail,
    ]  # fmt: skip
    return generator.choice(choices)


def absurd(value: Any, generator: random.Random) -> Any:
    """A JSON value in which something is replaced by what nobody means, or left out."""
    value = json.loads(json.dumps(value))
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        for key in list(part)[:400] if isinstance(part, dict) else range(min(len(part), 50)):
            places.append((part, key))
            if isinstance(part[key], dict | list):
                walk(part[key])

    if isinstance(value, dict | list):
        walk(value)
    if not places:
        return generator.choice(ABSURD)
    for part, key in generator.sample(places, min(generator.choice([1, 1, 1, 2, 3]), len(places))):
        if isinstance(part, dict) and generator.random() < 0.25:
            part.pop(key, None)
        else:
            part[key] = generator.choice(ABSURD)
    return value
