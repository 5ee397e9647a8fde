"""robustness.json, the tables of robustness.md, and the plots: in one folder, each file whole or not at all."""

from pathlib import Path

from export.evaluation.robustness.plots import plots
from export.evaluation.robustness.results import Robustness
from export.evaluation.robustness.tables import to_markdown
from saccade.errors import DataError
from saccade.overlay import write_whole


def make_folder(folder: Path) -> None:
    """For before anything long is begun. Raises DataError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "robustness.json", b"")
        (folder / "robustness.json").unlink()
    except OSError as error:
        raise DataError(f"could not make the folder {folder}: {error.strerror}") from error


def write_report(result: Robustness, folder: Path) -> None:
    """Raises DataError."""
    for name, content in plots(result).items():
        write_whole(folder / name, content)
    write_whole(folder / "robustness.md", (to_markdown(result) + "\n").encode())
    write_whole(folder / "robustness.json", (result.model_dump_json(indent=1) + "\n").encode())
