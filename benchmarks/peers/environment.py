"""A virtual environment for one peer, from its pinned requirements, made at its first use and kept in the cache.

What a peer's file does not name comes in the version of constraints.txt, so that peers and service stand on the same
server, engine and decoder. This repository is not installed: PYTHONPATH shows it.
"""

import shutil
import subprocess
import sys
from pathlib import Path

_PEERS = Path(__file__).parent
_CONSTRAINTS = _PEERS.parent.parent / "constraints.txt"
_STAMP = "installed.txt"


def python_of(peer: str, cache: Path) -> Path:
    """The interpreter of the environment of `peer`, whose requirements are <peer>.txt beside this file."""
    requirements = _PEERS / f"{peer}.txt"
    folder = cache / "env" / peer
    python, stamp = folder / "bin/python", folder / _STAMP
    wanted = requirements.read_text() + _CONSTRAINTS.read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "-qq"]
        subprocess.run([*install, "-r", str(requirements), "-c", str(_CONSTRAINTS)], check=True)
        stamp.write_text(wanted)
    return python.absolute()
