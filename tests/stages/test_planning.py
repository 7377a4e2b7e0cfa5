"""What `label --dry-run` says of a run that is then made."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from figureground.cli import app
from figureground.stages.label import configure, run
from figureground.stages.planning import Plan, plan
from tests.data.odd_images import picture

QUICK = ["size=64", "shard_size=5", "refine.method=none"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(12):
        picture(90 + 2 * index, 70).save(folder / f"{index:02d}.jpg")
    (folder / "03.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize("more", [[], ["batch_size=2"]], ids=["alone", "batches"])
def test_a_plan_foretells_the_run(photos: Path, tmp_path: Path, more: list[str]) -> None:
    config = configure([str(photos)], assignments=[*QUICK, *more])
    made = plan(config)
    result = run(config, tmp_path / "run")
    assert (made.images, made.ignored, made.shards) == (12, 1, 3)
    assert made.sampled == (12 if more else 8)
    assert made.image_s > 0
    assert (made.image_error_s is None) == bool(more)
    written = (tmp_path / "run" / "annotations.json").stat().st_size
    assert made.annotations_bytes == pytest.approx(written, rel=0.5)
    shards = sum(path.stat().st_size for path in (tmp_path / "run" / "shards").iterdir())
    assert made.shards_bytes == pytest.approx(shards, rel=0.5)
    if more:  # every image was in the sample
        assert (made.instances, made.failed) == (result.instances, result.failed)


def test_seconds_are_shared_by_shards() -> None:
    made = Plan(100, 0, 10, 1, 8, 0, 8, 2.0, 0.1, 0, 0)
    assert made.total_s() == pytest.approx((180, 220))
    assert made.total_s(4) == pytest.approx((54, 66))  # three shards at most for each
    assert made.total_s(1000)[1] == pytest.approx(22)  # no shard is cut
    assert Plan(100, 0, 10, 2, 8, 0, 8, 2.0, None, 0, 0).total_s() == (200, 200)


def test_the_command_writes_nothing(photos: Path, tmp_path: Path) -> None:
    before = sorted(photos.iterdir())
    command = ["label", str(photos), "--dry-run", "--out", str(tmp_path / "run"), "--set", "batch_size=2"]
    told = CliRunner().invoke(app, [*command, *(word for setting in QUICK for word in ("--set", setting))])
    assert told.exit_code == 0, told.output
    assert "12 in 3 shards (1 other files)" in told.output
    assert "background on handcrafted, fp32, at 64 px" in told.output
    assert "Time:" in told.output
    assert "shard_size=64" in told.output
    assert "Nothing was written." in told.output
    assert not (tmp_path / "run").exists()
    assert sorted(photos.iterdir()) == before
