"""The file around the pixels: what of it reaches the decoder, so that reading it costs no more than its size allows.

Before the first pixel Pillow reads every text, profile, comment and tag, keeps them all, and of some the time is
quadratic; no pixel depends on them. What cannot be left out is counted.
"""

import re
from collections.abc import Iterator

from saccade.errors import InvalidImage

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_GIF = (b"GIF87a", b"GIF89a")
_TIFF = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")

MOST_SCANS = 100
"""Of a JPEG. Each walks over the whole picture, however few bytes it has; encoders write up to about fifteen."""
MOST_TABLES = 1000
"""Frames and tables of a JPEG before its first scan; encoders write about ten."""
MOST_VALUES = 2**19
"""Numbers in the tags of a TIFF, which become objects one by one: offset and size of 262,144 strips."""

_PIXEL_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"))

_SCAN, _END = 0xDA, 0xD9
_TABLES = frozenset((*range(0xC0, 0xD0), 0xDB, 0xDD))  # frames, Huffman and quantization tables, restart interval
_APPLICATIONS = frozenset((0xE0, 0xE1, 0xEE))  # JFIF and Adobe say what the channels are; EXIF how the picture lies
_SIGNED = (b"JFIF\0", b"Exif\0\0", b"Adobe")
_ADOBE, _ADOBE_BYTES = 0xEE, 14  # a shorter one is none to the decoder, and of several it takes the last
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_MARKER_AFTER_SCAN = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")

_GIF_BLOCK = re.compile(rb"[!,;]")
_GIF_CONTROL = 0xF9  # which colour is transparent

_BYTES_WIDE = (1, 2, 6, 7)  # BYTE, ASCII, SBYTE, UNDEFINED stay bytes
_SUB_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability


def lean(data: bytes) -> bytes:
    """The same picture without what no pixel depends on; of a PNG, a JPEG and a GIF.

    Raises InvalidImage for a JPEG of more than `MOST_SCANS` or `MOST_TABLES` and a TIFF of more than `MOST_VALUES`.
    """
    if data.startswith(PNG):
        return _lean_png(data)
    if data.startswith(JPEG):
        return _lean_jpeg(data)
    if data.startswith(_GIF):
        return _lean_gif(data)
    if data.startswith(_TIFF):
        _count_tags(data)
    return data


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk of a PNG (ISO/IEC 15948), the cut one at the end with them."""
    at = len(PNG)
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 8], at, end
        at = end


def _lean_png(data: bytes) -> bytes:
    kept = bytearray(PNG)
    for kind, start, end in chunks(data):
        if kind in _PIXEL_CHUNKS:
            kept += data[start:end]
        if kind == b"IEND":
            break
    return bytes(kept)


def _lean_jpeg(data: bytes) -> bytes:
    """Of the segments before the first scan (ITU-T T.81, annex B), those that matter; from there on, all."""
    applications: dict[int, bytes] = {}
    tables: list[bytes] = []
    scans = b""
    at = len(JPEG)
    while found := _MARKER.search(data, at):
        kind, at = found[1][0], found.end()
        if kind in _ALONE:
            continue
        if kind == _END:
            break
        if kind == _SCAN:
            _count_scans(data, at)
            scans = data[at - 2 :]
            break
        end = at + max(2, int.from_bytes(data[at : at + 2]))
        if kind in _TABLES:
            tables.append(data[at - 2 : end])
        elif kind in _APPLICATIONS and data.startswith(_SIGNED, at + 2):
            if kind == _ADOBE and end - at >= _ADOBE_BYTES:
                applications[kind] = data[at - 2 : end]
            else:
                applications.setdefault(kind, data[at - 2 : end])
        if len(tables) > MOST_TABLES:
            raise InvalidImage(f"the JPEG has more than {MOST_TABLES} tables before its first scan")
        at = end
    return b"".join((JPEG, *applications.values(), *tables, scans))


def _count_scans(data: bytes, at: int) -> None:
    scans = 1
    at += int.from_bytes(data[at : at + 2])
    while found := _MARKER_AFTER_SCAN.search(data, at):
        kind, at = found[1][0], found.end()
        if kind == _END:
            return
        scans += kind == _SCAN
        if scans > MOST_SCANS:
            raise InvalidImage(f"the JPEG has more than {MOST_SCANS} scans")
        if kind not in _ALONE:
            at += int.from_bytes(data[at : at + 2])


def _lean_gif(data: bytes) -> bytes:
    """Of the extensions before the first image (GIF89a, 23 to 26) the last control that says which colour is
    transparent, since one after it that names none takes nothing back; from the image on, all.
    """
    screen = 13 + (3 << (data[10] % 8 + 1) if data[10:11] and data[10] & 0x80 else 0)
    control, at = b"", screen
    while (found := _GIF_BLOCK.search(data, at)) and found[0] == b"!":
        start, at = found.start(), found.start() + 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
        label, size, flags = data[start + 1 : start + 4].ljust(3, b"\0")
        if label == _GIF_CONTROL and size and flags & 1:
            control = data[start:at]
    return data[:screen] + control + (data[found.start() :] if found else b"")


def _count_tags(data: bytes) -> None:
    """Of the first picture's directory (TIFF 6.0; BigTIFF) and of those that its tags lead to."""
    order = "little" if data.startswith(b"II") else "big"
    wide = data[2] == 43

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]  # it is one of the two

    word, count_size, entry_size = (8, 8, 20) if wide else (4, 2, 12)
    waiting, seen, values = [number(word, word)], set(), 0
    while waiting:
        directory = waiting.pop()
        seen.add(directory)
        entries = number(directory, count_size)
        first = directory + count_size
        values += entries
        for at in range(
            first, min(first + entries * entry_size, len(data)) if values <= MOST_VALUES else 0, entry_size
        ):
            tag, kind, count = number(at, 2), number(at + 2, 2), number(at + 4, word)
            if kind not in _BYTES_WIDE and count <= len(data):
                values += count
            place = number(at + 4 + word, word)
            if tag in _SUB_DIRECTORIES and place not in seen:
                waiting.append(place)
        if values > MOST_VALUES:
            raise InvalidImage(f"the TIFF has more than {MOST_VALUES} numbers in its tags")
