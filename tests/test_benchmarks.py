"""The measurements that need other hardware run here in the small, so that they run there."""

import pytest
from benchmarks import bench_accelerator, bench_published

from figureground.backbones import find


@pytest.fixture(autouse=True)
def no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_accelerator, "write_rows", lambda name, rows: name)


def test_the_accelerator_is_measured_from_files_to_records() -> None:
    words = "--device cpu --backbone dino_s16 --size 64 --images 2 --batch-size 2 --check 2 --precision fp32"
    [line] = bench_accelerator.main(words.split())
    assert (line["images"], line["device"]) == (2, "cpu")
    assert 0 < line["share_of_bare"] < 1
    assert {"decode_ms", "features_ms", "propose_ms", "refine_ms", "write_ms"} <= line.keys()
    assert line["masks"] > 0
    assert line["iou_mean"] >= 0.99


def test_the_published_procedure_finds_what_ours_finds(tmp_path) -> None:
    pytest.importorskip("skimage")
    files = [bench_published.photograph("astronaut")]
    lines = bench_published.measure(find("dino_s16"), files, 96, tmp_path)
    published, reference = lines[:2]
    assert published["variant"] == "published procedure"
    assert published["ratio"] == 1
    # Not to the pixel: positions are resampled, and the photograph is made a square, by other rules.
    assert abs(published["masks"] - reference["masks"]) <= 1
    assert {"features_ms", "propose_ms", "refine_ms"} <= reference.keys()
