"""`found-head` from a folder to a head, and `label` with it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from figureground.backbones.handcrafted import Handcrafted
from figureground.cli import main
from figureground.errors import ConfigError, RunError, UsageError, WeightsError
from figureground.proposals import create
from figureground.proposals.found_head import FeatureKind, FoundHead, load_head
from figureground.stages import found_head as stage
from figureground.stages import label as label_stage
from figureground.stages.found_head import CropConfig, FoundHeadConfig, Photographs, configure, random_crop, run
from figureground.stages.labeller import BackboneConfig, label
from figureground.storage import jsonlines
from figureground.structures import PatchFeatures
from figureground.training.found import FoundLossConfig
from figureground.training.loop import StepReport
from figureground.training.order import generator_for
from tests.data.odd_images import BROKEN, USABLE, picture, write_all
from tests.training.drawn import draw

SMALL = ["crop.side=96", "crop.size=112", "crop.scale=[0.6, 1.2]", "batch_size=6"]
SMALL += ["loss.background_steps=30", "loss.refined_weight=1.5", "loss.threshold=0.3"]
KIND = FeatureKind("handcrafted", "keys", 8, 48)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("drawn")
    return folder, draw(folder, 16)


def small(drawn: tuple[Path, Any], *assignments: str) -> FoundHeadConfig:
    return configure([str(drawn[0])], [*SMALL, *assignments])


def foreground_iou(folder: Path, truths: dict[str, np.ndarray], head: Path | None = None) -> float:
    found = {"head": str(head)} if head else {}
    total = 0.0
    for name, truth in truths.items():
        instances = label(folder / name, "found", size=112, refine={"method": "none"}, found=found)
        mask = instances.masks.any(0).numpy()
        total += (mask & truth).sum() / (mask | truth).sum()
    return total / len(truths)


def test_it_learns_what_its_teacher_does_not_know(drawn: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    seen: list[StepReport] = []
    result = run(small(drawn, "steps=50"), tmp_path / "run", seen.append)
    assert (result.steps, result.resumed, result.failed, result.skipped) == (50, 0, 0, 0)
    assert [report.position.step for report in seen] == list(range(1, 51))
    teacher, learned = foreground_iou(*drawn), foreground_iou(*drawn, result.head)
    assert learned > 0.65
    assert learned > teacher + 0.2

    written = {path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")}
    assert written == {
        *("config.json", "environment.json", "images.json", "result.json", "log.jsonl", "failures.jsonl"),
        *("checkpoints", "head.safetensors"),
    }
    facts = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (facts["steps"], facts["images"], facts["backbone"], facts["width"]) == (50, 16, "handcrafted", 48)
    assert facts["losses"].keys() == {"refined", "own"}
    # The discs are 18 % of the pictures, and more of the crops.
    assert 0.1 < result.foreground < 0.4
    log = [entry for entry in jsonlines.read(tmp_path / "run" / "log.jsonl") if "step" in entry]
    assert [entry["losses"].keys() for entry in log[29:31]] == [{"refined", "background"}, {"refined", "own"}]


class TestResume:
    def test_killed_and_resumed_equals_undisturbed(self, drawn: tuple[Path, Any], tmp_path: Path) -> None:
        settings = ["steps=40", "batch_size=2", "crop.side=48"]
        calm = run(small(drawn, *settings), tmp_path / "calm")
        command = [sys.executable, "-m", "figureground", "found-head", str(drawn[0]), "--out", str(tmp_path / "killed")]
        for assignment in [*SMALL, *settings]:
            command += ["--set", assignment]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Somewhere after the second checkpoint.
        log = tmp_path / "killed" / "log.jsonl"
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_bytes().count(b"\n") > 25:
                break
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert not (tmp_path / "killed" / "head.safetensors").exists()
        seen: list[StepReport] = []
        result = run(small(drawn, *settings), tmp_path / "killed", seen.append)
        assert result.resumed in (20, 30)
        assert len(seen) == 40 - result.resumed
        assert result.head.read_bytes() == calm.head.read_bytes()
        assert result.losses == calm.losses

    def test_a_finished_run_is_not_made_again(self, drawn: tuple[Path, Any], tmp_path: Path) -> None:
        first = run(small(drawn, "steps=2"), tmp_path)
        before = first.head.read_bytes()
        again = run(small(drawn, "steps=2"), tmp_path, lambda _: pytest.fail("trained again"))
        assert again.resumed == 2
        assert first.head.read_bytes() == before

    def test_another_start_is_an_error(self, drawn: tuple[Path, Any], tmp_path: Path) -> None:
        draw(tmp_path / "photos", 3)
        photos = (tmp_path / "photos", None)
        run(small(photos, "steps=1"), tmp_path / "run")
        with pytest.raises(ConfigError, match=r"rate: 0\.05 -> 0\.1"):
            run(small(photos, "steps=1", "rate=0.1"), tmp_path / "run")
        (tmp_path / "photos" / "00.png").rename(tmp_path / "photos" / "new.png")
        with pytest.raises(ConfigError, match="not those that"):
            run(small(photos, "steps=1"), tmp_path / "run")

        def start_another(report: StepReport) -> None:
            with pytest.raises(RunError, match="Another process"):
                run(small(photos, "steps=2"), tmp_path / "other")

        run(small(photos, "steps=2"), tmp_path / "other", start_another)


class TestPhotographs:
    def test_bad_ones_are_passed_over_and_named_once(self, tmp_path: Path) -> None:
        write_all(tmp_path / "photos")
        total = len(USABLE) + len(BROKEN) + 1
        config = configure([str(tmp_path / "photos")], [*SMALL, "crop.side=16", "steps=2", f"batch_size={total}"])
        result = run(config, tmp_path / "run")
        assert (result.images, result.failed, result.ignored) == (total, len(BROKEN), 1)
        failures = {entry["path"]: entry["error"] for entry in jsonlines.read(tmp_path / "run" / "failures.jsonl")}
        assert failures.keys() == BROKEN.keys()
        assert all(BROKEN[name][1] in error for name, error in failures.items())
        assert len((tmp_path / "run" / "failures.jsonl").read_text().splitlines()) == len(BROKEN)

    def test_none_to_be_read_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        for name in ("a.jpg", "b.jpg"):
            (tmp_path / "photos" / name).write_bytes(b"")
        with pytest.raises(RunError, match="None of the 2 images"):
            run(configure([str(tmp_path / "photos")], SMALL), tmp_path / "run")
        assert len(jsonlines.read(tmp_path / "run" / "failures.jsonl")) == 2

    def test_crops_are_of_the_photograph(self, tmp_path: Path) -> None:
        """Red grows to the right and green downwards: a crop tells where it was taken from, and how large."""
        red, green = np.meshgrid(np.linspace(0, 255, 400), np.linspace(0, 255, 300))
        from PIL import Image

        Image.fromarray(np.stack([red, green, red * 0], -1).round().astype(np.uint8)).save(tmp_path / "ramp.png")
        settings = ["crop.side=64", "crop.size=346", "crop.blur_probability=0", "crop.scale=[0.1, 3]"]
        config = configure(assignments=settings).crop
        spans, places = [], []
        for step in range(80):
            crop = random_crop(tmp_path / "ramp.png", config, generator_for(step)).astype(float)
            assert crop.shape == (64, 64, 3)
            spans.append((crop[..., 0].max() - crop[..., 0].min()) / 255 * 400)
            places.append(crop[..., 1].mean() / 255)
        # 64 px of a photograph at scales 64 / 300 to 3 of its 300 x 400 px.
        assert 19 < min(spans) < 24
        assert 200 < max(spans) < 310
        assert 0.4 < np.mean(places) < 0.6
        assert np.std(places) > 0.2

    def test_blur(self, drawn: tuple[Path, Any]) -> None:
        config = configure(assignments=["crop.side=64", "crop.blur_sigma=[1, 2]"]).crop
        path = drawn[0] / "00.png"

        def crops(probability: float) -> list[np.ndarray]:
            changed = config.replace(blur_probability=probability)
            return [random_crop(path, changed, generator_for(step)) for step in range(20)]

        same = [
            [np.array_equal(a, b) for a, b in zip(crops(0.5), crops(probability), strict=True)]
            for probability in (0.0, 1.0)
        ]
        assert all(left != right for left, right in zip(*same, strict=True))
        assert 4 < sum(same[0]) < 16

    def test_extreme_shapes(self, tmp_path: Path) -> None:
        config = configure().crop
        for width, height in ((1, 1), (3000, 1), (1, 3000), (2, 3)):
            picture(64, 64).resize((width, height)).save(tmp_path / "x.png")
            for step in range(4):
                assert random_crop(tmp_path / "x.png", config, generator_for(step)).shape == (224, 224, 3)

    def test_a_batch_needs_no_batch_before_it(self, drawn: tuple[Path, Any], tmp_path: Path) -> None:
        from figureground.data.listing import list_images

        images = list_images([drawn[0]])
        photographs = Photographs(images, images.names, small(drawn), tmp_path / "failures.jsonl")
        source = photographs.batches(0)
        third = [next(source) for _ in range(3)][2]
        assert torch.equal(next(photographs.batches(2)), third)
        assert not torch.equal(next(photographs.batches(1)), third)


class TestHead:
    @pytest.fixture
    def head(self, tmp_path: Path) -> Path:
        FoundHead(KIND).save(tmp_path / "head.safetensors")
        return tmp_path / "head.safetensors"

    def test_385_parameters_from_its_generator(self) -> None:
        kind = FeatureKind("dino_s8", "keys", 8, 384)
        before = torch.get_rng_state()
        heads = [FoundHead(kind, generator_for(seed)) for seed in (0, 0, 1)]
        assert torch.equal(torch.get_rng_state(), before)
        assert sum(parameter.numel() for parameter in heads[0].parameters()) == 385
        assert torch.equal(heads[0].weight, heads[1].weight)
        assert not torch.equal(heads[0].weight, heads[2].weight)
        values = torch.randn(2, 3, 5, 384, generator=generator_for(2))
        convolved = torch.nn.functional.conv2d(
            values.permute(0, 3, 1, 2), heads[0].weight[None, :, None, None], heads[0].bias[None]
        )
        torch.testing.assert_close(heads[0](values), convolved[:, 0])

    def test_it_comes_back_as_it_was(self, head: Path) -> None:
        loaded = load_head(head)
        assert loaded.kind == KIND
        assert torch.equal(loaded.weight, FoundHead(KIND).weight)
        assert not loaded.weight.requires_grad

    def test_components_and_scores(self, head: Path) -> None:
        """Two objects: their patches' mean probability, times their share of all."""
        values = torch.zeros(1, 6, 8, 48)
        weight = FoundHead(KIND).weight.detach()
        values[0, 1:3, 1:3] = 4 * weight / weight.square().sum()
        values[0, 4:5, 5:8] = 2 * weight / weight.square().sum()
        values[0, values[0].any(-1).logical_not()] = -4 * weight / weight.square().sum()
        for instances, count in (("multi", 2), ("single", 1)):
            method = create("found", "reference", head=str(head), instances=instances)
            [found] = method.propose(PatchFeatures(values, 8, (48, 64)))
            assert len(found) == count
            shares = [4 / 7, 3 / 7] if count == 2 else [1.0]
            bias = FoundHead(KIND).bias.detach()
            expected = [float((logit + bias).sigmoid()) * share for logit, share in zip((4, 2), shares, strict=False)]
            assert found.scores.tolist() == pytest.approx(expected)
            assert found.boxes[0].tolist() == [1, 1, 3, 3]

    @pytest.mark.parametrize("shape", [(47, 8), (48, 16)])
    def test_features_of_another_shape_are_refused(self, shape: tuple[int, int], head: Path) -> None:
        width, patch = shape
        method = create("found", head=str(head))
        with pytest.raises(WeightsError, match="reads features of width 48 and patches of 8 px"):
            method.propose(PatchFeatures(torch.ones(1, 2, 2, width), patch, (2 * patch, 2 * patch)))

    def test_another_backbone_is_refused_before_the_first_image(self, drawn: tuple[Path, Any], tmp_path: Path) -> None:
        path = tmp_path / "head.safetensors"
        FoundHead(FeatureKind("dino_s8", "values", 8, 48)).save(path)
        config = label_stage.configure([str(drawn[0])], assignments=[f"found.head={path}"], method="found")
        with pytest.raises(WeightsError, match='backbone: "dino_s8" -> "handcrafted"\n  features') as caught:
            label_stage.run(config, tmp_path / "run")
        assert "--backbone dino_s8" in caught.value.remedy

    @pytest.mark.parametrize(
        ("write", "said"),
        [
            (lambda path: path.unlink(), "cannot be read"),
            (lambda path: path.write_bytes(b"no weights"), "cannot be read"),
            (lambda path: path.write_bytes(path.read_bytes()[:-8]), "cannot be read"),
            (lambda path: safetensors.torch.save_file({"a": torch.ones(2)}, path), "no head of found"),
            (lambda path: rewrite(path, version=9), "of version 9"),
            (lambda path: rewrite(path, width=12), "does not hold what it says"),
            (lambda path: rewrite(path, width="wide"), "does not hold what it says"),
            (lambda path: rewrite(path, colour="red"), "does not hold what it says"),
        ],
    )
    def test_a_file_that_is_no_head(self, write: Callable[[Path], object], said: str, head: Path) -> None:
        write(head)
        with pytest.raises(WeightsError, match=said):
            create("found", head=str(head))


