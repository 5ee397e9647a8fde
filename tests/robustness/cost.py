"""What the dearest files within the limits cost: `python -m tests.robustness.cost`, on Linux.

CPU time and the most memory above what was there before, of decoding alone; each file in a new process.
"""

import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from saccade.decode import decode
from saccade.errors import SaccadeError
from tests.robustness.bombs import ballast
from tests.robustness.pictures import saved

SIDE = 7000


def modes() -> Iterator[tuple[str, bytes]]:
    """49 million pixels in each way to store them."""
    grey = Image.linear_gradient("L").resize((SIDE, SIDE))
    rgb, rgba = Image.merge("RGB", [grey] * 3), Image.merge("RGBA", [grey] * 4)
    flat = Image.new("RGBA", (SIDE, SIDE), (1, 2, 3, 4))
    yield "JPEG", saved(rgb, "JPEG")
    yield "JPEG, progressive", saved(rgb, "JPEG", progressive=True)
    yield "JPEG, CMYK", saved(rgb.convert("CMYK"), "JPEG")
    yield "PNG, grey", saved(grey, "PNG", compress_level=1)
    yield "PNG, grey, 16 bits", saved(grey.convert("I;16"), "PNG", compress_level=1)
    yield "PNG, grey with alpha", saved(Image.merge("LA", [grey] * 2), "PNG", compress_level=1)
    yield "PNG, palette, transparent", saved(grey.convert("P"), "PNG", compress_level=1, transparency=3)
    yield "PNG, RGB with alpha", saved(rgba, "PNG", compress_level=1)
    yield "WebP", saved(flat.convert("RGB"), "WEBP", lossless=True, method=0)
    yield "WebP, alpha", saved(flat, "WEBP", lossless=True, method=0)
    yield "GIF", saved(grey, "GIF")
    yield "TIFF, LZW", saved(rgb, "TIFF", compression="tiff_lzw")
    yield "TIFF, 32 bits", saved(Image.new("I", (SIDE, SIDE), 9), "TIFF", compression="tiff_lzw")


def kilobytes(name: str) -> int:
    """A line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def cost(data: bytes) -> str:
    """CPU seconds, MB, and what came of it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, began = kilobytes("VmRSS"), time.process_time()
    try:
        outcome = "{} x {}".format(*decode(data, (0, 0, 0)).size)
    except SaccadeError as error:
        outcome = error.code
    took, most = time.process_time() - began, (kilobytes("VmHWM") - before) * 1024 / 10**6
    return f"{took:.2f} s | {most:.0f} MB | {len(data) / 1e6:.1f} MB | {outcome}"


def main() -> None:
    warnings.simplefilter("ignore")
    if len(sys.argv) == 2:
        print(cost(Path(sys.argv[1]).read_bytes()))
        return
    print("| file | CPU | memory | size | outcome |\n|---|---|---|---|---|", flush=True)
    with tempfile.NamedTemporaryFile() as file:
        for name, data in (*modes(), *ballast()):
            Path(file.name).write_bytes(data)
            command = [sys.executable, "-m", "tests.robustness.cost", file.name]
            line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            print(f"| {name} | {line} |", flush=True)


if __name__ == "__main__":
    main()
