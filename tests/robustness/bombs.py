"""Files that ask for more than they seem to: giant headers, giant pixels, and megabytes of what no pixel depends on."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import tifffile
from PIL import Image

from tests.robustness.pictures import bmp, chunk, saved

BODY = 20 * 2**20
"""The service's own limit on a body."""

SMALL = Image.new("RGB", (16, 16), "red")


def fill(before: bytes, part: bytes, after: bytes, size: int) -> bytes:
    """A file of nearly `size` bytes."""
    return before + part * ((size - len(before) - len(after)) // len(part)) + after


def headers() -> Iterator[tuple[str, bytes]]:
    """Sizes that a header states and no pixel stands behind."""
    for width, height in (
        (0, 0),
        (0, 9),
        (9, 0),
        (65535, 65535),
        (2**31 - 1, 2**31 - 1),
        (2**16, 2**16),
        (50_000, 1001),
    ):
        name = f"{width}x{height}"
        yield f"PNG-header-{name}", _png_header(width, height)
        yield f"TIFF-header-{name}", tiff([(256, 4, width), (257, 4, height), (262, 3, 1), (273, 4, 8)])
        yield f"BMP-header-{name}", bmp(width, min(height, 2**31 - 1), 24, b"")
        for kind in ("GIF", "JPEG", "WEBP"):
            yield f"{kind}-header-{name}", _restated(kind, min(width, 65535), min(height, 65535))
    canvas = saved(SMALL, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (16, 16))])
    at = canvas.index(b"VP8X") + 12
    yield (
        "WEBP-canvas",
        canvas[:at] + (2**24 - 1).to_bytes(3, "little") + (255).to_bytes(3, "little") + canvas[at + 6 :],
    )
    gif = saved(SMALL.convert("L"), "GIF")
    at = gif.index(b",\0\0\0\0\x10\0\x10\0")
    yield "GIF-frame-larger-than-screen", gif[: at + 5] + struct.pack("<HH", 60000, 60000) + gif[at + 9 :]
    for tag, value in ((277, 2**31), (277, 65535), (278, 2**32 - 1), (258, 65535), (322, 2**31)):
        yield (
            f"TIFF-tag-{tag}-{value}",
            tiff([(256, 4, 16), (257, 4, 16), (258, 3, 8), (262, 3, 1), (273, 4, 8), (tag, 4, value)]),
        )


def pixels() -> Iterator[tuple[str, bytes]]:
    """Pixels that are really there: over the limit, at it, and pictures of one pixel's height."""
    for side, name in ((7000, "at-the-limit"), (8000, "over-the-limit")):
        flat = Image.new("1", (side, side))
        yield f"PNG-{name}", saved(flat, "PNG")
        yield f"GIF-{name}", saved(flat.convert("L"), "GIF")
        yield f"TIFF-{name}", saved(flat, "TIFF", compression="group4")
        yield f"JPEG-{name}", saved(flat.convert("L"), "JPEG")
        yield f"WEBP-{name}", saved(Image.new("RGBA", (side, side), (1, 2, 3, 4)), "WEBP", lossless=True, method=0)
    tiled = io.BytesIO()
    tifffile.imwrite(tiled, np.zeros((100, 100), np.uint8), tile=(8192, 8192), compression="zlib")
    yield "TIFF-giant-tile", tiled.getvalue()
    for size in ((1, 1), (1, 65500), (65500, 1)):
        for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF"):
            yield f"{kind}-{size[0]}x{size[1]}", saved(Image.new("RGB", size), kind)


