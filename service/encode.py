"""An answer -> bytes, once. Arrays go through orjson as they are."""

from typing import Any

import orjson


def to_json(answer: dict[str, Any]) -> bytes:
    """UTF-8 JSON; numpy arrays as nested lists."""
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
