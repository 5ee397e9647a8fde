"""transformers itself, imported where it is needed: it takes seconds, and no other command wants it."""

import importlib
from types import ModuleType

from saccade.errors import SetupError


def transformers() -> ModuleType:
    """The package. Raises SetupError that says what to install."""
    return _needed("transformers")


def hub() -> ModuleType:
    """huggingface_hub, which comes with it. Raises SetupError that says what to install."""
    return _needed("huggingface_hub")


def _needed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SetupError(
            f"this command needs {name}: install the extra, pip install -e '.[transformers]', in a checkout"
        ) from error
