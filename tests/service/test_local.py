"""A bundle in this process, without a server."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from saccade.api import ClassifyOptions
from saccade.client import Effort
from saccade.errors import InferenceFailed
from service.local import Local

STOPPED = (InferenceFailed, "the engine has stopped")


def test_whoever_waits_when_it_is_closed_is_told(models: Path) -> None:
    """Nobody waits for ever, whoever comes later is told as well, and nothing is left that Python complains of."""
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 90)).save(picture, "png")
    with ThreadPoolExecutor(8) as threads, Local(models / "tiny-cct" / "1") as local:
        ask = local.asking(ClassifyOptions())
        asked = [threads.submit(ask, picture.getvalue(), Effort()) for _ in range(64)]
        assert b"labels" in asked[0].result()
    for one in asked[1:]:
        failed = one.exception()
        assert b"labels" in one.result() if failed is None else (type(failed), str(failed)) == STOPPED
    with pytest.raises(InferenceFailed, match="the engine has stopped"):
        ask(picture.getvalue(), Effort())
