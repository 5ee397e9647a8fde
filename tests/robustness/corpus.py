"""Every broken and odd file, one after the other, each with a name and with what the service may say of it."""

import random
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from tests.robustness.bombs import ballast, headers, pixels
from tests.robustness.pictures import chunk, photograph, pictures, saved

STEP, PLACES = 97, 2000
"""Files are cut at each 97th byte, and a bit is turned over at 2,000 places of each format."""

FOREIGN = (
    *("AVIF", "DDS", "DIB", "EPS", "ICNS", "ICO", "JPEG2000", "MSP"),
    *("PCX", "PDF", "PPM", "QOI", "SGI", "SPIDER", "TGA", "XBM"),
)
"""What else Pillow writes."""

MAGIC = (
    *(b"%!PS-Adobe-3.0 EPSF-3.0\n", b"8BPS\0\1", b"SIMPLE  =                    T", b"\xd7\xcd\xc6\x9a", b"/* XPM */"),
    *(b"#define x_width 1\n", b"\0\0\2\0", b"GRIB", b"\x89HDF\r\n\x1a\n", b"BUFR", b"BLP2", b"FWS", b"gimp xcf "),
    *(b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x18ftypheic", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"DanM"),
    *(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"PK\3\4", b"Y\xa6j\x95", b"\x01\xda\1\1\0\3", b"FLIF", b"\x0a\5\1\x08"),
)
"""How files of other formats begin that Pillow reads, or once did."""

ANY = frozenset({"ok", "invalid_image", "image_too_large"})
OK, REFUSED, TOO_LARGE = frozenset({"ok"}), frozenset({"invalid_image"}), frozenset({"image_too_large"})


class Item(NamedTuple):
    """A file, and the outcomes that are right: `ok`, or codes of errors."""

    name: str
    data: bytes
    outcomes: frozenset[str] = ANY
    content_type: str = "application/octet-stream"


def corpus(share: int = 1) -> Iterator[Item]:
    """All of it; or, of what is cut and turned over, one in `share`, and of the bombs the small ones."""
    yield from whole()
    yield from claims()
    yield from foreign()
    for name, data in headers():
        yield Item(name, data)
    yield from (damaged() if share == 1 else list(damaged())[::share])
    if share == 1:
        yield from bombs()


def bombs() -> Iterator[Item]:
    """The large ones: fifty million pixels, or twenty megabytes."""
    for name, data in pixels():
        yield Item(name, data, TOO_LARGE if "over" in name or "giant" in name else OK)
    for name, data in ballast():
        yield Item(name, data)


def whole() -> Iterator[Item]:
    """What is a picture gets a label; floats have no range, and Pillow reads not every TIFF, and no half-empty BMP."""
    for name, data in pictures():
        odd = name in ("TIFF-F", "TIFF-float32", "TIFF-float64", "TIFF-bigtiff-big-endian", "BMP-delta")
        yield Item(name, data, REFUSED if odd else OK)


def claims() -> Iterator[Item]:
    """Files that claim another format than they have, or have two."""
    photo = photograph(64, 43)
    files = {kind: saved(photo, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}
    for kind, data in files.items():
        for other, more in files.items():
            yield Item(f"{kind}-as-{other}", data, OK, f"image/{other.lower()}")
            yield Item(f"{kind}-before-{other}", data + more, OK)
            yield Item(f"{kind}-named-{other}", more[:12] + data[12:])
            yield Item(f"{kind}-behind-{other}'s-start", more[:4] + data)
        yield Item(f"{kind}-before-an-archive", data + b"PK\3\4" + bytes(99), OK)
        yield Item(f"{kind}-as-text", data, OK, "image/svg+xml")
    tiff = saved(photo, "TIFF", compression="jpeg")
    yield Item("JPEG-in-TIFF-damaged", tiff.replace(b"\xff\xda", b"\xff\xd9"))
    yield Item("PNG-of-JPEG", files["PNG"].replace(b"IDAT", b"JDAT"), REFUSED)
    yield Item("JPEG-in-PNG", files["PNG"][:33] + chunk(b"IDAT", files["JPEG"]) + chunk(b"IEND", b""), REFUSED)


def foreign() -> Iterator[Item]:
    """Pictures in formats that the service does not name."""
    for kind in FOREIGN:
        picture = Image.new({"XBM": "1", "MSP": "1", "SPIDER": "F"}.get(kind, "RGB"), (32, 32))
        yield Item(f"{kind}-whole", saved(picture, kind), REFUSED)
    for start in MAGIC:
        yield Item(f"begins-{start[:8]!r}", start + bytes(2000), REFUSED)
    for name, data in (("nothing", b""), ("zeros", bytes(10**6)), ("text", b"hello " * 1000)):
        yield Item(name, data, REFUSED)


def photographs() -> dict[str, bytes]:
    """Of each format and way of storing that is damaged below, a photograph of some ten kilobytes."""
    photo = photograph(226, 150)
    inks, clear = photo.convert("CMYK"), photo.convert("RGBA").rotate(30)
    return {
        "JPEG": saved(photo, "JPEG", quality=90),
        "JPEG-progressive": saved(photo, "JPEG", quality=90, progressive=True),
        "JPEG-CMYK": saved(inks, "JPEG", quality=70),
        "PNG": saved(photo, "PNG"),
        "PNG-palette": saved(photo.quantize(64), "PNG", transparency=1),
        "WEBP": saved(photo, "WEBP", quality=90),
        "WEBP-lossless": saved(photo, "WEBP", lossless=True),
        "WEBP-alpha-animated": saved(clear, "WEBP", save_all=True, append_images=[photo.convert("RGBA")]),
        "GIF": saved(photo, "GIF"),
        "GIF-animated": saved(photo, "GIF", save_all=True, append_images=[photo.rotate(90)]),
        "TIFF": saved(photo, "TIFF"),
        "TIFF-lzw": saved(photo, "TIFF", compression="tiff_lzw"),
        "TIFF-deflate": saved(photo, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF-jpeg": saved(photo, "TIFF", compression="jpeg"),
        "TIFF-packbits": saved(photo, "TIFF", compression="packbits"),
        "BMP": saved(photo, "BMP"),
    }


def damaged() -> Iterator[Item]:
    """Photographs cut at each `STEP`-th byte, and with one bit turned over at `PLACES` of each format."""
    files = photographs()
    for name, data in files.items():
        for length in range(0, len(data), STEP):
            yield Item(f"{name}-cut-at-{length}", data[:length])
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        draw = random.Random(kind)
        variants = [(name, data) for name, data in files.items() if name.startswith(kind)]
        for number in range(PLACES):
            name, data = variants[number % len(variants)]
            reach = len(data) if number % 2 else min(1000, len(data))  # half of them where the headers are
            place, bit = draw.randrange(reach), draw.randrange(8)
            yield Item(
                f"{name}-bit-{place}.{bit}",
                data[:place] + bytes((data[place] ^ 1 << bit,)) + data[place + 1 :],
            )