def rewrite(path: Path, **facts: object) -> None:
    with safetensors.safe_open(path, "pt") as file:
        [(key, before)] = file.metadata().items()
    changed = json.dumps({**json.loads(before), **facts})
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {key: changed})


class Attentive(Handcrafted):
    """Handcrafted features with a CLS attention, as a learned backbone has one: two heads look off the ground."""

    def forward(self, images: torch.Tensor) -> PatchFeatures:
        features = super().forward(images)
        energy = features.values.square().sum(-1).flatten(1)
        attention = torch.stack([energy, energy.square()], 1)
        return PatchFeatures(features.values, 8, features.image_size, attention / attention.sum(2, keepdim=True))


def test_with_attention_and_without_the_global_generators(drawn: tuple[Path, Any], tmp_path: Path, monkeypatch) -> None:
    before = torch.get_rng_state(), str(np.random.get_state())
    monkeypatch.setattr(stage.backbones, "load", lambda *_, **__: Attentive())
    result = run(small(drawn, "steps=3"), tmp_path)
    assert all(np.isfinite(value) for value in result.losses.values())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]


def test_published_constants_are_for_learned_features() -> None:
    published = FoundHeadConfig(backbone=BackboneConfig(name="dino_s8"))
    assert (published.loss, published.crop) == (FoundLossConfig(), CropConfig())
    bare = configure(assignments=["steps=70", "loss.threshold=0.2"])
    assert (bare.loss.refined_weight, bare.loss.background_steps, bare.loss.threshold) == (0, 70, 0.2)
    # What was written into config.json comes back as it was.
    assert FoundHeadConfig.model_validate(bare.model_dump(mode="json")) == bare


