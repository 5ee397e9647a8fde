"""docs/gpu.md says what docs/gpu.json measured."""

import json

from benchmarks.gpu_page import FILE, PAGE, filled, tables


def test_the_page_of_a_gpu_is_that_of_the_figures() -> None:
    """Its tables are those that the command makes of the file beside it, to the last digit."""
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, tables(json.loads(FILE.read_text(encoding="utf-8")))) == page
