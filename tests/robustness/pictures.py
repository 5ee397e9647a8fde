"""Whole pictures of every kind that the service's formats have, small, made here; each with a name.

What Pillow and tifffile do not write (interlaced PNG, Adobe's inks, run lengths in BMP) is put together here.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from saccade.decode import FORMATS
from tests.conftest import ROOT

MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "I;16",
    "F",
)
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Left, top, and steps to the right and down, of the passes of an interlaced PNG (ISO/IEC 15948, 8.2)."""


def photograph(width: int, height: int) -> Image.Image:
    """chelsea.jpg, scaled."""
    with Image.open(ROOT / "examples/chelsea.jpg") as picture:
        return picture.convert("RGB").resize((width, height), Image.Resampling.BOX)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size: tuple[int, int], depth: int, colour: int, *, interlaced: bool = False, seed: int = 0) -> bytes:
    """Noise, in a PNG of any colour type and bit depth."""
    width, height = size
    generator = np.random.default_rng(seed)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = b""
    for left, top, right, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        across, lines = -(-(width - left) // right), -(-(height - top) // down)
        if across > 0:
            for _ in range(lines):
                rows += bytes((int(generator.integers(5)),)) + generator.bytes(-(-across * bits // 8))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    palette = chunk(b"PLTE", generator.bytes(3 * 2**depth)) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bmp(width: int, height: int, bits: int, data: bytes, compression: int = 0, colours: int = 256) -> bytes:
    """A BMP with its 40-byte header (Windows 3)."""
    palette = bytes(4 * colours) if bits <= 8 else b""
    start = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + palette + data


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def pictures(width: int = 64, height: int = 43) -> Iterator[tuple[str, bytes]]:
    """(name, file) of each kind."""
    photo = photograph(width, height)
    yield from _every_mode(photo)
    yield from _jpeg(photo)
    yield from _png(photo)
    yield from _frames(photo)
    yield from _tiff(photo)
    yield from _bmp(width, height)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        for value in range(9):
            yield f"{kind}-orientation-{value}", saved(photo, kind, exif=orientation(value))
        yield f"{kind}-profile", saved(photo, kind, icc_profile=profile())
        yield f"{kind}-profile-damaged", saved(photo, kind, icc_profile=profile()[:200][::-1])


def _every_mode(photo: Image.Image) -> Iterator[tuple[str, bytes]]:
    for kind in FORMATS:
        for mode in MODES:
            try:
                picture = photo.convert("L").convert(mode) if mode[0] in "IFPL" else photo.convert(mode)
                yield f"{kind}-{mode}", saved(picture, kind)
            except (OSError, ValueError, KeyError):
                continue  # the format has no such mode


def _jpeg(photo: Image.Image) -> Iterator[tuple[str, bytes]]:
    yield "JPEG-progressive", saved(photo, "JPEG", progressive=True, quality=90)
    yield "JPEG-restart", saved(photo, "JPEG", restart_marker_blocks=2)
    yield "JPEG-444", saved(photo, "JPEG", subsampling=0)
    yield "JPEG-CMYK-progressive", saved(photo.convert("CMYK"), "JPEG", progressive=True)
    adobe = saved(photo.convert("CMYK"), "JPEG")
    place = adobe.index(b"Adobe") + 11
    for transform in range(4):  # 0: inks as they are; 2: YCCK
        yield f"JPEG-CMYK-adobe-{transform}", adobe[:place] + bytes((transform,)) + adobe[place + 1 :]
    yield "JPEG-MPO", saved(photo, "MPO", save_all=True, append_images=[photo.resize((32, 20))])
    yield "JPEG-XMP-comment", saved(photo, "JPEG", xmp=b"<x/>", comment=b"hello")


def _png(photo: Image.Image) -> Iterator[tuple[str, bytes]]:
    for colour, depths in ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16))):
        for depth in depths:
            for interlaced in (False, True):
                name = f"PNG-colour{colour}-{depth}bit{'-interlaced' * interlaced}"
                yield name, png((21, 13), depth, colour, interlaced=interlaced, seed=depth)
    whole = saved(photo, "PNG")
    at = whole.index(b"IDAT") - 4
    for kind, body in (
        (b"zTXt", b"k\0\0" + zlib.compress(bytes(10**6))),
        (b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(10**6))),
        (b"iCCP", b"k\0\0" + zlib.compress(bytes(10**6))),
        (b"tEXt", b"k\0" + b"long " * 1000),
        (b"tRNS", b"\0\1\0\2\0\3"),
    ):
        yield f"PNG-{kind.decode()}", whole[:at] + chunk(kind, body) + whole[at:]


