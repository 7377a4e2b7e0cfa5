"""Runs whose work is done by other processes: the same bytes, and an image at which they die costs itself alone."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from figureground import detectors
from figureground.errors import RunError, UsageError
from figureground.runners import Lost, ProcessRunner, run_serial
from figureground.stages import Progress, cluster, predict
from figureground.stages.label import configure, run
from figureground.storage import jsonlines
from figureground.storage.lock import exclusive
from tests.data.odd_images import picture
from tests.stages.labelled import write_labelled
from tests.stages.test_predict import untrained

QUICK = ["size=64", "shard_size=2", "method=background"]
# A real segmentation fault when a certain file is opened.
POISON = """
import ctypes, sys
sys.addaudithook(lambda event, args: event == "open" and str(args[0]).endswith("poison.jpg") and ctypes.string_at(0))
"""


def made(out: Path) -> dict[str, bytes]:
    kept = [out / "annotations.json", out / "failures.jsonl", *sorted((out / "shards").glob("*.json.gz"))]
    return {path.name: path.read_bytes() for path in kept}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        picture(80 + 10 * index, 70).save(folder / f"{index}.jpg")
    (folder / "broken.jpg").write_bytes(b"")
    return folder


def test_label_makes_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    config = configure([str(photos)], assignments=QUICK)
    run(config, tmp_path / "serial")
    seen: list[Progress] = []
    result = run(config, tmp_path / "apart", ProcessRunner(2), seen.append)
    assert (result.images, result.failed, result.resumed) == (5, 1, 0)
    assert made(tmp_path / "apart") == made(tmp_path / "serial")
    assert (seen[0].done, seen[-1].done, seen[-1].instances) == (0, 6, result.instances)
    # Whichever shards are at work, their images are counted once.
    assert [progress.done for progress in seen] == list(range(7))
    shards = [entry["shard"] for entry in jsonlines.read(tmp_path / "apart" / "log.jsonl") if entry["event"] == "shard"]
    assert sorted(shards) == [0, 1, 2]
    # The one with the failure is made again, the others are not.
    assert run(config, tmp_path / "apart").resumed == 4
    assert made(tmp_path / "apart") == made(tmp_path / "serial")


def test_predict_and_cluster_make_the_same_bytes(tmp_path: Path) -> None:
    labelled = write_labelled(tmp_path / "drawn", 4)
    weights = tmp_path / "detector.safetensors"
    detectors.save(weights, detectors.create(untrained(short_side=64)))
    quick = ["shard_size=2", "batch_size=2", "max_detections=4"]
    found = predict.configure(weights, [str(labelled.parent / "photos")], quick, score_threshold=0.0)
    kinds = cluster.configure(labelled, ["shard_size=2"], k="2")
    for stage, config in ((predict.run, found), (cluster.run, kinds)):
        for name, runner in (("serial", run_serial), ("apart", ProcessRunner(1))):
            stage(config, tmp_path / f"{stage.__module__}-{name}", runner)  # type: ignore[arg-type]
        assert made(tmp_path / f"{stage.__module__}-apart") == made(tmp_path / f"{stage.__module__}-serial")


def test_a_deadly_image_is_found_and_costs_itself_alone(photos: Path, tmp_path: Path, monkeypatch) -> None:
    config = configure([str(photos)], assignments=QUICK)
    without = run(config, tmp_path / "without")
    picture().save(photos / "poison.jpg")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(POISON)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
        result = run(config, tmp_path / "run", ProcessRunner(1))
    assert (result.images, result.failed, result.instances) == (5, 2, without.instances)
    failures = {entry["path"]: entry["error"] for entry in jsonlines.read(tmp_path / "run" / "failures.jsonl")}
    assert failures.keys() == {"broken.jpg", "poison.jpg"}
    assert failures["poison.jpg"] == "The process that decoded it died."
    annotations = (tmp_path / "run" / "annotations.json").read_bytes()
    assert annotations == (tmp_path / "without" / "annotations.json").read_bytes()
    # Where it does no harm it is looked at again.
    assert run(config, tmp_path / "run").images == 6


class TestShardsThatAreLost:
    """With a runner that gives shards up as if their workers had died."""

    def lossy(self, *lossy_calls: int) -> Any:
        """Loses the task in the middle at these calls; the second is for the images of a lost shard alone."""
        calls = iter(range(1, 4))

        def runner(job: Callable[[], Any], tasks: Any, report: Any) -> Any:
            call, function = next(calls), job()
            for index, task in enumerate(tasks):
                lost = index == len(tasks) // 2 and call in lossy_calls
                yield Lost(task) if lost else function(task, report)

        return runner

    def test_no_image_of_it_is_deadly(self, photos: Path, tmp_path: Path) -> None:
        config = configure([str(photos)], assignments=QUICK)
        run(config, tmp_path / "calm")
        run(config, tmp_path / "run", self.lossy(1))
        assert made(tmp_path / "run") == made(tmp_path / "calm")
        [entry] = [entry for entry in jsonlines.read(tmp_path / "run" / "log.jsonl") if entry["event"] == "deadly"]
        assert (entry["shards"], entry["images"]) == ([1], [])

    def test_lost_again_it_is_named_and_the_others_are_kept(self, photos: Path, tmp_path: Path) -> None:
        config = configure([str(photos)], assignments=QUICK)
        with pytest.raises(RunError, match="1 of 3 shards could not be made"):
            run(config, tmp_path / "run", self.lossy(1, 3))
        assert len(list((tmp_path / "run" / "shards").glob("*.done.json"))) == 2
        assert run(config, tmp_path / "run").images == 5


def test_a_worker_of_an_earlier_start_writes_nothing(photos: Path, tmp_path: Path) -> None:
    """One that outlives its start, as on a machine that the network has lost."""

    def late(job: Callable[[], Any], tasks: Any, report: Any) -> Any:
        function = job()
        (tmp_path / "run" / ".lock").unlink()
        with exclusive(tmp_path / "run"):
            yield function(tasks[0], report)

    with pytest.raises(RunError, match="Another process writes"):
        run(configure([str(photos)], assignments=QUICK), tmp_path / "run", late)
    assert not list((tmp_path / "run" / "shards").iterdir())


def test_a_wrong_name_leaves_nothing_behind(photos: Path, tmp_path: Path) -> None:
    config = configure([str(photos)], assignments=[*QUICK, "backbone.name=nonesuch"])
    with pytest.raises(UsageError, match="nonesuch"):
        run(config, tmp_path / "run", ProcessRunner(2))
    assert not (tmp_path / "run").exists()


def test_what_a_kill_has_left_half_written_is_removed(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "shards").mkdir(parents=True)
    for left in (".annotations.json.ab12.tmp", "shards/.00001.json.gz.cd34.tmp"):
        (tmp_path / "run" / left).write_bytes(b"half")
    run(configure([str(photos)], assignments=QUICK), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["images"] == 5
