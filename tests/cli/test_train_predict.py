"""The commands `train` and `predict`, one after the other."""

import json
from pathlib import Path

import pytest

from figureground.stages.train_recipes import RECIPES
from tests.cli.test_cli import call
from tests.stages.labelled import edit, write_labelled

LIGHT = ["detector.backbone.patch_size=16", "detector.backbone.width=24", "detector.backbone.depth=1"]
LIGHT += ["detector.backbone.heads=2", "detector.backbone.channels=8", "steps=2", "batch_size=2"]


def sets(*assignments: str) -> list[str]:
    return [part for assignment in assignments for part in ("--set", assignment)]


def test_train_then_predict_then_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_labelled(tmp_path / "drawn", 3)
    photos = str(tmp_path / "drawn" / "photos")
    run, found = str(tmp_path / "run"), str(tmp_path / "found")
    train = ["train", str(labels), photos, "--out", run, "--recipe", "tiny", "--detector", "vitdet", *sets(*LIGHT)]
    assert call(*train) == 0
    out = capsys.readouterr().out
    assert "2 steps on 3 images" in out
    assert f"figureground predict {run}" in out
    assert (tmp_path / "run" / "report.html").absolute().as_uri() in out
    assert call("predict", run, photos, "--out", found, "--score-threshold", "0", "--limit", "2") == 0
    assert "objects that score above 0 in 2 images" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "found" / "annotations.json").read_text())["images"]) == 2
    assert call("evaluate", found, "--truth", str(labels / "annotations.json"), *sets("only_listed=true")) == 0
    assert "Mask AP50" in capsys.readouterr().out
    assert call(*train, *sets("optimiser.rate=1")) == 2
    assert "another configuration" in capsys.readouterr().err


def test_what_could_not_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_labelled(tmp_path / "drawn", 3)
    (tmp_path / "drawn" / "photos" / "000.png").write_bytes(b"")
    edit(labels, lambda content: content["annotations"][-1].update(segmentation=None))
    arguments = ["--out", str(tmp_path / "run"), "--recipe", "tiny", "--detector", "vitdet"]
    assert call("train", str(labels), *arguments, *sets(*LIGHT, "batch_size=3", "steps=1")) == 3
    out = capsys.readouterr().out
    assert "1 masks could not be used" in out
    assert "1 images could not be used" in out


def test_wrong_use(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_labelled(tmp_path / "drawn", 1)
    out = ["--out", str(tmp_path / "run")]
    for arguments, said in (
        (["train", str(labels)], "--out is missing"),
        (["train", str(tmp_path / "nothing"), *out], "There are no pseudo-labels at"),
        (["train", str(labels), *out, "--recipe", "cutler"], "Unknown recipe"),
        (["train", str(labels), *out, "--detector", "maskrcnn"], "Did you mean 'mask_rcnn'"),
        (["train", str(labels), *out, "--device", "cuda:99", "--recipe", "tiny"], "is not there"),
        (["predict", str(tmp_path)], "--out is missing"),
        (["predict", str(tmp_path), *out], "holds no detector.safetensors"),
        (["predict", str(tmp_path), *out, "--score-threshold", "2"], "score_threshold"),
    ):
        assert call(*arguments) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("figureground.stages.train.run", interrupt)
    assert call("train", str(labels), *out, "--recipe", "cutler_cascade") == 130
    err = capsys.readouterr().err
    assert "published to begin with DINO's ResNet-50" in err
    assert "Run the same command again" in err


def test_help_names_the_recipes(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert call("train", "--help") == 0
    out = capsys.readouterr().out
    assert all(recipe in out for recipe in RECIPES)