def ballast(size: int = BODY) -> Iterator[tuple[str, bytes]]:
    """A picture of 16 x 16 pixels in `size` bytes."""
    jpeg = saved(SMALL, "JPEG")
    for name, payload in (("EXIF", b"Exif\0\0" + bytes(10)), ("profile", b"ICC_PROFILE\0\1\1"), ("empty", b"")):
        kind = {"EXIF": 0xE1, "profile": 0xE2, "empty": 0xEC}[name]
        part = struct.pack(">BBH", 255, kind, len(payload) + 2) + payload
        yield f"JPEG-ballast-{name}", fill(jpeg[:2], part, jpeg[2:], size)
    yield "JPEG-ballast-junk", fill(jpeg[:2], b"junk", jpeg[2:], size)
    progressive = saved(Image.new("L", (7000, 7000)), "JPEG", progressive=True)
    at = progressive.rindex(b"\xff\xda")
    for name, count in (("few", 80), ("many", 1_000_000)):
        yield f"JPEG-{name}-scans", progressive[:-2] + progressive[at:-2] * min(count, size // (len(progressive) - at))
    table = jpeg.index(b"\xff\xdb")
    yield "JPEG-ballast-tables", fill(jpeg[:table], jpeg[table : table + 69], jpeg[table:], size)
    whole = saved(SMALL, "PNG")
    at = whole.index(b"IDAT") - 4
    zeros = zlib.compress(bytes(10**6), 9)
    for kind, body in ((b"zTXt", b"k\0\0" + zeros[:-4]), (b"iTXt", b"k\0\1\0\0\0" + zeros), (b"iCCP", b"k\0\0" + zeros),
                       (b"prVt", b""), (b"IDAT", b""), (b"eXIf", b"II*\0"), (b"fcTL", bytes(26))):  # fmt: skip
        yield f"PNG-ballast-{kind.decode()}", fill(whole[:at], chunk(kind, body), whole[at:], size)
    numbers = (size - 1000) // 8
    exif = b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 274, 5, numbers, 26) + bytes(4)
    yield "PNG-ballast-numbers", whole[:at] + chunk(b"eXIf", exif + struct.pack("<II", 1, 3) * numbers) + whole[at:]
    gif = saved(SMALL.convert("L"), "GIF")
    screen = 13 + 3 * 2 ** (gif[10] % 8 + 1)
    yield "GIF-ballast-comment", fill(gif[:screen] + b"!\xfe", b"\1x", b"\0" + gif[screen:], size)
    yield "GIF-ballast-comments", fill(gif[:screen], b"!\xfe\1x\0", gif[screen:], size)
    yield "GIF-ballast-controls", fill(gif[:screen], b"!\xf9\4\1\0\0\0\0", gif[screen:], size)
    yield "GIF-ballast-frames", fill(gif[:screen], gif[screen:-1], b";", size)
    numbers = (size - 1000) // 4
    strips = [(256, 4, 1), (257, 4, numbers), (258, 3, 8), (262, 3, 1), (278, 4, 1)]
    yield "TIFF-ballast-strips", tiff(strips, (273, 4, struct.pack("<I", 8) * numbers))
    few = 2**19 - 100
    yield "TIFF-many-strips", tiff([strips[0], (257, 4, few), *strips[2:]], (273, 4, struct.pack("<I", 8) * few))
    ratios = struct.pack("<II", 1, 3) * (size // 8 - 100)
    yield "TIFF-ballast-numbers", tiff([(256, 4, 8), (257, 4, 8), (262, 3, 1), (273, 4, 8)], (282, 5, ratios))
    yield "TIFF-directory-in-itself", tiff([(256, 4, 8), (257, 4, 8), (262, 3, 1), (273, 4, 8), (34665, 4, 8)])
    frames = saved(SMALL, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (16, 16))])
    at = frames.index(b"ANMF")
    frame = frames[at : at + 8 + int.from_bytes(frames[at + 4 : at + 8], "little")]
    yield "WEBP-ballast-frames", _riff(fill(frames[12:at], frame, b"", size - 12))
    yield "WEBP-ballast-chunks", _riff(fill(saved(SMALL, "WEBP", exif=b"II*\0")[12:], b"junk\0\0\0\0", b"", size - 12))
    runs = b"\1\1" * ((size - 2000) // 2)
    yield "BMP-ballast-runs", bmp(7000, 7000, 8, runs, compression=1)


def tiff(entries: list[tuple[int, int, int]], table: tuple[int, int, bytes] | None = None) -> bytes:
    """A little-endian TIFF of (tag, type, value), and one (tag, type, values) that stands behind the directory."""
    tags = [struct.pack("<HHII", tag, kind, 1, value % 2**32) for tag, kind, value in entries]
    body = b""
    if table is not None:
        tag, kind, body = table
        place = 14 + 12 * (len(tags) + 1)
        tags.append(struct.pack("<HHII", tag, kind, len(body) // {4: 4, 5: 8}[kind], place))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(tags) + bytes(4) + body + bytes(300)


def _png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixel = zlib.compress(bytes(4))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


def _restated(kind: str, width: int, height: int) -> bytes:
    """A real file whose header says another size."""
    data = bytearray(saved(SMALL, kind, **({"lossless": True} if kind == "WEBP" else {})))
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    else:
        bits = (width - 1) % 2**14 | (height - 1) % 2**14 << 14
        data[21:25] = struct.pack("<I", bits)
    return bytes(data)


def _riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
