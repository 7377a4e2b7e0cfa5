"""`compare` from folder to run: several methods, one decoding, one set of features."""

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from figureground.cli import main
from figureground.data.images import read_size
from figureground.errors import ConfigError, ImageError, RunError, UsageError
from figureground.proposals.lost import Lost
from figureground.stages import Progress, evaluate, label
from figureground.stages.compare import CompareConfig, configure, run
from figureground.storage import jsonlines
from tests.data.odd_images import USABLE, picture, write_all
from tests.evaluation.scenes import describe

METHODS = ("background", "maskcut", "maskcut:reference", "centred_box")
QUICK = ["size=64", "shard_size=2", "resamples=20", "refine.method=dense_crf"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(5):
        (folder / ("a" if index % 2 else "b")).mkdir(exist_ok=True)
        picture(90 + 10 * index, 70).save(folder / ("a" if index % 2 else "b") / f"{index}.jpg")
    return folder


@pytest.fixture(scope="module")
def truth(photos: Path) -> Path:
    """The discs of all photographs but the last, ids and order of its own, and one image more."""
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 9, "name": "disc"}]}
    for index in (3, 1, 2, 0):
        width, height = 90 + 10 * index, 70
        y, x = np.mgrid[:height, :width]
        disc = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) < 0.25**2
        image = {"id": 100 - index, "file_name": f"elsewhere/{index}.jpg", "width": width, "height": height}
        content["images"].append(image)
        entry = {"id": index + 1, "image_id": image["id"], "category_id": 9, "iscrowd": 0}
        content["annotations"].append({**entry, **describe(disc)})
    content["images"].append({"id": 7, "file_name": "another.jpg", "width": 10, "height": 10})
    path = photos.parent / "truth.json"
    path.write_text(json.dumps(content))
    return path


def quick(photos: Path, *assignments: str, methods: tuple[str, ...] = METHODS, **shorthands: Any) -> CompareConfig:
    return configure([str(photos)], [*QUICK, *assignments], methods=list(methods), **shorthands)