def _frames(photo: Image.Image) -> Iterator[tuple[str, bytes]]:
    others = [photo.rotate(angle) for angle in (90, 180)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        yield f"{kind}-animated", saved(photo, kind, save_all=True, append_images=others)
    yield "GIF-interlaced", saved(photo.convert("P"), "GIF", interlace=1)
    yield "GIF-transparent", saved(photo.convert("P"), "GIF", transparency=3, comment=b"hello")
    yield "WEBP-lossless", saved(photo, "WEBP", lossless=True)
    yield "WEBP-alpha", saved(photo.convert("RGBA").rotate(45, expand=True), "WEBP", quality=60)


def _tiff(photo: Image.Image) -> Iterator[tuple[str, bytes]]:
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg"):
        yield f"TIFF-{compression}", saved(photo, "TIFF", compression=compression)
    for compression in ("group3", "group4", "tiff_ccitt"):
        yield f"TIFF-{compression}", saved(photo.convert("1"), "TIFF", compression=compression)
    pixels = np.asarray(photo)
    for name, options in (
        ("tiled", {"tile": (16, 16)}),
        ("tiled-deflate", {"tile": (16, 16), "compression": "zlib", "predictor": True}),
        ("big-endian", {"byteorder": ">"}),
        ("bigtiff", {"bigtiff": True}),
        ("bigtiff-big-endian", {"bigtiff": True, "byteorder": ">"}),
        ("strips", {"rowsperstrip": 1}),
    ):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, pixels, photometric="rgb", **options)
        yield f"TIFF-{name}", buffer.getvalue()
    for dtype in (np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, pixels[..., 0].astype(dtype), photometric="minisblack")
        yield f"TIFF-{np.dtype(dtype).name}", buffer.getvalue()
    planar = io.BytesIO()
    tifffile.imwrite(planar, np.moveaxis(pixels, 2, 0), photometric="rgb", planarconfig="separate")
    yield "TIFF-planar", planar.getvalue()
    tags = ImageFileDirectory_v2()
    tags[700] = b"<x/>" * 10
    yield "TIFF-tags", saved(photo, "TIFF", tiffinfo=tags)


def _bmp(width: int, height: int) -> Iterator[tuple[str, bytes]]:
    generator = np.random.default_rng(1)
    for bits in (1, 4, 8, 16, 24, 32):
        row = -(-width * bits // 32) * 4
        for sign in (1, -1):  # upwards, downwards
            data = generator.bytes(row * height)
            yield f"BMP-{bits}bit{'-down' * (sign < 0)}", bmp(width, sign * height, bits, data)
    runs = b"".join(b"".join((bytes((width, value)), b"\0\0")) for value in range(height)) + b"\0\1"
    yield "BMP-rle8", bmp(width, height, 8, runs, compression=1)
    yield "BMP-rle4", bmp(width, height, 4, runs, compression=2, colours=16)
    yield "BMP-delta", bmp(width, height, 8, b"\0\2\3\3" * 5 + b"\0\1", compression=1)
    yield "BMP-fields", bmp(width, height, 32, bytes(16) + generator.bytes(4 * width * height), compression=3)
