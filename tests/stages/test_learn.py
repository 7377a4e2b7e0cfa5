"""`learn` from a folder of photographs to a detector."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from figureground.errors import ConfigError, UsageError, WeightsError
from figureground.stages import evaluate as evaluate_stage
from figureground.stages import predict as predict_stage
from figureground.stages.learn import LearnConfig, configure, run
from figureground.storage import jsonlines
from tests.stages.labelled import write_labelled
from tests.stages.test_self_train import LIGHT, ROUNDS, content, content_of_page, made, run_with_stops, stopping

# A small detector, and many predictions of it.
BRIEF = [*("train." + each for each in LIGHT), *("self_train." + each for each in ROUNDS), "label.shard_size=2"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures; ``run`` beside them holds their true masks."""
    folder = tmp_path_factory.mktemp("drawn") / "drawn"
    write_labelled(folder, 4)
    return folder


def brief(drawn: Path, *assignments: str, **options: Any) -> LearnConfig:
    options = {"recipe": "tiny", "method": "lost", "rounds": 1, **options}
    return configure([str(drawn / "photos")], ["label.size=64", *BRIEF, *assignments], **options)


@pytest.fixture(scope="module")
def undisturbed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was measured on the images that it learned from."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run(brief(drawn, truth=str(drawn / "run" / "annotations.json")), out)
    return out


def test_the_detector_beats_the_pseudo_labels_it_learned_from(tmp_path: Path) -> None:
    """On other pictures than those it has seen: what the method misses at random is found, and in one round more."""
    write_labelled(tmp_path / "drawn", 64, size=(64, 64))
    truth = write_labelled(tmp_path / "other", 24, size=(64, 64), first_seed=1000)
    settings = ["label.size=64", "train.steps=160", "train.augment.short_sides=[64]", "self_train.train.steps=50"]
    config = configure(
        [str(tmp_path / "drawn" / "photos")],
        settings,
        recipe="tiny",
        method="lost",
        rounds=1,
        truth=str(truth / "annotations.json"),
        truth_images=str(tmp_path / "other" / "photos"),
    )
    result = run(config, tmp_path / "run")
    ap50, ap = (
        [float(result.measured[title][name] or 0) for title in ("Labels", "Training", "Round 1")]
        for name in ("mask_ap50", "mask_ap")
    )
    assert min(ap50[1:]) > ap50[0] + 15
    assert min(ap[1:]) > ap[0] + 3
    # The round was given more objects to learn from than the method had found.
    assert result.rounds[0]["added"] > result.rounds[0]["replaced"]


class TestRun:
    def test_the_folder(self, undisturbed: Path) -> None:
        written = {path.name for path in undisturbed.iterdir() if not path.name.startswith(".")}
        assert written == {
            *("config.json", "environment.json", "result.json", "log.jsonl", "failures.jsonl", "measured"),
            *("detector.safetensors", "report.html", "label", "train", "round-1"),
        }
        last = undisturbed / "round-1" / "train" / "detector.safetensors"
        assert (undisturbed / "detector.safetensors").read_bytes() == last.read_bytes()
        tree = content(undisturbed / "config.json")
        assert LearnConfig.model_validate(tree).model_dump(mode="json") == tree
        facts = content(undisturbed / "result.json")
        assert (facts["stage"], facts["images"], facts["failed"]) == ("learn", 4, 0)
        assert facts["instances"] == len(content(undisturbed / "label" / "annotations.json")["annotations"])

    def test_predict_finds_the_detector(self, undisturbed: Path, drawn: Path, tmp_path: Path) -> None:
        config = predict_stage.configure(undisturbed, [str(drawn / "photos")], limit=1, score_threshold=0.0)
        assert predict_stage.run(config, tmp_path).images == 1

    def test_the_numbers_are_those_of_predict_and_evaluate(
        self, undisturbed: Path, drawn: Path, tmp_path: Path
    ) -> None:
        measured = content(undisturbed / "result.json")["measured"]
        assert list(measured) == ["Labels", "Training", "Round 1"]
        truth = drawn / "run" / "annotations.json"
        photos = [str(drawn / "photos")]
        settings = ["batch_size=2", "shard_size=2"]
        config = predict_stage.configure(undisturbed, photos, settings, score_threshold=0.0)
        predict_stage.run(config, tmp_path / "found")
        for name, predictions in (("Labels", undisturbed / "label"), ("Round 1", tmp_path / "found")):
            config = evaluate_stage.configure(predictions, truth, ["resamples=0"])
            measures = evaluate_stage.run(config, tmp_path / name).measures
            for key, value in measured[name].items():
                kind, _, rest = key.partition("_")
                assert value == pytest.approx(measures[kind][rest or kind].value, abs=1e-3)
        assert measured["Labels"].keys() == {
            *("box_ap50", "box_ap", "box_ar100", "mask_ap50", "mask_ap", "mask_ar100", "corloc"),
        }

    def test_the_page(self, undisturbed: Path) -> None:
        page = (undisturbed / "report.html").read_text()
        assert page.count("<polyline") == 2 * 10
        assert content_of_page(page)["columns"] == ["Labels", "Training", "Round 1"]
        measured = content(undisturbed / "result.json")["measured"]
        assert f"{measured['Labels']['mask_ap50']:.1f}</td>" in page
        assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")

    def test_names_are_escaped(self, tmp_path: Path) -> None:
        write_labelled(tmp_path / "drawn", 1, objects=1)
        photo = tmp_path / "drawn" / "photos" / "000.png"
        photo.rename(photo.with_name("<b>&.png"))
        out = tmp_path / "<i>run"
        run(brief(tmp_path / "drawn", "train.batch_size=1", "train.steps=1", rounds=0), out)
        page = (out / "report.html").read_text()
        assert "<b>&.png" not in page
        assert "<i>run" not in page
        assert "&lt;b&gt;&amp;.png" in page


