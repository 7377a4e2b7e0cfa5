"""`train`, `predict` and the settings of later rounds with SOLOv2."""

import json
from pathlib import Path

import pytest

from figureground import detectors
from figureground.stages import predict as predict_stage
from figureground.stages.rounds import later
from figureground.stages.train import configure, run, settings_of
from figureground.storage import jsonlines
from tests.stages.labelled import write_labelled

BRIEF = ["augment.short_sides=[56, 64]", "batch_size=2", "steps=2", "checkpoint_every=1", "optimiser.warmup=0"]
LIGHT = ["detector.layers=1", "detector.width=16"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    labels = write_labelled(folder / "drawn", 3)
    run(configure(labels, (), [*BRIEF, *LIGHT], recipe="tiny", detector="solov2"), folder / "run")
    return folder


def test_it_trains_and_predicts(learned: Path) -> None:
    log = jsonlines.read(learned / "run" / "log.jsonl")
    losses = [entry["losses"] for entry in log if "losses" in entry]
    assert len(losses) == 2
    assert losses[0].keys() == {"category", "max_projection", "average_projection", "pairwise"}
    assert (learned / "run" / "report.html").is_file()
    assert int(detectors.load(learned / "run" / "detector.safetensors").steps) == 2
    found = predict_stage.configure(learned / "run", [str(learned / "drawn" / "photos")], score_threshold=0.0)
    predict_stage.run(found, learned / "found")
    assert len(json.loads((learned / "found" / "annotations.json").read_text())["images"]) == 3


def test_a_training_may_begin_with_another_s_end(learned: Path, tmp_path: Path) -> None:
    labels = learned / "drawn" / "run"
    still = ["steps=1", "optimiser.rate=1e-300", "ema=null"]
    config = configure(
        labels, (), [*BRIEF, *LIGHT, *still], recipe="tiny", detector="solov2", init=str(learned / "run")
    )
    after = detectors.load(run(config, tmp_path / "run").detector)
    before = detectors.load(learned / "run" / "detector.safetensors")
    assert int(after.steps) == 3
    assert after.cells.kernel.weight.equal(before.cells.kernel.weight)


def test_every_round_is_learned_alike() -> None:
    first = settings_of("small", {"detector": "solov2"})
    assert first.detector.grids == (24, 20, 16, 12, 8)
    assert later(first) == first