@pytest.fixture(scope="module")
def compared(photos: Path, truth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared") / "run"
    run(quick(photos, truth=str(truth)), out)
    return out


def files_of(out: Path) -> dict[str, bytes]:
    """What must be the same however often a run was stopped."""
    return {path.name: path.read_bytes() for path in [*(out / "annotations").iterdir(), *out.glob("truth.json")]}


def test_run_directory(compared: Path) -> None:
    written = {path.name for path in compared.iterdir() if not path.name.startswith(".")}
    assert written == {
        *("config.json", "environment.json", "result.json", "log.jsonl", "failures.jsonl", "shards", "annotations"),
        *("comparison.json", "comparison.csv", "truth.json", "report.html"),
    }
    names = {path.stem for path in (compared / "annotations").iterdir()}
    assert names == {"background", "maskcut", "maskcut-reference", "centred_box"}
    result = json.loads((compared / "result.json").read_text())
    assert (result["stage"], result["images"], result["failed"]) == ("compare", 5, 0)
    assert {"decode", "features", "prepare refinement", *METHODS} == result["stage_seconds"].keys()


@pytest.mark.parametrize("name", METHODS)
def test_each_method_finds_what_label_finds(name: str, compared: Path, photos: Path, tmp_path: Path) -> None:
    method, _, preset = name.partition(":")
    label.run(
        label.configure([str(photos)], assignments=["size=64"], method=method, preset=preset or None), tmp_path / "run"
    )
    alone = json.loads((tmp_path / "run" / "annotations.json").read_text())
    together = json.loads((compared / "annotations" / f"{name.replace(':', '-')}.json").read_text())
    assert together["images"] == alone["images"]
    assert together["annotations"] == alone["annotations"]


def test_an_image_is_decoded_and_described_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from figureground.backbones.handcrafted import Handcrafted
    from figureground.refine.dense_crf import DenseCRF
    from figureground.stages import compare

    calls: list[str] = []

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    counted(compare, "decode")
    counted(Handcrafted, "forward")
    counted(DenseCRF, "__init__")
    monkeypatch.setattr(compare, "write_comparison", lambda *arguments, **options: None)
    run(quick(photos), tmp_path / "run")
    assert {name: calls.count(name) for name in calls} == {"decode": 5, "forward": 5, "__init__": 5}


def test_measures(compared: Path, truth: Path) -> None:
    comparison = json.loads((compared / "comparison.json").read_text())
    assert [method["name"] for method in comparison["methods"]] == list(METHODS)
    assert comparison["truth"] == {
        **{"path": str(truth), "images": 4, "objects": 4, "crowd": 0, "with_masks": True},
    }
    first, *others = comparison["methods"]
    assert first["measures"]["corloc"]["value"] == 100
    assert first["measures"]["iou"]["low"] > 60
    assert "difference" not in first["measures"]["iou"]
    for method in others:
        for measure in method["measures"].values():
            assert measure["difference_low"] <= measure["difference"] <= measure["difference_high"]
    assert comparison["methods"][3]["baseline"]
    for method in comparison["methods"]:
        assert method["ms"]["total"] == pytest.approx(sum(method["ms"].values()) - method["ms"]["total"], abs=0.03)
    rows = list(csv.DictReader((compared / "comparison.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == list(METHODS)
    assert float(rows[0]["mask_ap50"]) == first["measures"]["mask_ap50"]["value"]
    assert rows[0]["iou_difference"] == ""
    assert float(rows[1]["iou_difference_high"]) == others[0]["measures"]["iou"]["difference_high"]


def test_evaluate_reads_every_file_and_agrees(compared: Path) -> None:
    for method in json.loads((compared / "comparison.json").read_text())["methods"]:
        config = evaluate.configure(compared / method["annotations"], compared / "truth.json", ["resamples=20"])
        measures = evaluate.run(config).measures
        for name, group, key in (
            ("corloc", "corloc", "corloc"),
            ("mask_ap", "mask", "ap"),
            ("box_ar100", "box", "ar100"),
            ("iou", "saliency", "iou"),
        ):
            for end in ("value", "low", "high"):
                assert method["measures"][name][end] == pytest.approx(getattr(measures[group][key], end), abs=1e-5)


def test_without_a_truth_there_are_no_measures(photos: Path, truth: Path, tmp_path: Path) -> None:
    run(quick(photos, methods=("whole_image",), truth=str(truth)), tmp_path / "run")
    assert (tmp_path / "run" / "truth.json").exists()
    # The truth may change, or go, when a run goes on.
    assert run(quick(photos, methods=("whole_image",)), tmp_path / "run").resumed == 5
    assert not (tmp_path / "run" / "truth.json").exists()
    comparison = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert "measures" not in comparison["methods"][0]
    assert (tmp_path / "run" / "comparison.csv").read_text().startswith("method,objects_per_image,ms_shared")


class TestMethods:
    def test_all_are_those_that_can_run_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cv2", None)
        config = configure(["photos"])
        assert {"background", "maskcut", "centred_box", "whole_image"} <= set(config.methods)
        assert set(config.left_out) == {"attention", "selective_search"}
        assert "CLS token" in config.left_out["attention"]
        assert config.size == 368
        assert CompareConfig.model_validate(config.model_dump(mode="json")) == config

    def test_settings_belong_to_one_of_them(self) -> None:
        config = configure(["photos"], ["maskcut:reference.tau=0.3"], methods=["maskcut", "maskcut:reference"])
        assert config.settings["maskcut:reference"]["tau"] == 0.3
        assert config.settings["maskcut"]["tau"] != 0.3
        assert config.labeller("maskcut:reference").maskcut.tau == 0.3  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("methods", "settings", "message"),
        [
            (["maskut"], [], "Did you mean 'maskcut'"),
            (["maskcut:best"], [], "no preset 'best'"),
            (["maskcut", "lost", "maskcut"], [], "maskcut is named twice"),
            (["maskcut", "maskcut:default"], [], "maskcut is named twice"),
            (["all", "lost"], [], "lost is named twice"),
            ([], [], "No methods are named"),
            (["maskcut"], ["lost.k=3"], r"lost is not among the methods: maskcut"),
            (["maskcut"], ["maskcut.tua=3"], r"'maskcut\.tua'.*maskcut\.tau"),
            (["maskcut"], ["sise=3"], "'sise'.*Did you mean 'size'"),
        ],
    )
    def test_what_is_wrong_is_named(self, methods: list[str], settings: list[str], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            configure(["photos"], settings, methods=methods)

    def test_unknown_backbone(self) -> None:
        with pytest.raises(UsageError, match="'handcraftd'") as caught:
            configure(["photos"], backbone={"name": "handcraftd"})
        assert "handcrafted" in str(caught.value)

    def test_one_that_cannot_run_is_refused_before_the_work(self, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="CLS token"):
            run(quick(photos, methods=("background", "attention")), tmp_path / "run")
        assert not (tmp_path / "run").exists()


class TestTruth:
    def refused(self, photos: Path, tmp_path: Path, content: Any, message: str) -> None:
        (tmp_path / "truth.json").write_text(json.dumps(content))
        with pytest.raises(UsageError, match=message):
            run(quick(photos, truth=str(tmp_path / "truth.json")), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_of_other_images(self, photos: Path, truth: Path, tmp_path: Path) -> None:
        content = json.loads(truth.read_text())
        for image in content["images"]:
            image["file_name"] = "other-" + image["file_name"].rpartition("/")[2]
        self.refused(photos, tmp_path, content, "are about other images: none of the 5")

    def test_of_other_sizes(self, photos: Path, truth: Path, tmp_path: Path) -> None:
        content = json.loads(truth.read_text())
        content["annotations"] = []
        content["images"][0]["width"] += 1
        self.refused(photos, tmp_path, content, "'a/3.jpg': `height` and `width` are 70 and 120 but 70 and 121")

    def test_without_objects(self, photos: Path, truth: Path, tmp_path: Path) -> None:
        content = json.loads(truth.read_text())
        self.refused(photos, tmp_path, {**content, "annotations": []}, "no object in the 4 images")
        self.refused(photos, tmp_path, [], "not a truth file")

    def test_with_boxes_only(self, photos: Path, truth: Path, tmp_path: Path) -> None:
        content = json.loads(truth.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        (tmp_path / "truth.json").write_text(json.dumps(content))
        run(quick(photos, methods=("background",), truth=str(tmp_path / "truth.json")), tmp_path / "run")
        [method] = json.loads((tmp_path / "run" / "comparison.json").read_text())["methods"]
        assert set(method["measures"]) == {"corloc", "box_ap", "box_ap50", "box_ar10", "box_ar100"}

    def test_limit_leaves_images_of_the_truth_out(self, photos: Path, truth: Path, tmp_path: Path) -> None:
        run(quick(photos, methods=("background",), truth=str(truth), limit=3), tmp_path / "run")
        comparison = json.loads((tmp_path / "run" / "comparison.json").read_text())
        assert (comparison["images"], comparison["truth"]["images"]) == (3, 3)


class TestResume:
    def test_the_same_bytes_again(self, compared: Path, photos: Path, truth: Path, tmp_path: Path) -> None:
        shutil.copytree(compared, tmp_path / "run")
        before = files_of(compared)
        (tmp_path / "run" / "shards" / "00001.done.json").unlink()
        (tmp_path / "run" / "annotations" / "maskcut.json").unlink()
        assert run(quick(photos, truth=str(truth)), tmp_path / "run").resumed == 3
        assert files_of(tmp_path / "run") == before

    def test_another_configuration_is_an_error_that_lists_the_keys(self, compared: Path, photos: Path) -> None:
        with pytest.raises(ConfigError, match=r"settings\.maskcut\.tau: .* -> 0\.3"):
            run(quick(photos, "maskcut.tau=0.3"), compared)
        with pytest.raises(ConfigError, match=r"methods: .*centred_box"):
            run(quick(photos, methods=METHODS[:2]), compared)

    def test_killed(self, compared: Path, photos: Path, truth: Path, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "figureground", "compare", str(photos), "--methods", ",".join(METHODS)]
        command += ["--truth", str(truth), "--out", str(tmp_path / "run")]
        command += [part for assignment in QUICK for part in ("--set", assignment)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "shards" / "00000.done.json").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert run(quick(photos, truth=str(truth)), tmp_path / "run").images == 5
        assert files_of(tmp_path / "run") == files_of(compared)

    def test_two_runs_in_one_folder(self, photos: Path, tmp_path: Path) -> None:
        def start_another(progress: Progress) -> None:
            with pytest.raises(RunError, match="Another process"):
                run(quick(photos, methods=("whole_image",)), tmp_path / "run")

        run(quick(photos, methods=("whole_image",)), tmp_path / "run", progress=start_another)


def test_odd_images(tmp_path: Path) -> None:
    write_all(tmp_path / "photos")
    result = run(quick(tmp_path / "photos", methods=("found", "centred_box")), tmp_path / "run")
    failures = jsonlines.read(tmp_path / "run" / "failures.jsonl")
    assert result.images == len(USABLE) + 1
    assert result.failed == len(failures) > 10


def test_a_method_that_fails_costs_the_image_for_all(photos: Path, tmp_path: Path, monkeypatch) -> None:
    real = Lost.propose

    def propose(self: Lost, features: Any, images: Any = None) -> Any:
        if features.image_size[1] > 72:
            raise ValueError("no seed")
        return real(self, features, images)

    monkeypatch.setattr(Lost, "propose", propose)
    result = run(quick(photos, methods=("lost", "whole_image")), tmp_path / "run")
    assert 0 < result.failed < 5
    [failure, *_] = jsonlines.read(tmp_path / "run" / "failures.jsonl")
    assert failure["error"] == "lost failed on the image: no seed"
    for name in ("lost", "whole_image"):
        images = json.loads((tmp_path / "run" / "annotations" / f"{name}.json").read_text())["images"]
        assert len(images) == result.images


def test_no_image_at_all(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    truth = {"images": [{"id": 1, "file_name": "a.jpg", "height": 5, "width": 5}], "annotations": []}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    config = quick(tmp_path / "photos", methods=("whole_image",), truth=str(tmp_path / "truth.json"))
    assert run(config, tmp_path / "run").failed == 1
    assert "This run has no images." in (tmp_path / "run" / "report.html").read_text()


def test_size_from_the_head_of_a_file(tmp_path: Path) -> None:
    from figureground.data.images import decode

    write_all(tmp_path)
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        try:
            expected = decode(path)[1]
        except ImageError:
            continue
        assert read_size(path) == expected


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_command_line(photos: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", str(photos), "--out", str(tmp_path / "run"), "--truth", str(truth), "--set", "size=64"]
    assert call(*command, "--methods", "background, centred_box", "--set", "resamples=20") == 0
    out = capsys.readouterr().out
    assert "2 methods, 5 images" in out
    assert (tmp_path / "run" / "report.html").absolute().as_uri() in out
    assert call(*command, "--methods", " , ") == 2
    assert "No methods are named" in capsys.readouterr().err
    assert call("compare", str(photos)) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_by_default_methods_are_compared_by_what_they_find_themselves(photos: Path) -> None:
    assert configure([str(photos)]).refine.method == "none"
