"""The same service without a container: `python -m service` of this checkout."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.container.engine import ROOT, Failed


@contextmanager
def outside(**settings: object) -> Iterator[str]:
    """Its URL, once it is ready."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SACCADE_")}
    environment |= {f"SACCADE_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "service"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = ""
            for line in process.stderr:
                said += line
                found = re.search(r"ready on (http://[0-9.:]+)", line)
                if found:
                    yield found[1]
                    return
            raise Failed(f"the service outside ended: {said}")
        finally:
            process.terminate()
            process.stderr.read()
