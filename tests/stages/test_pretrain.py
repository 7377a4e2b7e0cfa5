"""`pretrain`, from images to a backbone: it learns, it resumes to the bit, and it says what is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from figureground import backbones
from figureground.backbones import own
from figureground.cli import main
from figureground.data.crops import central_windows, resample
from figureground.data.squares import load_squares
from figureground.data.tars import list_image_files
from figureground.errors import ConfigError, RunError, UsageError
from figureground.evaluation.knn import knn_accuracy
from figureground.stages import pretrain as stage
from figureground.stages.pretrain import PretrainConfig, PretrainResult, configure, run
from figureground.stages.pretrain_recipes import RECIPES
from figureground.stages.probes import CorLocProbe, ProbeConfig, class_of
from figureground.storage import jsonlines
from figureground.training.dino import DinoConfig, seeded
from figureground.training.loop import StepReport
from figureground.training.order import generator_for
from tests.data.odd_images import BROKEN, USABLE, write_all
from tests.training.kinds import KINDS, draw_kinds

# A few steps of an even smaller network.
SMALL = [
    *("dino.vit.width=16", "dino.vit.depth=1", "dino.vit.heads=2", "dino.head.outputs=12", "dino.head.hidden=8"),
    *("dino.head.bottleneck=4", "dino.warmup_epochs=0", "batch_size=4", "steps=6"),
    *("checkpoint_every=2", "watch_every=3"),
]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "kinds"
    draw_kinds(folder, 64)
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "few"
    draw_kinds(folder, 5)
    return folder


def small(folder: Path, *settings: str, **shorthands: Any) -> PretrainConfig:
    return configure([str(folder)], [*SMALL, *settings], recipe="tiny", **shorthands)


def log(result: PretrainResult, key: str) -> list[Any]:
    return [entry[key] for entry in jsonlines.read(result.out / "log.jsonl") if key in entry]


def few_shot(backbone: Any, folder: Path, shots: int = 3) -> float:
    """Accuracy of the nearest of three known pictures of each kind, the mean of ten choices."""
    files = list_image_files([folder]).files
    squares = load_squares(files, 48)
    upright = torch.zeros(len(files), dtype=torch.bool)
    images = resample(squares.pixels / 255, central_windows(squares.aspects), upright, 32)
    with torch.inference_mode():
        features = backbone.eval().forward_features((images - 0.45) / 0.225)[:, 0]
    labels = torch.tensor([list(KINDS).index(file.name.split("/")[0]) for file in files])
    accuracies = []
    for choice in range(10):
        order = torch.randperm(len(files), generator=generator_for("choice", choice))
        known = torch.cat([order[labels[order] == kind][:shots] for kind in range(len(KINDS))])
        asked = order[~torch.isin(order, known)]
        accuracies.append(knn_accuracy(features[known], labels[known], features[asked], labels[asked], k=1))
    return float(np.mean(accuracies))


class TestLearning:
    def test_it_learns_what_kind_a_picture_is(self, kinds: Path, tmp_path: Path) -> None:
        settings = [
            "dino.mean=[0.45,0.45,0.45]",
            "dino.std=[0.225,0.225,0.225]",
            "probe.labels=folder",
            "epochs=22",
            "seed=1",
        ]
        result = run(configure([str(kinds)], settings, recipe="tiny"), tmp_path)
        assert (result.steps, result.images) == (176, 256)
        shape = own.read(result.backbone).shape
        # As the run began.
        with seeded(generator_for(1, "weights")):
            untrained = shape.build()
        learned = shape.build()
        learned.load_state_dict(safetensors.torch.load_file(result.backbone))
        before, after = few_shot(untrained, kinds), few_shot(learned, kinds)
        # Chance is 0.25.
        assert after > 0.75
        assert after > before + 0.15
        assert result.measured["knn"] > 0.9
        watched = log(result, "watch")
        assert len(watched) == 2
        assert all(0.2 < each["entropy"] < each["mean_entropy"] < 1 for each in watched)
        assert watched[-1] == result.measured

    def test_what_is_written(self, few: Path, tmp_path: Path) -> None:
        seen: list[StepReport] = []
        result = run(small(few, "licence=CC0", "half=true"), tmp_path / "run", seen.append)
        names = {path.name for path in (tmp_path / "run").iterdir()}
        assert names == {
            *(".holder", ".lock", "backbone.safetensors", "checkpoints", "config.json", "environment.json"),
            *("failures.jsonl", "images.json", "log.jsonl", "result.json"),
        }
        assert [report.position.step for report in seen] == [1, 2, 3, 4, 5, 6]
        facts = json.loads((tmp_path / "run" / "result.json").read_text())
        assert (facts["stage"], facts["steps"], facts["images"]) == ("pretrain", 6, 20)
        assert facts["images_per_s"] > 0
        assert facts["losses"] == result.losses
        assert facts["measured"].keys() == {"entropy", "mean_entropy", "spread"}
        written = own.read(result.backbone)
        assert written.shape == own.Shape(patch_size=8, image_size=32, width=16, depth=1, heads=2)
        assert written.facts.items() >= {"recipe": "tiny", "method": "dino", "steps": 6, "licence": "CC0"}.items()
        weights = safetensors.torch.load_file(result.backbone)
        assert {value.dtype for value in weights.values()} == {torch.float16}
        # It is a backbone as any other.
        loaded = backbones.load(str(tmp_path / "run"), features="tokens")
        assert loaded(torch.rand(1, 3, 48, 40, generator=generator_for(0))).values.shape == (1, 6, 5, 16)

    def test_the_teacher_is_what_is_kept(self, few: Path, tmp_path: Path) -> None:
        result = run(small(few), tmp_path)
        state = safetensors.torch.load_file(tmp_path / "checkpoints" / "00000006.safetensors")
        kept = safetensors.torch.load_file(result.backbone)
        assert {f"teacher.module.backbone.{name}" for name in kept} < state.keys()
        for name, value in kept.items():
            assert torch.equal(value, state[f"teacher.module.backbone.{name}"])
        assert not torch.equal(kept["cls_token"], state["student.backbone.cls_token"])

    @pytest.mark.parametrize("recipe", RECIPES)
    def test_recipes_are_whole(self, recipe: str) -> None:
        config = configure(assignments=["seed=3"], recipe=recipe)
        assert (config.recipe, config.seed) == (recipe, 3)
        # What was written into config.json comes back as it was.
        assert PretrainConfig.model_validate(config.model_dump(mode="json")) == config

    def test_published_constants(self) -> None:
        config = configure()
        assert config == PretrainConfig(recipe="dino_s16")
        assert config.dino == DinoConfig()
        assert (config.dino.vit.width, config.dino.vit.patch_size, config.dino.head.outputs) == (384, 16, 65536)


IBOT = ["dino.patches.weight=1", "dino.patches.head=own", "dino.vit.drop_path=0.3"]


class TestResume:
    @pytest.mark.parametrize("settings", [[], IBOT, [*IBOT, "dino.vit.stem=conv", "dino.precision=bf16"]])
    def test_interrupted_and_resumed_equals_undisturbed(self, settings: list[str], few: Path, tmp_path: Path) -> None:
        calm = run(small(few, *settings), tmp_path / "calm")

        def interrupt(report: StepReport) -> None:
            if report.position.step == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(small(few, *settings), tmp_path / "stopped", interrupt)
        # Exported with the measurement after the third step.
        assert own.read(tmp_path / "stopped" / own.FILE).facts["steps"] == 3
        seen: list[StepReport] = []
        again = run(small(few, *settings), tmp_path / "stopped", seen.append)
        assert (again.resumed, len(seen)) == (2, 4)
        assert again.backbone.read_bytes() == calm.backbone.read_bytes()
        names = ("00000006.safetensors", "latest.json")
        written = [[(each.out / "checkpoints" / name).read_bytes() for name in names] for each in (calm, again)]
        assert written[0] == written[1]
        assert log(again, "losses") == log(calm, "losses")
        assert log(again, "watch") == log(calm, "watch")
        assert calm.losses.keys() == ({"views", "patches"} if settings else {"views"})

    def test_a_finished_run_is_not_made_again(self, few: Path, tmp_path: Path) -> None:
        first = run(small(few), tmp_path)
        before = first.backbone.read_bytes()
        again = run(small(few, "watch_every=1"), tmp_path, lambda _: pytest.fail("trained again"))
        assert (again.resumed, again.images_per_s) == (6, None)
        assert again.measured == first.measured
        assert first.backbone.read_bytes() == before

    def test_another_start_is_an_error(self, few: Path, tmp_path: Path) -> None:
        shutil.copytree(few, tmp_path / "pictures")
        config = small(tmp_path / "pictures", "steps=1")
        run(config, tmp_path / "run")
        with pytest.raises(ConfigError, match=r"dino\.momentum: 0\.99 -> 0\.9\n"):
            run(small(tmp_path / "pictures", "steps=1", "dino.momentum=0.9"), tmp_path / "run")
        (tmp_path / "pictures" / "bars" / "000.png").rename(tmp_path / "pictures" / "new.png")
        with pytest.raises(ConfigError, match="not those that"):
            run(config, tmp_path / "run")

        def start_another(report: StepReport) -> None:
            with pytest.raises(RunError, match="Another process"):
                run(config, tmp_path / "other")

        run(config, tmp_path / "other", start_another)

    def test_two_processes_learn_one_backbone(self, few: Path, tmp_path: Path) -> None:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        settings = [part for setting in [*SMALL, *IBOT, "steps=3"] for part in ("--set", setting)]
        command = ["-m", "figureground", "pretrain", str(few), "--out", str(tmp_path), "--recipe", "tiny", *settings]
        ended = subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=240)
        assert ended.returncode == 0, ended.stderr[-3000:]
        # One of them speaks.
        assert ended.stdout.count("3 steps on 20 images") == 1
        assert json.loads((tmp_path / "environment.json").read_text())["processes"] == 2
        assert [entry["step"] for entry in jsonlines.read(tmp_path / "log.jsonl") if "losses" in entry] == [0, 1, 2]
        assert own.read(tmp_path / own.FILE).facts["steps"] == 3


class TestImages:
    @pytest.mark.parametrize("memory_gib", [0, 1])
    def test_bad_ones_are_passed_over_and_named(self, memory_gib: int, tmp_path: Path) -> None:
        write_all(tmp_path / "photos")
        total = len(USABLE) + len(BROKEN) + 1
        config = small(tmp_path / "photos", f"memory_gib={memory_gib}", "steps=1", f"batch_size={total}")
        result = run(config, tmp_path / "run")
        assert (result.images, result.failed, result.ignored) == (total, len(BROKEN), 1)
        failures = {entry["path"]: entry["error"] for entry in jsonlines.read(tmp_path / "run" / "failures.jsonl")}
        assert failures.keys() == BROKEN.keys()
        assert all(BROKEN[name][1] in error for name, error in failures.items())

    def test_in_memory_or_read_every_time_is_the_same(self, few: Path, tmp_path: Path) -> None:
        shutil.copytree(few, tmp_path / "pictures")
        for name in ("bars/002.png", "discs/000.png", "rings/004.png"):
            (tmp_path / "pictures" / name).write_bytes(b"")
        held, read = (run(small(tmp_path / "pictures", f"memory_gib={gib}"), tmp_path / str(gib)) for gib in ("1", "0"))
        assert held.backbone.read_bytes() == read.backbone.read_bytes()
        assert held.failed == read.failed == 3

    @pytest.mark.parametrize("memory_gib", [0, 1])
    def test_none_to_be_read_is_an_error(self, memory_gib: int, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        for name in ("a.jpg", "b.jpg"):
            (tmp_path / "photos" / name).write_bytes(b"")
        with pytest.raises(RunError, match="None of the 2 images"):
            run(small(tmp_path / "photos", f"memory_gib={memory_gib}"), tmp_path / "run")

    def test_a_tar_is_as_good_as_its_folder(self, few: Path, tmp_path: Path) -> None:
        shutil.make_archive(str(tmp_path / "few"), "tar", few)
        folder = run(small(few, "steps=2"), tmp_path / "folder")
        tar = run(small(tmp_path / "few.tar", "steps=2"), tmp_path / "tar")
        assert tar.images == folder.images
        losses = [[entry["views"] for entry in log(each, "losses")] for each in (folder, tar)]
        # Members may lie in another order.
        assert np.isfinite(losses).all()
        limited = run(small(few, "steps=1", limit=7), tmp_path / "limited")
        assert limited.images == 7


class TestProbes:
    def truth(self, folder: Path) -> Path:
        """A picture of a bright disc, and its box."""
        folder.mkdir()
        rows, columns = np.mgrid[:64, :96]
        disc = (rows - 30) ** 2 + (columns - 60) ** 2 < 20**2
        pixels = np.where(disc[..., None], (220, 60, 40), (60, 90, 60)).astype(np.uint8)
        images, annotations = [], []
        for index in range(3):
            Image.fromarray(pixels).save(folder / f"{index}.png")
            images.append({"id": index, "file_name": f"{index}.png", "height": 64, "width": 96})
            box = [41, 11, 39, 39] if index else [0, 0, 9, 9]
            annotations.append({"id": index + 1, "image_id": index, "bbox": box, "category_id": 1})
        (folder / "truth.json").write_text(json.dumps({"images": images, "annotations": annotations}))
        return folder / "truth.json"

    def test_are_measured_and_change_nothing(self, few: Path, tmp_path: Path) -> None:
        truth = self.truth(tmp_path / "truth")
        asked = ["probe.labels=folder", f"probe.truth={truth}", f"probe.images={truth.parent}", "probe.size=96"]
        with_probes, without = run(small(few, *asked), tmp_path / "with"), run(small(few), tmp_path / "without")
        assert {"knn", "corloc"} == with_probes.measured.keys() - without.measured.keys()
        assert [entry.keys() >= {"knn", "corloc"} for entry in log(with_probes, "watch")] == [True, True]
        assert with_probes.backbone.read_bytes() == without.backbone.read_bytes()

    def test_corloc_counts_the_boxes_that_are_right(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By a method that looks at pixels, on any features."""
        truth = self.truth(tmp_path / "truth")
        dino = small(tmp_path).dino
        config = ProbeConfig(truth=str(truth), images=str(truth.parent), method="background", size=256)
        probe = CorLocProbe(config, dino, "cpu")
        with seeded(generator_for(0)):
            assert probe(dino.vit.shape.build()) == pytest.approx(2 / 3)
        assert CorLocProbe(config.replace(corloc_images=1), dino, "cpu")(dino.vit.shape.build()) == 0

    def test_classes(self, few: Path, tmp_path: Path) -> None:
        assert class_of("birds.tar/wren/a-b-07.webp", "prefix") == "a-b"
        (tmp_path / "flat").mkdir()
        for index, path in enumerate(sorted(few.rglob("*.png"))):
            shutil.copy(path, tmp_path / "flat" / f"{path.parent.name}-{index}.png")
        assert "knn" in run(small(tmp_path / "flat", "probe.labels=prefix", "steps=1"), tmp_path / "run").measured
        with pytest.raises(ConfigError, match=r"probe\.labels=folder finds 1"):
            run(small(tmp_path / "flat", "probe.labels=folder"), tmp_path / "other")

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ((), "without its images"),
            (("probe.images=/nowhere",), "cannot be read: The file does not exist"),
            (("probe.method=nonesuch", "probe.images=/nowhere"), "nonesuch"),
        ],
    )
    def test_what_cannot_be_measured(self, settings: tuple[str, ...], said: str, few: Path, tmp_path: Path) -> None:
        truth = self.truth(tmp_path / "truth")
        with pytest.raises(UsageError, match=said):
            run(small(few, f"probe.truth={truth}", *settings), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_weights_decay_though_they_do_not_at_first(few: Path, tmp_path: Path) -> None:
    run(small(few, "dino.weight_decay=0", "dino.weight_decay_end=0.4", "steps=2"), tmp_path)
    state = torch.load(tmp_path / "checkpoints" / "00000002.optimiser.pt", weights_only=True)
    matrices, others = (group["weight_decay"] for group in state["param_groups"])
    assert matrices == pytest.approx(0.2)
    assert others == 0


def test_a_collapse_ends_the_run(few: Path, tmp_path: Path) -> None:
    limits = ("after_steps=2", "uniform=0.001", "dominant=0")
    settings = ["watch_every=1", *(f"dino.collapse.{limit}" for limit in limits)]
    with pytest.raises(RunError, match="at step 2, all outputs are alike") as caught:
        run(small(few, *settings), tmp_path)
    assert "another --out" in caught.value.remedy
    assert len([entry for entry in jsonlines.read(tmp_path / "log.jsonl") if "watch" in entry]) == 2


# The command.


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_the_command(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [part for setting in [*SMALL, "steps=2"] for part in ("--set", setting)]
    command = ["pretrain", "--out", str(tmp_path / "run"), "--recipe", "tiny", *settings]
    assert call(*command, str(few)) == 0
    out = capsys.readouterr().out
    assert "2 steps on 20 images" in out
    assert "entropy" in out
    assert f"--backbone {tmp_path / 'run'}" in out
    shutil.copytree(few, tmp_path / "pictures")
    (tmp_path / "pictures" / "bad.png").write_bytes(b"")
    assert call(*command, "--out", str(tmp_path / "run2"), str(tmp_path / "pictures")) == 3
    assert "1 images could not be used" in capsys.readouterr().out
    # Another of several processes says nothing, and does not make torchrun end the first one by its code.
    monkeypatch.setenv("RANK", "1")
    assert call(*command, "--out", str(tmp_path / "run3"), str(tmp_path / "pictures")) == 0
    assert capsys.readouterr().out == ""


def test_wrong_use(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    out = ["--out", str(tmp_path / "run"), "--recipe", "tiny"]
    command = ["pretrain", str(few), *out]
    for arguments, said in (
        (command[:2], "--out is missing"),
        ([*command[:-1], "tinny"], "Did you mean 'tiny'?"),
        ([*command, "--set", "crops.global_size=36"], "crops.global_size=32"),
        ([*command, "--set", "dino.vit.heads=7"], "cannot be built"),
        ([*command, "--set", "dino.warmup_epochs=40"], "shorten the warm-up"),
        ([*command, "--set", "dino.momentun=1"], "dino.momentum"),
        ([*command, "--device", "cuda:99"], "is not there"),
        (["pretrain", *out], "No images were given"),
    ):
        assert call(*arguments) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "run", interrupt)
    assert call(*command) == 130
    assert "Run the same command again" in capsys.readouterr().err
