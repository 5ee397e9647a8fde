"""An answer -> bytes, once. Arrays go through orjson as they are."""

from typing import Any

import orjson

LARGE = 2**16
"""Bytes of an answer. More than a connection keeps unsent before it calls for a pause (uvloop, asyncio)."""


def to_json(answer: dict[str, Any]) -> bytes:
    """UTF-8 JSON; numpy arrays as nested lists."""
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
