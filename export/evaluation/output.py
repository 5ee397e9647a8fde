"""The folder that a measurement is written into."""

import tempfile
from pathlib import Path

from saccade.errors import DataError


def make_folder(folder: Path) -> None:
    """For before anything long is begun. Raises DataError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"could not write to {folder}: {error.strerror}") from error
