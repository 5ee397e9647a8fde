"""What a peer is started with: --bundle, --query, --port, and --settings as one JSON object."""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

HOST = "127.0.0.1"


class Arguments(NamedTuple):
    bundle: Path
    query: str
    port: int
    settings: dict[str, Any]


def arguments(defaults: dict[str, Any]) -> Arguments:
    """From the command line, which multiprocessing's spawn hands on to every child: each reads the same.

    `defaults` names all the settings there are; another one ends the process.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--query", default="")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, default={})
    given = parser.parse_args()
    unknown = set(given.settings) - set(defaults)
    if unknown:
        parser.error(f"unknown settings {', '.join(sorted(unknown))}; there are {', '.join(defaults)}")
    return Arguments(given.bundle, given.query, given.port, {**defaults, **given.settings})
