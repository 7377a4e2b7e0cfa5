"""Detectors that tell kinds apart: from the categories of a file to those of another one."""

import json
from pathlib import Path
from typing import Any

import pytest

from figureground import detectors
from figureground.errors import UsageError
from figureground.stages import cluster, predict, self_train
from figureground.stages.train import TrainConfig, configure, run
from tests.stages.labelled import edit, write_labelled

BRIEF = ["augment.short_sides=[56]", "batch_size=2", "steps=2", "checkpoint_every=2", "optimiser.warmup=0"]
KINDS = ["labels.class_agnostic=false"]
# As a person has named clusters, one of which was dropped.
NAMED = [{"id": 2, "name": "disc"}, {"id": 7, "name": "bär"}, {"id": 9, "name": "ring"}]
# A transformer of a hundredth of the weights.
LIGHT = ["detector.backbone.patch_size=16", "detector.backbone.width=24", "detector.backbone.depth=1"]
LIGHT += ["detector.backbone.heads=2", "detector.backbone.channels=8"]


def brief(labels: Path, *assignments: str, detector: str = "vitdet") -> TrainConfig:
    own = LIGHT if detector == "vitdet" else []
    return configure(labels, (), [*BRIEF, *KINDS, *own, *assignments], recipe="tiny", detector=detector)


def content(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = write_labelled(tmp_path_factory.mktemp("named") / "drawn", 4, objects=2)

    def name(found: dict[str, Any]) -> None:
        found["categories"] = NAMED
        for index, entry in enumerate(found["annotations"]):
            entry["category_id"] = (2, 7)[index % 2]

    edit(labels, name)
    return labels


@pytest.mark.parametrize("detector", ["mask_rcnn", "cascade_mask_rcnn", "vitdet", "solov2"])
def test_from_a_file_to_predictions(detector: str, named: Path, tmp_path: Path) -> None:
    """Ids and names of the file are those of the predictions, whatever labels there are in between."""
    eager = ["detector.candidate_threshold=0"] if detector == "solov2" else []
    config = brief(named, *eager, detector=detector)
    result = run(config, tmp_path / "run")
    own = detectors.load(result.detector)
    assert own.config.categories == 3
    assert list(own.categories.items()) == [(2, "disc"), (7, "bär"), (9, "ring")]
    # The same settings go on with it.
    assert run(config, tmp_path / "run").resumed == 2
    photos = [str(named.parent / "photos")]
    predict.run(predict.configure(tmp_path / "run", photos, score_threshold=0.0), tmp_path / "found")
    found = content(tmp_path / "found" / "annotations.json")
    assert found["categories"] == NAMED
    kinds = {entry["category_id"] for entry in found["annotations"]}
    assert len(kinds) > 1
    assert kinds <= {2, 7, 9}
    assert "disc" in (tmp_path / "found" / "report.html").read_text()


def test_rounds_keep_them(named: Path, tmp_path: Path) -> None:
    run(brief(named), tmp_path / "run")
    wanted = ["thresholds=[0.0]", "predict.max_detections=5", "train.steps=1"]
    result = self_train.run(self_train.configure(tmp_path / "run", None, (), wanted, rounds=2), tmp_path / "rounds")
    assert detectors.load(result.detector).categories == {2: "disc", 7: "bär", 9: "ring"}
    assert content(tmp_path / "rounds" / "round-2" / "labels.json")["categories"] == NAMED


def test_of_clusters(tmp_path: Path) -> None:
    labels = write_labelled(tmp_path / "drawn", 3, objects=2)
    cluster.run(cluster.configure(labels, k=2), tmp_path / "clusters")
    (tmp_path / "clusters" / "names.json").write_text(json.dumps({"2": "bird"}))
    cluster.run(cluster.configure(labels, k=2), tmp_path / "clusters")
    result = run(brief(tmp_path / "clusters"), tmp_path / "run")
    assert detectors.load(result.detector).categories == {1: "cluster 1", 2: "bird"}


def test_others_than_the_detector_s(named: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"other categories \(2\) than .*\(disc, bär, ring\)"):
        run(brief(named, "detector.categories=2"), tmp_path / "run")
    with pytest.raises(UsageError, match=r"other categories \(cat\)"):
        run(brief(named, 'detector.names={"1": "cat"}'), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_them_all_are_objects(named: Path, tmp_path: Path) -> None:
    config = brief(named, "labels.class_agnostic=true", "steps=1")
    assert detectors.load(run(config, tmp_path / "run").detector).categories == {1: "object"}
