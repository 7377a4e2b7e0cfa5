import subprocess
import sys
from pathlib import Path

import pytest

from figureground.data.datasets.builders import BUILDERS
from figureground.data.datasets.catalogue import DATA_SETS, DataSet, check_layout, find
from figureground.data.datasets.page import to_markdown
from figureground.errors import UsageError
from tests.data.datasets.originals import WRITERS

PAGE = Path(__file__).parents[3] / "docs" / "datasets.md"
REMAKE = (
    "docs/datasets.md is not what the catalogue says; put the text of figureground.data.datasets.page.to_markdown() "
    "behind its line <!-- catalogue -->"
)


def test_every_set_has_a_builder_and_a_test() -> None:
    assert {row.format for row in DATA_SETS.values()} == set(BUILDERS)
    assert list(WRITERS) == list(DATA_SETS)


@pytest.mark.parametrize("row", DATA_SETS.values(), ids=lambda row: row.name)
def test_a_row_says_everything(row: DataSet) -> None:
    assert row.title
    assert row.measures
    assert row.licence.endswith(".")
    assert row.homepage.startswith("http")
    assert row.published_images > 0
    assert any(row.example.startswith(f"{folder}/") for folder in row.images)


def test_the_page_says_what_the_catalogue_says() -> None:
    assert PAGE.read_text("utf-8").partition("<!-- catalogue -->\n\n")[2] == to_markdown(), REMAKE


def test_names() -> None:
    assert find("kitti").title.startswith("KITTI")
    with pytest.raises(UsageError, match="Did you mean 'coco_val2017'"):
        find("COCO-val2017")
    with pytest.raises(UsageError, match="figureground truth list"):
        find("nonesuch!")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "sub" / "val2017").mkdir(parents=True)
    with pytest.raises(UsageError) as caught:
        check_layout(find("coco_val2017"), tmp_path / "sub")
    text = str(caught.value)
    assert "1 of 2 paths are missing" in text
    assert f"missing  {tmp_path / 'sub' / 'annotations/instances_val2017.json'}" in text
    assert f"there    {tmp_path / 'sub' / 'val2017'}" in text
    assert "https://cocodataset.org" in text
    assert "Terms: Annotations CC BY 4.0" in text
    assert "Did you mean" not in text
    with pytest.raises(UsageError, match="There is no folder"):
        check_layout(find("coco_val2017"), tmp_path / "nothing")
    (tmp_path / "sub" / "annotations").mkdir()
    (tmp_path / "sub" / "annotations" / "instances_val2017.json").touch()
    check_layout(find("coco_val2017"), tmp_path / "sub")
    with pytest.raises(UsageError, match=f"Did you mean {tmp_path / 'sub'}"):
        check_layout(find("coco_val2017"), tmp_path)


def test_the_catalogue_does_not_import_torch() -> None:
    program = "import sys, figureground.data.datasets.page; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