# The command.


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    draw(tmp_path / "photos", 3)
    settings = [part for assignment in [*SMALL, "steps=2"] for part in ("--set", assignment)]
    command = ["found-head", str(tmp_path / "photos"), "--out", str(tmp_path / "run")]
    assert call(*command, *settings) == 0
    head = tmp_path / "run" / "head.safetensors"
    out = capsys.readouterr().out
    assert "2 steps on 3 images" in out
    assert f"--method found --set found.head={head}" in out
    assert "nothing of use" not in out
    monkeypatch.chdir(tmp_path)
    use = ["--method", "found", "--set", "found.head=run/head.safetensors", "--set", "size=64"]
    assert call("label", str(tmp_path / "photos"), "--out", str(tmp_path / "masks"), *use) == 0
    # The path of the head is kept whole: the run can be gone on with from any folder.
    assert json.loads((tmp_path / "masks" / "config.json").read_text())["found"]["head"] == str(head)
    (tmp_path / "photos" / "bad.png").write_bytes(b"")
    assert call(*command[:-1], str(tmp_path / "run2"), *settings) == 3
    assert "1 images could not be used" in capsys.readouterr().out
    monkeypatch.setattr(stage, "_foreground", lambda *_: 0.001)
    assert call(*command[:-1], str(tmp_path / "run2"), *settings) == 3
    assert "0.1% of the patches for objects" in capsys.readouterr().out


def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    draw(tmp_path / "photos", 1)
    command = ["found-head", str(tmp_path / "photos"), "--out", str(tmp_path / "run")]
    for arguments, said in (
        (command[:2], "--out is missing"),
        ([*command, "--set", "crop.side=100"], "crop.side=96"),
        ([*command, "--set", "crop.scale=[3,1]"], "0 < low <= high"),
        ([*command, "--set", "loss.treshold=1"], "loss.threshold"),
        ([*command, "--backbone", "nonesuch"], "Unknown backbone"),
        ([*command, "--device", "cuda:99"], "is not there"),
        (["found-head", "--out", str(tmp_path / "run")], "No images were given"),
    ):
        assert call(*arguments) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(UsageError):
        run(configure([str(tmp_path / "nothing")]), tmp_path / "run")

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("figureground.stages.found_head.run", interrupt)
    assert call(*command) == 130
    assert "Run the same command again" in capsys.readouterr().err
