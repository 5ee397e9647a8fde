"""Damage that gets past the first check: files are taken apart, and put together with lengths and sums mended.

Everything is drawn from the generator that is given, so that a seed names an input for ever.
"""

import random
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from saccade.lean import JPEG, PNG

Part = tuple[bytes, bytes]
"""(kind, payload)."""

_EDGES = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 64, 127, 128, 255, 256, 32767, 32768, 65500, 65535, 65536, 2**24 - 1,
          2**31 - 1, 2**31, 2**32 - 1)  # fmt: skip


class Form(NamedTuple):
    """How files that begin with `start` come apart and together again."""

    start: bytes
    split: Callable[[bytes], list[Part]]
    join: Callable[[list[Part]], bytes]


def mutate(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """`data`, damaged in one to four places; parts may come from `other`."""
    form = next((form for form in FORMS if data.startswith(form.start)), None)
    if form is not None and draw.random() < 0.7:
        parts = form.split(data)
        spare = form.split(other) if other.startswith(form.start) else parts
        for _ in range(draw.randint(1, 3)):
            _change_parts(parts, spare, draw)
        data = form.join(parts)
    elif data[:2] in (b"II", b"MM") and draw.random() < 0.7:
        data = _change_tags(data, draw)
    for _ in range(draw.choice((0, 0, 1, 1, 4)) if form else draw.randint(1, 4)):
        data = _change_bytes(data, draw)
    return data


def _change_parts(parts: list[Part], spare: list[Part], draw: random.Random) -> None:
    place = draw.randrange(len(parts)) if parts else 0
    match draw.randrange(7) if parts else 6:
        case 0:
            del parts[place]
        case 1:
            parts.insert(draw.randrange(len(parts) + 1), parts[place])
        case 2:
            parts.insert(draw.randrange(len(parts)), parts.pop(place))
        case 3:
            kind, payload = parts[place]
            parts[place] = (kind, _change_pixels(payload, draw) if kind == b"IDAT" else _change_bytes(payload, draw))
        case 4:
            kind, payload = parts[place]
            parts[place] = (kind, payload[: draw.randrange(len(payload) + 1)])
        case 5:
            parts[place] = (parts[draw.randrange(len(parts))][0], parts[place][1])
        case _ if spare:
            parts.insert(place, draw.choice(spare))


def _change_bytes(data: bytes, draw: random.Random) -> bytes:
    if not data:
        return draw.randbytes(draw.randrange(9))
    changed = bytearray(data)
    reach = min(len(data), draw.choice((32, 128, 1024, len(data))))  # headers are more telling than pixels
    place = draw.randrange(reach)
    match draw.randrange(6):
        case 0 | 1:
            changed[place] ^= 1 << draw.randrange(8)
        case 2:
            changed[place] = draw.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
        case 3:
            size = draw.choice((2, 4))
            changed[place : place + size] = (draw.choice(_EDGES) % 256**size).to_bytes(
                size, draw.choice(("little", "big"))
            )
        case 4:
            del changed[place : place + draw.choice((1, 2, 97))]
        case _:
            changed[place:place] = changed[place : place + draw.choice((1, 2, 50))]
    return bytes(changed)


def _change_pixels(payload: bytes, draw: random.Random) -> bytes:
    """What stands inside of a PNG's compressed pixels, so that filters and rows are reached."""
    try:
        return zlib.compress(_change_bytes(zlib.decompress(payload), draw), 1)
    except zlib.error:
        return _change_bytes(payload, draw)


def _change_tags(data: bytes, draw: random.Random) -> bytes:
    """Tag, type, count or value of entries of a TIFF's first directory."""
    order = "<" if data[:2] == b"II" else ">"
    changed = bytearray(data)
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (entries,) = struct.unpack_from(f"{order}H", data, start)
        for _ in range(draw.randint(1, 3)):
            at = start + 2 + 12 * draw.randrange(max(1, entries))
            field, size = draw.choice(((0, 2), (2, 2), (4, 4), (8, 2), (8, 4), (8, 4)))
            value = draw.choice((*_EDGES, draw.randrange(300), draw.randrange(len(data)))) % 256**size
            changed[at + field : at + field + size] = value.to_bytes(size, "little" if order == "<" else "big")
    except struct.error:
        return _change_bytes(data, draw)
    return bytes(changed)


def _split_png(data: bytes) -> list[Part]:
    parts, at = [], len(PNG)
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return parts


def _join_png(parts: list[Part]) -> bytes:
    return PNG + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def _split_jpeg(data: bytes) -> list[Part]:
    """Segments; a scan is one part, from its header up to the next marker."""
    parts, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1] == 0xDA:
            while end + 1 < len(data) and not (data[end] == 0xFF and data[end + 1] not in (0, *range(0xD0, 0xD8))):
                end += 1
            parts.append((b"\xda", data[at + 4 : end]))
        else:
            parts.append((data[at + 1 : at + 2], data[at + 4 : end]))
        at = end
    return parts


def _join_jpeg(parts: list[Part]) -> bytes:
    pieces = [JPEG]
    for kind, data in parts:
        length = 2 + (1 + 2 * data[0] + 3 if data[:1] and kind == b"\xda" else len(data))
        pieces.append(b"\xff" + kind + struct.pack(">H", length % 65536) + data)
    return b"".join(pieces) + b"\xff\xd9"


def _split_riff(data: bytes) -> list[Part]:
    parts, at = [], 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append((data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return parts


def _join_riff(parts: list[Part]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in parts)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _split_gif(data: bytes) -> list[Part]:
    """The screen with its colours, then extensions and images, each with its blocks."""
    at = 13 + (3 << (data[10] % 8 + 1) if data[10] & 0x80 else 0)
    parts = [(b"", data[6:at])]
    while at < len(data) and data[at] in b"!,":
        start, kind = at, data[at : at + 1]
        if kind == b",":
            at += 11 + (3 << (data[at + 9] % 8 + 1) if data[at + 9 : at + 10] and data[at + 9] & 0x80 else 0)
        else:
            at += 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
        parts.append((kind, data[start + 1 : at]))
    return parts


def _join_gif(parts: list[Part]) -> bytes:
    return b"GIF89a" + b"".join(kind + data for kind, data in parts) + b";"


FORMS = (
    Form(PNG, _split_png, _join_png),
    Form(JPEG, _split_jpeg, _join_jpeg),
    Form(b"RIFF", _split_riff, _join_riff),
    Form(b"GIF", _split_gif, _join_gif),
)
