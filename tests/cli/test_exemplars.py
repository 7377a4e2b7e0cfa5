from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_cli import call
from tests.stages.test_cluster import write_scenes

FAST = ["--set", "size=96", "--set", "view_size=96"]


def test_exemplars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = write_scenes(tmp_path / "scenes [b]")
    arguments = ["exemplars", str(scenes / "photos"), *FAST]
    assert call(*arguments) == 2
    assert "--out is missing" in capsys.readouterr().err
    out = tmp_path / "pool"
    assert call(*arguments, "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert "6 exemplars of 6 hidden categories, from 6 images" in said
    assert (out / "report.html").absolute().as_uri() in said
    assert len(list((out / "exemplars").iterdir())) == 6

    (out / "exemplars" / "3.png").unlink()
    (out / "exemplars" / "more.png").write_bytes(b"")
    assert call(*arguments, "--out", str(out)) == 3
    said = capsys.readouterr().out
    assert "5 exemplars of 5 hidden categories (0 added, 1 removed by hand), from 6 images" in said
    assert "1 images could not be used" in said

    Image.new("RGB", (96, 72)).save(scenes / "black.png")
    assert call("exemplars", str(scenes / "black.png"), "--out", str(tmp_path / "none"), *FAST) == 1
    assert "In none of the 1 images an object was found" in capsys.readouterr().err


def test_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(write_scenes(tmp_path) / "run")
    arguments = ["exemplars", "--run", run, "--out", str(tmp_path / "pool"), "--k", "3", "--per-cluster", "2"]
    assert call(*arguments, "--method", "lost") == 2
    assert "method says how objects are found" in capsys.readouterr().err
    assert call(*arguments, "--set", "view_size=96") == 0
    assert "6 exemplars of 3 hidden categories, from 6 images" in capsys.readouterr().out