class TestResume:
    def test_stopped_and_resumed_equals_undisturbed(self, drawn: Path, undisturbed: Path, tmp_path: Path) -> None:
        config = brief(drawn, truth=str(drawn / "run" / "annotations.json"))
        stops = run_with_stops(lambda bars: run(config, tmp_path / "run", bars), every=4)
        assert stops >= 5
        assert made(tmp_path / "run") == made(undisturbed)
        steps = [line["step"] for line in jsonlines.read(tmp_path / "run" / "log.jsonl") if line["event"] == "done"]
        assert len(steps) == len(set(steps)) + 3  # predicted and measured, of three

    def test_more_rounds_and_another_truth_go_on(self, drawn: Path, undisturbed: Path) -> None:
        before = {name: bytes_ for name, bytes_ in made(undisturbed).items() if "/" in name}
        result = run(brief(drawn, rounds=1), undisturbed, stopping(0))
        assert result.measured == {}
        with pytest.raises(KeyboardInterrupt):
            run(brief(drawn, rounds=2), undisturbed, stopping(0))
        # The truth again: nothing is left to do, and the numbers are there.
        truth = str(drawn / "run" / "annotations.json")
        assert len(run(brief(drawn, truth=truth), undisturbed, stopping(0)).measured) == 3
        assert {name: bytes_ for name, bytes_ in made(undisturbed).items() if "/" in name} == before

    def test_another_configuration(self, drawn: Path, undisturbed: Path) -> None:
        with pytest.raises(ConfigError, match=r"(?s)label\.size: 64 -> 96.*self_train\.train\.optimiser\.rate"):
            run(brief(drawn, "train.optimiser.rate=0.5", "label.size=96"), undisturbed)


class TestSettings:
    def test_the_rounds_follow_the_training(self, drawn: Path) -> None:
        config = brief(drawn, "train.optimiser.rate=0.3", "self_train.train.batch_size=3", "self_train.rounds=5")
        assert (config.train.optimiser.rate, config.self_train.train.optimiser.rate) == (0.3, 0.3)
        assert (config.train.batch_size, config.self_train.train.batch_size) == (2, 3)
        assert (config.train.steps, config.self_train.train.steps) == (4, 2)
        assert (config.train.detector.drop_loss, config.self_train.train.detector.drop_loss) == (0.01, None)
        # The shorthand lies over what is set.
        assert config.self_train.rounds == 1
        assert (config.label.method, config.label.backbone.name) == ("lost", "handcrafted")

    @pytest.mark.parametrize(
        ("assignment", "said"),
        [
            ("train.annotations=a.json", "train.annotations cannot be set"),
            ('label.images=["a"]', "label.images cannot be set"),
            ("label.device=cuda", "label.device cannot be set"),
            ("self_train.train.init=a", "train.init cannot be set"),
            ("self_train.merge.min_score=0.2", "set thresholds"),
            ("truth_images=a", "add --truth"),
            ("train.stepps=3", "Did you mean 'steps'"),
            ("label.lost.k=0", "label.lost.k"),
            ("train=3", "train has keys of its own"),
        ],
    )
    def test_what_would_do_nothing_or_is_wrong(self, assignment: str, said: str, drawn: Path) -> None:
        with pytest.raises(ConfigError, match=said):
            brief(drawn, assignment)


class TestInput:
    def test_what_is_refused_leaves_nothing_behind(self, drawn: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        for error, said, config in (
            (UsageError, "No images were given", configure([], recipe="tiny")),
            (UsageError, "no file or folder", configure([str(tmp_path / "nothing")], recipe="tiny")),
            (UsageError, "is not there", brief(drawn, device="cuda:99")),
            (UsageError, "Unknown backbone", brief(drawn, backbone="nonesuch")),
            (UsageError, "nothing.json", brief(drawn, truth=str(tmp_path / "nothing.json"))),
            (WeightsError, "holds neither", brief(drawn, f"train.init={tmp_path}")),
        ):
            with pytest.raises(error, match=said):
                run(config, out)
        with pytest.raises(UsageError, match="Unknown recipe"):
            brief(drawn, recipe="cutler")
        with pytest.raises(ConfigError, match="maskcut"):
            brief(drawn, method="maskut")
        assert not out.exists()

    def test_no_object_is_found(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(tmp_path / "photos" / "plain.png")
        config = configure([str(tmp_path / "photos")], ["label.size=64"], recipe="tiny", method="background")
        with pytest.raises(UsageError, match=r"No object was found in 1 images.*\n.*--method"):
            run(config, tmp_path / "run")

    def test_an_unreadable_image_is_named(self, tmp_path: Path) -> None:
        write_labelled(tmp_path / "drawn", 3)
        (tmp_path / "drawn" / "photos" / "bad.png").write_bytes(b"no image")
        generator_state = torch.get_rng_state()
        result = run(brief(tmp_path / "drawn", "train.steps=1"), tmp_path / "run")
        assert torch.equal(torch.get_rng_state(), generator_state)
        assert result.failed == 1
        [line] = (tmp_path / "run" / "failures.jsonl").read_text().splitlines()
        assert json.loads(line)["path"] == "bad.png"

    def test_not_by_several_processes(self, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UsageError, match="without torchrun"):
            run(brief(drawn), tmp_path / "run")
        assert not (tmp_path / "run").exists()
