import json
import subprocess
import sys
from pathlib import Path

import pytest

from figureground.cli import main
from tests.data.odd_images import picture


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    picture().save(tmp_path / "photos" / "a.jpg")
    picture(64, 96).save(tmp_path / "photos" / "b [bold].jpg")
    return tmp_path / "photos"


def test_label(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("label", str(photos), "--out", str(tmp_path / "run"), "--set", "size=64") == 0
    out = capsys.readouterr().out
    assert "in 2 images" in out
    assert (tmp_path / "run" / "report.html").absolute().as_uri() in out
    assert len(json.loads((tmp_path / "run" / "annotations.json").read_text())["images"]) == 2


def test_exit_codes(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "bad.jpg").write_bytes(b"")
    run = ["label", str(photos), "--out", str(tmp_path / "run"), "--set", "size=64"]
    assert call(*run) == 3
    assert "1 images could not be used" in capsys.readouterr().out
    assert call(*run, "--method", "tokencut") == 2
    assert "another configuration" in capsys.readouterr().err
    assert call("label", str(photos)) == 2
    assert "--out is missing" in capsys.readouterr().err
    assert call("label", str(tmp_path / "nothing"), "--out", str(tmp_path / "x")) == 2
    assert not (tmp_path / "x").exists()
    mistyped = ["--out", str(tmp_path / "y"), "--method", "maskcut", "--set", "maskcut.tua=1"]
    assert call("label", str(photos), *mistyped) == 2
    assert "maskcut.tau" in capsys.readouterr().err
    assert call("label", "--nonesuch") == 2
    (tmp_path / "file").write_text("")
    assert call("label", str(photos), "--out", str(tmp_path / "file")) == 1


def test_limit_and_interrupt(photos: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("label", str(photos), "--out", str(tmp_path / "run"), "--set", "size=64", "--limit", "1") == 0
    assert "in 1 images" in capsys.readouterr().out

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("figureground.stages.label.run", interrupt)
    assert call("label", str(photos), "--out", str(tmp_path / "run2")) == 130
    assert "Run the same command again" in capsys.readouterr().err


def test_settings_are_listed_with_default_and_meaning(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call("label", "--settings") == 0
    out = capsys.readouterr().out
    for key in ("maskcut.tau", "tokencut.eigenvectors", "refine.crf.bilateral_srgb", "shard_size", "0.15"):
        assert key in out


def test_the_flags_are_these() -> None:
    """A new knob is a configuration field and not a flag."""
    import typer.main

    from figureground.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    flags = {name: sorted(option for p in command.params for option in p.opts) for name, command in commands.items()}
    runner = ["--address", "--runner", "--workers"]
    assert flags == {
        "label": sorted(
            [
                "images",
                "--out",
                "--method",
                "--backbone",
                "--weights",
                "--device",
                "--limit",
                "--set",
                "--config",
                "--settings",
                "--dry-run",
                *runner,
            ]
        ),
        "learn": sorted(
            [
                *("images", "--out", "--method", "--backbone", "--recipe", "--rounds", "--truth", "--truth-images"),
                *("--device", "--set"),
            ]
        ),
        "self-train": ["--device", "--images", "--labels", "--out", "--recipe", "--rounds", "--set", "detector"],
        "train": ["--detector", "--device", "--init", "--out", "--recipe", "--set", "images", "labels"],
        "predict": sorted(
            [*("--device", "--limit", "--out", "--score-threshold", "--set", "detector", "images"), *runner]
        ),
        "evaluate": ["--out", "--set", "--truth", "predictions"],
        "compare": ["--backbone", "--device", "--limit", "--methods", "--out", "--set", "--truth", "images"],
        "cluster": sorted([*("--backbone", "--device", "--k", "--out", "--set", "--truth", "run"), *runner]),
        "exemplars": sorted(
            ["images", "--run", "--out", "--k", "--per-cluster", "--method", "--backbone", "--device", "--set"]
        ),
        "pretrain": ["--device", "--limit", "--out", "--recipe", "--set", "images"],
        "distil": ["--device", "--images", "--out", "--set", "labels"],
        # Its verbs have their own tests.
        "semantic": [],
        "found-head": ["--backbone", "--device", "--limit", "--out", "--set", "images"],
        "truth": ["--limit", "--out", "name", "root"],
        "doctor": [],
    }


@pytest.mark.parametrize(
    "arguments", [["--help"], ["label", "--help"], ["train", "--help"], ["pretrain", "--help"], ["--version"]]
)
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    program = "import sys; from figureground.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    program += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, stdout=subprocess.DEVNULL)


def test_import_does_not_import_torch() -> None:
    program = "import sys, figureground; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call("doctor") == 0
    out = capsys.readouterr().out
    assert "handcrafted" in out
    assert "torch" in out
