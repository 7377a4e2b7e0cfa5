"""`semantic train` from masks to a segmenter whose embeddings K-means sorts into kinds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional
from torchvision.models import resnet18

from figureground.backbones import own
from figureground.data.resize import to_tensor
from figureground.errors import ConfigError, RunError, UsageError, WeightsError
from figureground.evaluation.semantic_miou import confusion_matrix, match_clusters, semantic_scores
from figureground.segmenters import checkpoint
from figureground.segmenters.maskcontrast import Segmenter
from figureground.stages.semantic_recipes import RECIPES
from figureground.stages.semantic_train import SemanticTrainConfig, configure, run
from figureground.storage import jsonlines
from figureground.training.loop import StepReport
from tests.stages.labelled import edit, write_labelled
from tests.training.textures import KINDS, draw_textures

FEW = ["batch_size=4", "steps=3"]
RESNET = ["maskcontrast.segmenter.arch=resnet18", "maskcontrast.segmenter.rates=[1,2]", *FEW]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("few"), 6)


def tiny(labels: Path, *assignments: str, **shorthands: Any) -> SemanticTrainConfig:
    return configure(labels, (), assignments, recipe="tiny", **shorthands)


def test_kinds_are_told_apart_by_what_was_learned(tmp_path: Path) -> None:
    """A kind is a pattern and its hue, and no mask says so; by colours K-means finds how bright the light was."""
    labels, _ = draw_textures(tmp_path / "train", 40)
    unseen, truths = draw_textures(tmp_path / "new", 10, first=1000)
    result = run(tiny(labels), tmp_path / "run")
    assert (result.images, result.proposals, result.left_out, result.failed) == (160, 160, 0, 0)
    segmenter = checkpoint.load(result.out)
    torch.manual_seed(0)
    fresh = Segmenter(segmenter.config).eval()

    described: dict[str, list[list[np.ndarray]]] = {"learned": [[], []], "untrained": [[], []], "colours": [[], []]}
    figures = {}
    for split, folder in enumerate((labels, unseen)):
        for path in sorted((folder.parent / "photos").iterdir()):
            with torch.no_grad(), Image.open(path) as image:
                pixels = to_tensor(np.asarray(image))
                embedding, saliency = segmenter(pixels)
                maps = functional.normalize(embedding, dim=1), functional.normalize(fresh(pixels)[0], dim=1), pixels
            figure = saliency[0] > 0
            for vectors, values in zip(described.values(), maps, strict=True):
                vectors[split].append(values[0][:, figure].mean(1).numpy())
            if split:
                figures[path.name] = figure.numpy()

    def miou(seen: list[np.ndarray], new: list[np.ndarray]) -> float:
        """Of K-means of the means over what is salient: one cluster a picture."""
        clusters = KMeans(len(KINDS), n_init=10, random_state=0).fit(seen).predict(new)
        counts = np.zeros((5, 5), dtype=np.int64)
        for (name, figure), cluster in zip(figures.items(), clusters, strict=True):
            counts += confusion_matrix(np.where(figure, cluster + 1, 0), truths[name], 5, 5)
        kinds = [None if found is None else found + 1 for found in match_clusters(counts[1:, 1:])]
        return semantic_scores(counts, [0, *kinds]).miou or 0.0

    reached = {name: miou(*vectors) for name, vectors in described.items()}
    assert reached["learned"] > 0.65
    assert reached["learned"] > max(reached["untrained"], reached["colours"]) + 0.2, reached

    page = (result.out / "report.html").read_text()
    for text in ("contrast", "saliency", "foreground", ".png, again", ".png, embedding"):
        assert text in page
    written = {path.name for path in result.out.iterdir() if not path.name.startswith(".")}
    assert written == {
        *("config.json", "environment.json", "result.json", "log.jsonl", "failures.jsonl", "report.html"),
        *("checkpoints", "segmenter.safetensors"),
    }


@pytest.mark.parametrize("settings", [RESNET, [*FEW, "pairs.masks=instances"]], ids=["resnet", "vit"])
def test_interrupted_and_resumed_equals_undisturbed(few: Path, settings: list[str], tmp_path: Path) -> None:
    config = tiny(few, *settings, "checkpoint_every=1")
    calm = run(config, tmp_path / "calm")

    def stop(report: StepReport) -> None:
        if report.position.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "stopped", stop)
    again = run(config, tmp_path / "stopped")
    assert again.resumed == 2
    assert again.segmenter.read_bytes() == calm.segmenter.read_bytes()
    [one, other] = (
        [entry["losses"] for entry in jsonlines.read(result.out / "log.jsonl") if "losses" in entry]
        for result in (calm, again)
    )
    assert one == other
    with pytest.raises(ConfigError, match="seed"):
        run(config.replace(seed=1), tmp_path / "stopped")


def test_in_memory_or_read_every_time_is_the_same(few: Path, tmp_path: Path) -> None:
    held, fresh = (
        run(tiny(few, *FEW, "steps=2", f"memory_gib={gib}", f"workers={workers}"), tmp_path / f"{gib}")
        for gib, workers in ((1, 0), (0, 1))
    )
    assert held.segmenter.read_bytes() == fresh.segmenter.read_bytes()


def test_goes_on_with_the_same_masks_only(few: Path, tmp_path: Path) -> None:
    shutil.copytree(few.parent, tmp_path / "copy")
    labels = tmp_path / "copy" / "run"
    config = configure(labels, [tmp_path / "copy" / "photos"], FEW, recipe="tiny")
    run(config.replace(steps=1), tmp_path / "run")
    edit(labels, lambda content: content["annotations"].pop())
    with pytest.raises(ConfigError, match="digest"):
        run(config.replace(steps=1), tmp_path / "run")


def test_two_processes_learn_one_segmenter(few: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = [part for setting in FEW for part in ("--set", setting)]
    command = ["-m", "figureground", "semantic", "train", str(few), "--out", str(tmp_path), "--recipe", "tiny"]
    ended = subprocess.run([*launcher, *command, *settings], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-3000:]
    # One of them speaks.
    assert ended.stdout.count("3 steps on 6 masks of 6 images") == 1
    assert json.loads((tmp_path / "environment.json").read_text())["processes"] == 2
    assert checkpoint.load(tmp_path).config.arch == "vit"


class TestFirstWeights:
    def begun(self, config: SemanticTrainConfig, out: Path) -> dict[str, Tensor]:
        """The weights after a step so small that they are those of the beginning."""
        optimiser = {"name": "sgd", "rate": 1e-12, "weight_decay": 0.0}
        return load_file(run(config.replace(steps=1, optimiser=optimiser), out).segmenter)

    def test_of_a_resnet_in_the_names_of_moco(self, few: Path, tmp_path: Path) -> None:
        trunk = resnet18().state_dict()
        state = {f"module.encoder_q.{name}": value for name, value in trunk.items()}
        torch.save({"state_dict": state}, tmp_path / "moco.pth.tar")
        weights = self.begun(tiny(few, *RESNET, init=str(tmp_path / "moco.pth.tar")), tmp_path / "run")
        for name, value in trunk.items():
            if not name.startswith("fc.") and "running" not in name and "num_batches" not in name:
                torch.testing.assert_close(weights[f"trunk.{name}"], value)
        assert json.loads((tmp_path / "run" / "config.json").read_text())["init_digest"]

    def test_of_a_backbone_of_our_own_which_says_what_it_is(self, few: Path, tmp_path: Path) -> None:
        shape = own.Shape(patch_size=8, image_size=40, width=24, depth=1, heads=2)
        facts = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2]}
        trunk = {name: value.detach() for name, value in shape.build().state_dict().items()}
        (tmp_path / "own").mkdir()
        halves = {name: value.half() for name, value in trunk.items()}
        (tmp_path / "own" / own.FILE).write_bytes(save(halves, own.describe(shape, facts)))
        config = configure(few, (), FEW, recipe="small", init=str(tmp_path / "own"))
        weights = self.begun(config, tmp_path / "run")
        for name, value in halves.items():
            torch.testing.assert_close(weights[f"trunk.{name}"], value.float(), msg=name)
        segmenter = checkpoint.load(tmp_path / "run")
        assert (segmenter.config.arch, segmenter.config.mean) == ("vit", (0.4, 0.5, 0.6))

    def test_of_dino_by_name(self, few: Path) -> None:
        segmenter = configure(few, (), FEW, recipe="small", init="dino_b8").maskcontrast.segmenter
        assert segmenter.arch == "vit"
        assert (segmenter.vit.patch_size, segmenter.vit.width, segmenter.vit.heads) == (8, 768, 12)

    def test_that_do_not_fit(self, few: Path, tmp_path: Path) -> None:
        save_file(resnet18().state_dict(), tmp_path / "weights.safetensors")
        with pytest.raises(WeightsError, match="does not fit"):
            run(tiny(few, *FEW, init=str(tmp_path / "weights.safetensors")), tmp_path / "run")
        with pytest.raises(WeightsError, match="No file of weights"):
            run(tiny(few, *FEW, init="nowhere.pth"), tmp_path / "run")
        assert not (tmp_path / "run").exists()


class TestInput:
    def test_no_masks(self, few: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"has no annotations\.json"):
            tiny(tmp_path)
        shutil.copytree(few, tmp_path / "labels")
        edit(tmp_path / "labels", lambda content: content["annotations"].clear())
        with pytest.raises(UsageError, match="none of its 6 images has a mask"):
            run(tiny(tmp_path / "labels", *FEW), tmp_path / "run")
        with pytest.raises(UsageError, match="is left to learn from"):
            run(tiny(few, *FEW, "pairs.area=[0.9,0.95]"), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_other_images(self, few: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(RunError, match="None of the 6 images"):
            run(configure(few, [tmp_path / "empty"], FEW, recipe="tiny"), tmp_path / "run")

    def test_one_image_at_a_time(self, few: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="greater than or equal to 2"):
            tiny(few, "batch_size=1")

    def test_some_that_cannot_be_used(self, few: Path, tmp_path: Path) -> None:
        shutil.copytree(few.parent, tmp_path / "copy")
        (tmp_path / "copy" / "photos" / "001.png").write_bytes(b"")
        edit(tmp_path / "copy" / "run", lambda content: content["annotations"][0].update(segmentation="?"))
        config = configure(tmp_path / "copy" / "run", [tmp_path / "copy" / "photos"], FEW, recipe="tiny")
        result = run(config, tmp_path / "run")
        assert (result.failed, result.rejected) == (1, 1)

    def test_recipes(self, few: Path) -> None:
        with pytest.raises(UsageError, match="Did you mean 'maskcontrast_paper'"):
            configure(few, recipe="maskcontrast")
        assert configure(few).recipe == "small"
        assert configure(few, device="cuda").recipe == "maskcontrast_paper"
        for name in RECIPES:
            assert configure(few, recipe=name).recipe == name
        published = configure(few, recipe="maskcontrast_paper")
        assert (published.batch_size, published.maskcontrast.queue, published.optimiser.rate) == (128, 256, 0.004)
        schedule = published.optimiser.schedule(100)
        assert [schedule(step) for step in (0, 50)] == pytest.approx([1, 0.5**0.9])
