from pathlib import Path

import pytest
import typer.main

from figureground.cli.semantic import semantic
from tests.cli.test_cli import call
from tests.stages.labelled import edit, write_labelled


def test_semantic_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_labelled(tmp_path / "few [b]", 4)
    arguments = ["semantic", "train", str(labels), "--set", "batch_size=2", "--set", "steps=1"]
    assert call(*arguments, "--recipe", "tiny") == 2
    assert "--out is missing" in capsys.readouterr().err
    out = tmp_path / "out"
    assert call(*arguments, "--recipe", "tiny", "--out", str(out)) == 0
    said = capsys.readouterr()
    assert "1 steps on 4 masks of 4 images" in said.out
    assert "contrast" in said.out
    assert str(out / "segmenter.safetensors") in said.out
    assert (out / "report.html").absolute().as_uri() in said.out
    assert "random weights" not in said.err

    # What a published recipe begins with is said before anything else can go wrong.
    edit(labels, lambda content: content["annotations"].clear())
    assert call(*arguments, "--recipe", "maskcontrast_paper", "--out", str(tmp_path / "other")) == 2
    said = capsys.readouterr().err
    assert "published to begin with MoCo-v2's ResNet-50" in said
    assert "none of its 4 images has a mask" in said


def test_the_flags_are_these() -> None:
    command = typer.main.get_command(semantic).commands["train"]  # type: ignore[attr-defined]
    flags = sorted(option for parameter in command.params for option in parameter.opts)
    assert flags == ["--device", "--init", "--out", "--recipe", "--set", "images", "labels"]
