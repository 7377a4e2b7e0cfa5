import json
from pathlib import Path

import pytest

from tests.cli.test_cli import call
from tests.stages.test_cluster import write_scenes


def test_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = write_scenes(tmp_path / "scenes [b]")
    arguments = ["cluster", str(scenes / "run"), "--k", "3", "--set", "size=96", "--truth", str(scenes / "truth.json")]
    assert call(*arguments) == 2
    assert "--out is missing" in capsys.readouterr().err
    out = tmp_path / "out"
    assert call(*arguments, "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert "18 objects of 6 images in 3 clusters (0 named, 0 dropped)" in said
    assert "Purity 100.0 %, NMI 100.0 % by the 18 of 18 objects" in said
    assert (out / "report.html").absolute().as_uri() in said

    (out / "names.json").write_text('{"2": "leaf", "9": "?"}')
    assert call(*arguments, "--out", str(out)) == 2
    assert "clusters that are not there: 9" in capsys.readouterr().err
    (out / "names.json").write_text('{"2": "leaf", "3": null}')
    assert call(*arguments, "--out", str(out)) == 0
    assert "12 objects of 6 images in 3 clusters (1 named, 1 dropped)" in capsys.readouterr().out
    categories = json.loads((out / "annotations.json").read_text())["categories"]
    assert categories == [{"id": 1, "name": "cluster 1"}, {"id": 2, "name": "leaf"}]

    (scenes / "photos" / "0.png").write_bytes(b"")
    assert call(*arguments, "--out", str(tmp_path / "other")) == 3
    assert "1 images could not be used" in capsys.readouterr().out
