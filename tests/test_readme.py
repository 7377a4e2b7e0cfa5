import re
from pathlib import Path

import pytest
from benchmarks.render_tables import PAGES, render

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_results(page: Path) -> None:
    text = page.read_text("utf-8")
    assert render(text) == text, "run `python -m benchmarks.render_tables`"


def test_files_that_are_named_exist() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for name in re.findall(r"`((?:src/figureground/|docs/)[\w/]+\.\w+)`", text):
        assert (ROOT / name).exists(), name
