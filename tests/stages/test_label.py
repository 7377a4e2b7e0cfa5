"""`label` from folder to run, with everything that can go wrong on the way."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

import figureground
from figureground.errors import ConfigError, RunError, UsageError
from figureground.stages import Progress
from figureground.stages.label import LabelConfig, configure, run
from figureground.storage import jsonlines
from tests.data.odd_images import BROKEN, USABLE, picture, write_all

QUICK = ["size=64", "shard_size=3"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(7):
        part = folder / ("a" if index % 2 else "b")
        part.mkdir(exist_ok=True)
        picture(90 + 10 * index, 70).save(part / f"{index // 2}.jpg")
    return folder


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    write_all(folder / "photos")
    run(configure([str(folder / "photos")], assignments=QUICK), folder / "run")
    return folder / "run"


def quick(photos: Path, *assignments: str) -> LabelConfig:
    return configure([str(photos)], assignments=[*QUICK, *assignments])


def test_run_directory(photos: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = run(quick(photos), tmp_path / "run", progress=seen.append)
    assert (result.images, result.failed, result.resumed) == (7, 0, 0)
    assert [entry.done for entry in seen] == list(range(8))
    assert seen[-1].instances == result.instances > 0
    written = {path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")}
    assert written == {
        *("config.json", "environment.json", "result.json", "log.jsonl", "failures.jsonl", "shards"),
        *("annotations.json", "report.html"),
    }
    shards = {path.name for path in (tmp_path / "run" / "shards").iterdir()}
    assert shards == {f"0000{i}.{kind}" for i in range(3) for kind in ("json.gz", "done.json")}

    coco = COCO(str(tmp_path / "run" / "annotations.json"))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [
        *("a/0.jpg", "a/1.jpg", "a/2.jpg", "b/0.jpg", "b/1.jpg", "b/2.jpg", "b/3.jpg")
    ]
    for annotation in coco.loadAnns(coco.getAnnIds()):
        image = coco.imgs[annotation["image_id"]]
        mask = coco.annToMask(annotation)
        assert mask.shape == (image["height"], image["width"])
        assert mask.sum() == annotation["area"] > 0
        rows, columns = np.nonzero(mask)
        x, y, w, h = annotation["bbox"]
        assert (x, y, x + w, y + h) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert 0 <= annotation["score"] <= 1


def test_the_disc_is_found_where_it_is(photos: Path, tmp_path: Path) -> None:
    run(quick(photos, "size=128"), tmp_path / "run")
    coco = COCO(str(tmp_path / "run" / "annotations.json"))
    for image in coco.loadImgs(coco.getImgIds()):
        best = max(coco.loadAnns(coco.getAnnIds([image["id"]])), key=lambda annotation: annotation["score"])
        mask = coco.annToMask(best).astype(bool)
        y, x = np.mgrid[: image["height"], : image["width"]]
        disc = ((x / image["width"] - 0.5) ** 2 + (y / image["height"] - 0.5) ** 2) < 0.25**2
        assert (mask & disc).sum() / (mask | disc).sum() > 0.7


class TestOddImages:
    def test_usable_ones_are_in_and_broken_ones_are_named(self, odd_run: Path) -> None:
        images = json.loads((odd_run / "annotations.json").read_text())["images"]
        assert {image["file_name"] for image in images} == {*USABLE, "nested/plain.jpg"}
        assert [image["id"] for image in images] == list(range(1, len(images) + 1))
        failures = {entry["path"]: entry["error"] for entry in jsonlines.read(odd_run / "failures.jsonl")}
        assert failures.keys() == BROKEN.keys()
        for name, error in failures.items():
            assert BROKEN[name][1] in error

    def test_counts(self, odd_run: Path) -> None:
        result = json.loads((odd_run / "result.json").read_text())
        assert result["images"] == len(USABLE) + 1
        assert result["failed"] == len(BROKEN)
        assert result["ignored"] == 1

    def test_report_names_them_and_nothing_in_a_name_is_markup(self, odd_run: Path) -> None:
        page = (odd_run / "report.html").read_text("utf-8")
        assert "<script>alert(1)" not in page
        assert "cut short" in page

    def test_failures_are_tried_again(self, tmp_path: Path) -> None:
        folder = tmp_path / "photos"
        folder.mkdir()
        picture().save(folder / "a.jpg")
        (folder / "b.jpg").write_bytes(b"")
        assert run(quick(folder), tmp_path / "run").failed == 1
        picture().save(folder / "b.jpg")
        again = run(quick(folder), tmp_path / "run")
        assert (again.failed, again.images) == (0, 2)


class TestResume:
    def test_a_finished_run_is_not_made_again(self, photos: Path, tmp_path: Path) -> None:
        first = run(quick(photos), tmp_path / "run")
        before = (tmp_path / "run" / "annotations.json").read_bytes()
        again = run(quick(photos), tmp_path / "run")
        assert again.resumed == 7
        assert again.instances == first.instances
        assert (tmp_path / "run" / "annotations.json").read_bytes() == before

    def test_only_missing_shards_are_made(self, photos: Path, tmp_path: Path) -> None:
        run(quick(photos), tmp_path / "run")
        before = (tmp_path / "run" / "annotations.json").read_bytes()
        (tmp_path / "run" / "shards" / "00001.done.json").unlink()
        (tmp_path / "run" / "annotations.json").unlink()
        assert run(quick(photos), tmp_path / "run").resumed == 4
        assert (tmp_path / "run" / "annotations.json").read_bytes() == before

    def test_new_photographs_are_added(self, photos: Path, tmp_path: Path) -> None:
        shutil.copytree(photos, tmp_path / "photos")
        run(quick(tmp_path / "photos"), tmp_path / "run")
        picture().save(tmp_path / "photos" / "z.jpg")
        result = run(quick(tmp_path / "photos"), tmp_path / "run")
        assert (result.images, result.resumed) == (8, 6)

    def test_limit_may_grow(self, photos: Path, tmp_path: Path) -> None:
        assert run(quick(photos, "limit=3"), tmp_path / "run").images == 3
        result = run(quick(photos), tmp_path / "run")
        assert (result.images, result.resumed) == (7, 3)

    def test_another_configuration_is_an_error_that_lists_the_keys(self, photos: Path, tmp_path: Path) -> None:
        run(quick(photos, "method=maskcut"), tmp_path / "run")
        with pytest.raises(ConfigError, match=r"maskcut\.tau: .* -> 0\.3") as caught:
            run(quick(photos, "method=maskcut", "maskcut.tau=0.3"), tmp_path / "run")
        assert "size" not in caught.value.message

    def test_a_start_that_fails_leaves_the_folder_free(self, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="nonesuch"):
            run(quick(photos, "backbone.name=nonesuch"), tmp_path / "run")
        run(quick(photos, "limit=1"), tmp_path / "run")

    @pytest.mark.parametrize("seed", range(3))
    def test_killed_at_a_random_moment(self, seed: int, photos: Path, tmp_path: Path) -> None:
        config = quick(photos, "shard_size=1", "size=256")
        run(config, tmp_path / "calm")
        (tmp_path / "settings.json").write_text(config.model_dump_json())
        command = [sys.executable, "-m", "figureground", "label", "--config", str(tmp_path / "settings.json")]
        command += ["--out", str(tmp_path / "killed")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # The clock of the kill starts with the first word of the run, not while Python is still importing.
        log = tmp_path / "killed" / "log.jsonl"
        deadline = time.monotonic() + 120
        while not log.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(float(np.random.default_rng(seed).uniform(0, 0.8)))
        process.kill()
        process.wait()
        assert run(config, tmp_path / "killed").images == 7
        expected = (tmp_path / "calm" / "annotations.json").read_bytes()
        assert (tmp_path / "killed" / "annotations.json").read_bytes() == expected

    def test_interrupt_keeps_what_is_done(self, photos: Path, tmp_path: Path) -> None:
        def interrupt(progress: Progress) -> None:
            if progress.done == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(quick(photos), tmp_path / "run", progress=interrupt)
        assert run(quick(photos), tmp_path / "run").resumed == 3

    def test_two_runs_in_one_folder(self, photos: Path, tmp_path: Path) -> None:
        def start_another(progress: Progress) -> None:
            with pytest.raises(RunError, match="Another process"):
                run(quick(photos), tmp_path / "run")

        run(quick(photos), tmp_path / "run", progress=start_another)


class TestFull:
    def test_a_full_disk_stops_with_a_sentence_and_can_be_resumed(
        self, photos: Path, tmp_path: Path, monkeypatch
    ) -> None:
        import errno

        real = os.fsync
        calls = 0

        def fsync(descriptor: int) -> None:
            nonlocal calls
            calls += 1
            if calls == 9:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(RunError, match="disk is full"):
            run(quick(photos), tmp_path / "run")
        assert not list((tmp_path / "run").rglob("*.tmp"))
        monkeypatch.undo()
        assert run(quick(photos), tmp_path / "run").images == 7

    def test_out_is_a_file(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("")
        with pytest.raises(RunError, match="could not be written"):
            run(quick(photos), tmp_path / "run")

    def test_damaged_features_cost_one_image(self, photos: Path, tmp_path: Path, monkeypatch) -> None:
        from figureground.stages.labeller import Labeller

        real = Labeller.__call__

        def call(self: Labeller, pixels: np.ndarray, size: tuple[int, int]):
            if size[1] == 100:
                raise ValueError("Patch features hold NaN or infinite values")
            return real(self, pixels, size)

        monkeypatch.setattr(Labeller, "__call__", call)
        result = run(quick(photos), tmp_path / "run")
        assert (result.images, result.failed) == (6, 1)


def test_configuration_from_a_run_with_another_method(photos: Path, tmp_path: Path) -> None:
    run(quick(photos, "limit=1", "method=maskcut", "maskcut.tau=0.3"), tmp_path / "run")
    again = configure((), tmp_path / "run" / "config.json")
    assert again.maskcut is not None
    assert again.maskcut.tau == 0.3
    assert again.images == (str(photos),)
    other = configure((), tmp_path / "run" / "config.json", method="tokencut")
    assert other.tokencut is not None
    assert other.maskcut is None


def test_parts_name_the_instance_they_are_a_part_of(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(3):
        picture(160, 160).save(tmp_path / "photos" / f"{index}.png")
    settings = ["method=hac", "size=160", "hac.min_area=0", "hac.thresholds=[0.9,0.5,0.2,0.0]", "refine.method=none"]
    run(quick(tmp_path / "photos", *settings), tmp_path / "run")
    coco = COCO(str(tmp_path / "run" / "annotations.json"))
    annotations = coco.loadAnns(coco.getAnnIds())
    parts = [annotation for annotation in annotations if annotation["parent"] is not None]
    assert 0 < len(parts) < len(annotations)
    for part in parts:
        whole = coco.anns[part["parent"]]
        assert whole["image_id"] == part["image_id"]
        inside = coco.annToMask(part).astype(bool)
        assert (inside & coco.annToMask(whole).astype(bool)).sum() / inside.sum() > 0.8


def test_settings_of_another_method_are_refused() -> None:
    with pytest.raises(ConfigError, match="the method is 'background'"):
        configure(assignments=["tokencut.tau=0.1"])
    with pytest.raises(ConfigError, match="Did you mean 'maskcut'"):
        configure(method="maskut")
    with pytest.raises(ConfigError, match=r"'maskcut\.tua'"):
        configure(assignments=["method=maskcut", "maskcut.tua=0.1"])
    with pytest.raises(ConfigError, match="cannot be read"):
        configure(config_file=Path("missing.json"))


def test_python_interface(tmp_path: Path) -> None:
    image = picture()
    image.save(tmp_path / "a.png")
    pixels = figureground.load_image(tmp_path / "a.png")
    by_pixels = figureground.label(pixels, method="background", backbone="handcrafted", size=96)
    assert by_pixels.masks.shape[1:] == (64, 96)
    for other in (image, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert torch.equal(figureground.label(other, size=96).masks, by_pixels.masks)
    with pytest.raises(UsageError, match="Did you mean"):
        figureground.label(pixels, backbone="handcraftd")


def test_unknown_device() -> None:
    with pytest.raises(UsageError, match="no device 'gpu'"):
        figureground.label(np.zeros((8, 8, 3), np.uint8), device="gpu")
