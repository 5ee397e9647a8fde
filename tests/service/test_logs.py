"""What a file is wrong in is told to its caller, and not to the log."""

import struct
import subprocess
import sys

from tests.conftest import ROOT

CODE = """
import sys
from PIL import TiffImagePlugin
from saccade.decode import decode
from saccade.errors import InvalidImage
from service.logs import configure_logs
configure_logs("INFO")
try:
    decode(sys.stdin.buffer.read(), (0, 0, 0))
except InvalidImage:
    print(len(getattr(TiffImagePlugin, "__warningregistry__", ())))
"""


def test_a_file_of_ten_thousand_oddities_leaves_nothing_behind() -> None:
    """Each gave a warning with a text of its own: a line of the log, and a line in memory for ever."""
    tags = b"".join(struct.pack("<HHII", 1000 + number, 2, 2**24, 2**20) for number in range(10_000))
    data = struct.pack("<2sHIH", b"II", 42, 8, 10_000) + tags + bytes(2**20)
    run = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, input=data, capture_output=True, check=True)
    assert int(run.stdout) <= 1  # Python's own count of versions
    assert run.stderr == b""
