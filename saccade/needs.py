"""The other packages, for commands that want them: imported by name and late, for this one stands without them."""

import importlib
from typing import Any

from saccade.errors import SetupError


def needs(extra: str, *modules: str) -> list[Any]:
    """Imports modules of `service` or `export`. Raises SetupError where the extra that they want is not installed."""
    try:
        return [importlib.import_module(name) for name in modules]
    except ModuleNotFoundError as error:
        raise SetupError(
            f"this command needs {error.name}: install the extra, pip install -e '.[{extra}]', in a checkout"
        ) from error
