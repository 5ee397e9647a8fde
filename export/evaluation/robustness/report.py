"""robustness.json, the tables of robustness.md, and the plots: in one folder, each file whole or not at all."""

from pathlib import Path

from export.evaluation.robustness.conditions import FAMILIES
from export.evaluation.robustness.plots import plots
from export.evaluation.robustness.results import Robustness
from export.evaluation.robustness.tables import to_markdown
from saccade.overlay import write_whole


def write_report(result: Robustness, folder: Path) -> None:
    """The folder is there. Plots of an earlier run that would not belong to this one are removed. Raises DataError."""
    drawn = plots(result)
    for family in FAMILIES:
        name = f"{family}.png"
        if name in drawn:
            write_whole(folder / name, drawn[name])
        else:
            (folder / name).unlink(missing_ok=True)
    write_whole(folder / "robustness.md", (to_markdown(result) + "\n").encode())
    write_whole(folder / "robustness.json", (result.model_dump_json(indent=1) + "\n").encode())
