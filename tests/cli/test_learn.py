"""The commands `learn` and `self-train`."""

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import call
from tests.cli.test_train_predict import LIGHT, sets
from tests.stages.labelled import write_labelled

BRIEF = ["--recipe", "tiny", *sets("train.detector.detector=vitdet", *(f"train.{each}" for each in LIGHT))]
BRIEF += [
    "--method",
    "lost",
    *sets("label.size=64", "self_train.thresholds=[0]", "self_train.predict.max_detections=5"),
]


def test_learn_then_self_train_then_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_labelled(tmp_path / "drawn", 3)
    photos, run = str(tmp_path / "drawn" / "photos"), str(tmp_path / "run")
    learn = ["learn", photos, "--out", run, *BRIEF, "--rounds", "1", "--truth", str(labels / "annotations.json")]
    assert call(*learn) == 0
    out = capsys.readouterr().out
    assert "Round 1: " in out
    assert "mask AP50" in out
    assert f"figureground predict {run}" in out
    assert call(*learn, *sets("train.optimiser.rate=1")) == 2
    assert "train.optimiser.rate" in capsys.readouterr().err
    found = str(tmp_path / "found")
    assert call("predict", run, photos, "--out", found, "--score-threshold", "0", "--limit", "1") == 0
    # What was learned can learn on, from the masks of its last round.
    last = str(tmp_path / "run" / "round-1" / "labels.json")
    again = ["self-train", run, "--out", str(tmp_path / "more"), "--rounds", "1", *sets("thresholds=[0]")]
    assert call(*again) == 2
    assert "--labels is missing" in capsys.readouterr().err
    assert call(*again, "--labels", last, "--images", photos) == 0
    assert "masks kept" in capsys.readouterr().out
    settings = json.loads((tmp_path / "more" / "config.json").read_text())["train"]
    assert (settings["recipe"], settings["steps"]) == ("tiny", 1)


def test_wrong_use(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    photos = str(write_labelled(tmp_path / "drawn", 1).parent / "photos")
    out = ["--out", str(tmp_path / "run")]
    for arguments, said in (
        (["learn", photos], "--out is missing"),
        (["learn", *out], "No images were given"),
        (["learn", photos, *out, "--recipe", "nonesuch"], "Unknown recipe"),
        (["learn", photos, *out, "--rounds", "-1"], "rounds"),
        (["learn", photos, *out, "--set", "label.methd=lost"], "label.methd"),
        (["self-train", str(tmp_path)], "--out is missing"),
        (["self-train", str(tmp_path), *out], "holds no detector.safetensors"),
    ):
        assert call(*arguments) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("figureground.stages.learn.run", interrupt)
    assert call("learn", photos, *out, "--recipe", "cutler_cascade") == 130
    err = capsys.readouterr().err
    assert "published to begin with DINO's ResNet-50" in err
    assert "Run the same command again" in err


def test_what_could_not_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_labelled(tmp_path / "drawn", 2)
    (tmp_path / "drawn" / "photos" / "bad.png").write_bytes(b"")
    photos = str(tmp_path / "drawn" / "photos")
    assert call("learn", photos, "--out", str(tmp_path / "run"), *BRIEF, "--rounds", "0") == 3
    assert "1 images could not be used" in capsys.readouterr().out
