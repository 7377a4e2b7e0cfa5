"""Runs whose annotations are Parquet: written by `label`, read by every stage that reads masks."""

import json
from pathlib import Path

import pytest

from figureground.data.annotation_file import open_annotations
from figureground.data.label_file import LabelFile
from figureground.errors import UsageError
from figureground.stages import cluster, evaluate, label
from tests.data.odd_images import picture

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(5):
        picture(90 + 10 * index, 70).save(folder / f"{index}.jpg")
    return folder


def labelled(photos: Path, out: Path, form: str, *settings: str) -> Path:
    config = label.configure(
        [str(photos)], method="tokencut", assignments=["size=64", "shard_size=1", f"format={form}", *settings]
    )
    assert label.run(config, out).failed == 0
    return out


def test_both_say_the_same(photos: Path, tmp_path: Path) -> None:
    run = labelled(photos, tmp_path / "run", "both")
    coco, table = (open_annotations(run / f"annotations.{ending}") for ending in ("json", "parquet"))
    for key in ("images", "annotations", "categories"):
        assert list(table.entries(key)) == list(coco.entries(key)) != []


def test_a_run_that_changes_its_format(photos: Path, tmp_path: Path) -> None:
    """Nothing is labelled again, and nothing old stays behind."""
    run = labelled(photos, tmp_path / "run", "json")
    before = (run / "annotations.json").read_bytes()
    labelled(photos, run, "parquet", "limit=3")
    assert json.loads((run / "result.json").read_text())["resumed"] == 3
    assert not (run / "annotations.json").exists()
    assert len(LabelFile(run / "annotations.parquet")) == 3
    labelled(photos, run, "json")
    assert not (run / "annotations.parquet").exists()
    assert (run / "annotations.json").read_bytes() == before


def test_the_stages_read_it(photos: Path, tmp_path: Path) -> None:
    """As they read the COCO file of the same run, report included."""
    runs = {form: labelled(photos, tmp_path / form, form) for form in ("json", "parquet")}
    pages = [(run / "report.html").read_text("utf-8").partition('id="data">')[2] for run in runs.values()]
    assert pages[0].partition("</script>")[0] == pages[1].partition("</script>")[0] != ""
    truth = runs["json"] / "annotations.json"
    for run in runs.values():
        measures = evaluate.run(evaluate.configure(run, truth, ["resamples=0"])).measures
        assert measures["mask"]["ap"].value == 100
    found = []
    for form, run in runs.items():
        cluster.run(cluster.configure(run, assignments=["k=2", "size=64"]), tmp_path / f"clusters-{form}")
        found.append((tmp_path / f"clusters-{form}" / "annotations.json").read_text().partition('"images"')[2])
    assert found[0] == found[1] != ""


def test_without_pyarrow_nothing_is_begun(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pyarrow"):
        labelled(photos, tmp_path / "run", "parquet")
    assert not (tmp_path / "run").exists()
