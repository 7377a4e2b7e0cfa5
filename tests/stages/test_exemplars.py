"""`exemplars` from images to a pool of cut-outs that a person changes and training reads."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from figureground.data.images import decode, load_image
from figureground.errors import ConfigError, RunError, UsageError
from figureground.ops.rle import encode
from figureground.stages import exemplar_pool
from figureground.stages.exemplar_pool import (
    check_backbone,
    cut_out,
    embed_cutout,
    identify,
    load_pool,
    make_embedder,
    read_cutout,
)
from figureground.stages.exemplars import ExemplarsResult, configure, run
from figureground.stages.instance_features import InstanceEmbedder
from figureground.stages.labeller import BackboneConfig
from figureground.structures import PatchFeatures
from tests.stages.labelled import edit
from tests.stages.test_cluster import KINDS, write_scenes

SEEN = ["view_size=96", "shard_size=2"]
FAST = ["size=96", *SEEN]


class Colours(nn.Module):
    """What it sees in a patch is its colour, and nothing else."""

    name, patch_size, width = "colours", 8, 3

    def forward(self, images: torch.Tensor) -> PatchFeatures:
        means = torch.nn.functional.avg_pool2d(images, 8).permute(0, 2, 3, 1)
        return PatchFeatures(means, 8, (images.shape[2], images.shape[3]))


def draw_one(colour: tuple[float, float, float], seed: int) -> Image.Image:
    """One disc on grey."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:72, :96]
    picture = 0.5 + rng.normal(scale=0.02, size=(72, 96, 3))
    inside = (y - rng.uniform(30, 42)) ** 2 + (x - rng.uniform(35, 60)) ** 2 < rng.uniform(14, 18) ** 2
    picture[inside] = np.array(colour) + rng.normal(scale=0.02, size=(inside.sum(), 3))
    return Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))


def draw_none() -> Image.Image:
    """From dark to bright."""
    return Image.fromarray(np.tile(np.arange(0, 192, 2, dtype=np.uint8)[:, None], (72, 1, 3)))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two folders of two pictures each, and one picture that is in none."""
    folder = tmp_path / "pictures"
    for index, (kind, name) in enumerate([("brick", "a"), ("brick", "b"), ("leaf", "a"), ("leaf", "b")]):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        draw_one(KINDS[kind], index).save(folder / kind / f"{name}.png")
    draw_one(KINDS["pool"], 9).save(folder / "blue.png")
    return folder


def choose(pictures: Path, out: str = "pool", *more: str, **options: Any) -> ExemplarsResult:
    return run(configure([str(pictures)], [*FAST, *more], **options), pictures.parent / out)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path)


def cluster(scenes: Path, out: str = "pool", *more: str, **options: Any) -> ExemplarsResult:
    options = {"k": "3", "run": str(scenes / "run"), **options}
    return run(configure([], [*SEEN, *more], **options), scenes / out)


def made(pool: Path) -> dict[str, bytes]:
    files = [pool / "pool.json", pool / "failures.jsonl", *sorted(pool.glob("exemplars/**/*.png"))]
    return {str(file.relative_to(pool)): file.read_bytes() for file in files}


def failures(pool: Path) -> dict[str, str]:
    lines = (pool / "failures.jsonl").read_text().splitlines()
    return {entry["path"]: entry["error"] for entry in map(json.loads, lines)}


class TestFolders:
    def test_a_category_for_each_folder_and_each_single_picture(self, pictures: Path) -> None:
        result = choose(pictures)
        assert (result.images, result.exemplars, result.categories, result.failed) == (5, 5, 3, 0)
        out = result.out
        names = sorted(path.relative_to(out / "exemplars").as_posix() for path in out.glob("exemplars/**/*.png"))
        assert names == ["blue.png", "brick/a.png", "brick/b.png", "leaf/a.png", "leaf/b.png"]
        pool = load_pool(out)
        assert pool.names == ("blue", "brick", "leaf")
        assert pool.counts == (1, 2, 2)
        assert pool.embeddings.dtype == torch.float32
        torch.testing.assert_close(pool.embeddings.norm(dim=1), torch.ones(3))
        # The pivot is the mean of what the photographs gave, as the labeller's masks are embedded anywhere else.
        vectors = []
        embedder = pool.make_embedder()
        for name in ("a", "b"):
            pixels = load_image(pictures / "brick" / f"{name}.png")
            _, mask = read_cutout((out / "exemplars" / "brick" / f"{name}.png").read_bytes())
            whole = np.zeros(pixels.shape[:2], dtype=bool)
            y, x = position_of(pixels, (out / "exemplars" / "brick" / f"{name}.png").read_bytes())
            whole[y : y + len(mask), x : x + mask.shape[1]] = mask
            vectors.append(embedder.embed(pixels, encode(torch.from_numpy(whole)[None]))[0])
        mean = np.mean(vectors, axis=0)
        np.testing.assert_allclose(pool.embeddings[1], mean / np.linalg.norm(mean), atol=2e-3)

    def test_the_cut_out_is_the_object(self, pictures: Path) -> None:
        out = choose(pictures).out
        content = (out / "exemplars" / "blue.png").read_bytes()
        pixels, mask = read_cutout(content)
        colours = pixels[mask] / 255
        assert np.abs(colours.mean(0) - KINDS["pool"]).max() < 0.1
        # Around it there is the photograph, hidden; what shows a picture shows white there.
        assert abs(pixels[~mask].mean() / 255 - 0.5) < 0.05
        assert (decode(content)[0][~mask] == 255).all()

    def test_all_instances(self, scenes: Path) -> None:
        """Of single pictures each of them is a category; of a folder they are together."""
        for index in range(2, 6):
            (scenes / "photos" / f"{index}.png").unlink()
        result = run(configure([str(scenes / "photos")], [*FAST, "per_image=all"]), scenes / "pool")
        pool = load_pool(result.out)
        assert result.categories == result.exemplars == len(pool.names) > 2
        assert {name.partition("-")[0] for name in pool.names} == {"0", "1"}
        both = [str(scenes / "photos"), str(scenes / "run")]
        (scenes / "photos" / "0.png").rename(scenes / "run" / "0.png")
        together = run(configure(both, [*FAST, "per_image=all"]), scenes / "together")
        assert load_pool(together.out).names == ("photos", "run")
        assert together.exemplars == result.exemplars

    def test_names_that_are_alike(self, pictures: Path) -> None:
        blue = (pictures / "blue.png").read_bytes()
        (pictures / "leaf.png").write_bytes(blue)
        (pictures / "brick" / "deep").mkdir()
        for name in ("blue.bmp", "brick/a.bmp", "brick/deep/b.png", "brick/deep_b.png", f"brick/{'x' * 200}.png"):
            (pictures / name).write_bytes(blue)
        result = choose(pictures)
        assert (result.exemplars, result.categories) == (11, 5)
        singles = [name for name in load_pool(result.out).names if name not in ("brick", "leaf")]
        assert sorted(name.partition("-")[0] for name in singles) == ["blue", "blue", "leaf"]

    def test_a_picture_without_an_object(self, pictures: Path) -> None:
        draw_none().save(pictures / "leaf" / "b.png")
        Image.new("RGB", (96, 72), (90, 90, 90)).save(pictures / "leaf" / "flat.png")
        (pictures / "brick" / "b.png").write_bytes(b"no image")
        result = choose(pictures)
        assert (result.exemplars, result.failed) == (3, 3)
        named = failures(result.out)
        assert list(named) == ["brick/b.png", "leaf/b.png", "leaf/flat.png"]
        assert named["leaf/b.png"] == "No object was found in it."
        assert named["leaf/flat.png"] == "It is of one colour, so that no object can be told in it."
        # Mended, it comes in; what a person has deleted in between does not come back.
        (result.out / "exemplars" / "blue.png").unlink()
        draw_one(KINDS["leaf"], 3).save(pictures / "leaf" / "b.png")
        result = choose(pictures)
        assert (result.exemplars, result.failed, result.removed) == (3, 2, 1)
        assert load_pool(result.out).names == ("brick", "leaf")

    def test_no_object_anywhere(self, tmp_path: Path) -> None:
        (tmp_path / "pictures").mkdir()
        for name in "ab":
            draw_none().save(tmp_path / "pictures" / f"{name}.png")
        with pytest.raises(RunError, match=r"none of the 2 images .* a\.png: No object was found"):
            choose(tmp_path / "pictures")


def position_of(pixels: np.ndarray, content: bytes) -> tuple[int, int]:
    """Where a cut-out lies in its image."""
    part, _ = read_cutout(content)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, part.shape)[:, :, 0]
    [[y, x]] = np.argwhere((windows == part).all((2, 3, 4)))
    return int(y), int(x)


class TestClusters:
    def test_what_lies_at_the_centres(self, scenes: Path) -> None:
        result = cluster(scenes, per_cluster=2)
        assert (result.exemplars, result.categories) == (6, 3)
        pool = load_pool(result.out)
        assert pool.names == ("cluster 1", "cluster 2", "cluster 3")
        colours = []
        for name in pool.names:
            files = sorted((result.out / "exemplars" / name).iterdir())
            means = [pixels[mask].mean(0) / 255 for pixels, mask in (read_cutout(file.read_bytes()) for file in files)]
            assert len(means) == 2
            assert np.abs(means[0] - means[1]).max() < 0.05
            # Of two images, though each of them has one of each kind only.
            assert len({file.name.partition("-")[0] for file in files}) == 2
            colours.append(min(KINDS, key=lambda kind: np.abs(means[0] - KINDS[kind]).max()))
        assert sorted(colours) == sorted(KINDS)
        # Of what a person prunes, the rest stays.
        assert cluster(scenes, "five", per_cluster=5).exemplars == 15

    def test_masks_of_one_object_are_no_two_exemplars(self, scenes: Path) -> None:
        def double(all_: Any) -> None:
            all_["annotations"] += [{**entry, "id": 50 + entry["id"]} for entry in all_["annotations"]]

        edit(scenes / "run", double)
        pool = cluster(scenes, per_cluster=4).out
        for folder in (pool / "exemplars").iterdir():
            assert len({file.name.partition("-")[0] for file in folder.iterdir()}) == 4

    def test_the_number_of_clusters(self, scenes: Path) -> None:
        result = cluster(scenes, k="auto")
        assert result.categories == 3
        assert max(result.silhouettes, key=lambda k: result.silhouettes[k]) == 3
        assert '<li class="best"><b>3</b>' in result.report.read_text()
        with pytest.raises(UsageError, match="20 clusters cannot be made of 18 instances"):
            cluster(scenes, "default", k=None)

    def test_photographs_without_masks(self, scenes: Path) -> None:
        """Objects are discovered; one photograph without any is no failure among many."""
        draw_none().save(scenes / "photos" / "empty.png")
        result = run(configure([str(scenes / "photos")], FAST, k="3"), scenes / "pool")
        assert (result.images, result.categories, result.failed) == (7, 3, 0)

    def test_surest_masks_only(self, scenes: Path) -> None:
        pool = cluster(scenes, "pool", "min_score=0.95", k="1", per_cluster=20)
        assert pool.exemplars == 6
        known = json.loads((pool.out / "pool.json").read_text())["pictures"]
        assert {entry["score"] for entry in known.values()} == {1.0}

    def test_other_instances(self, scenes: Path) -> None:
        kept = (scenes / "photos" / "1.png").read_bytes()
        (scenes / "photos" / "1.png").unlink()
        assert cluster(scenes).failed == 1
        (scenes / "photos" / "1.png").write_bytes(kept)
        with pytest.raises(UsageError, match="exemplars of other instances"):
            cluster(scenes)
        edit(scenes / "run", lambda all_: all_["annotations"].pop())
        with pytest.raises(ConfigError, match="digest"):
            cluster(scenes)

    def test_images_of_another_size(self, scenes: Path) -> None:
        Image.new("RGB", (5, 5)).save(scenes / "photos" / "2.png")
        assert "5x5 px, but its masks have 72x96" in failures(cluster(scenes).out)["2.png"]


def test_stopped_and_gone_on_with(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(pictures)
    embed, cut, calls = InstanceEmbedder.embed, cut_out, []

    def interrupted(function: Any, at: int) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return function(*arguments)

        return call

    monkeypatch.setattr(InstanceEmbedder, "embed", interrupted(embed, 4))
    with pytest.raises(KeyboardInterrupt):
        choose(pictures, "stopped")
    monkeypatch.setattr(InstanceEmbedder, "embed", embed)
    calls.clear()
    # Killed again, while pictures are written.
    monkeypatch.setattr("figureground.stages.exemplars.cut_out", interrupted(cut, 3))
    with pytest.raises(KeyboardInterrupt):
        choose(pictures, "stopped")
    assert not (pictures.parent / "stopped" / "pool.json").exists()
    result = choose(pictures, "stopped")
    assert result.resumed == 5
    assert made(result.out) == made(pictures.parent / "pool")


def test_another_configuration(pictures: Path) -> None:
    choose(pictures)
    with pytest.raises(ConfigError, match="view_size: 96 -> 128"):
        choose(pictures, "pool", "view_size=128")


class TestChangedByAPerson:
    def test_pruned(self, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = choose(pictures).out
        before, digest = load_pool(out), load_pool(out).digest
        assert digest == before.digest
        (out / "exemplars" / "brick" / "a.png").unlink()
        (out / "exemplars" / "blue.png").unlink()
        (out / "exemplars" / "leaf").rename(out / "exemplars" / "tree")
        # Nothing is looked at, and no backbone is loaded.
        monkeypatch.setattr(exemplar_pool, "make_embedder", None)
        pool = load_pool(out)
        assert (pool.names, pool.counts) == (("brick", "tree"), (1, 2))
        torch.testing.assert_close(pool.embeddings[1], before.embeddings[2])
        assert not torch.equal(pool.embeddings[0], before.embeddings[1])
        assert pool.digest != digest
        result = choose(pictures)
        assert (result.exemplars, result.categories, result.removed, result.added) == (3, 2, 2, 0)
        assert "2 removed by hand" in result.report.read_text()
        assert not (out / "exemplars" / "blue.png").exists()

    def test_added(self, pictures: Path) -> None:
        out = choose(pictures).out
        (out / "exemplars" / "brick" / "b.png").unlink()
        folder = out / "exemplars" / "sky"
        folder.mkdir()
        pixels = np.asarray(draw_one(KINDS["pool"], 77))
        content = cut_out(pixels, np.abs(pixels / 255 - KINDS["pool"]).max(2) < 0.2)
        (folder / "mine.png").write_bytes(content)
        before = (out / "pool.json").read_bytes()
        pool = load_pool(out)
        assert pool.names == ("blue", "brick", "leaf", "sky")
        # Reading changes nothing.
        assert (out / "pool.json").read_bytes() == before
        expected = embed_cutout(pool.make_embedder(), *read_cutout(content))
        np.testing.assert_allclose(pool.embeddings[3], expected, atol=2e-3)
        result = choose(pictures)
        assert (result.exemplars, result.added, result.removed) == (5, 1, 1)
        assert "1 added, 1 removed by hand" in result.report.read_text()
        # Now it is known, and the pool the same: a training that has begun with it goes on.
        assert len((out / "pool.json").read_bytes()) > len(before)
        assert load_pool(out).digest == pool.digest

    def test_crops_give_what_their_photographs_gave(self) -> None:
        """A cut-out that a person moves to another pool is the same exemplar there."""
        picture = draw_one(KINDS["leaf"], 5)
        pixels = np.asarray(picture)
        mask = np.abs(pixels / 255 - KINDS["leaf"]).max(2) < 0.2
        embedder = InstanceEmbedder(Colours(), "crop", 64, "cpu")
        [expected] = embedder.embed(pixels, encode(torch.from_numpy(mask)[None]))
        np.testing.assert_array_equal(embed_cutout(embedder, *read_cutout(cut_out(pixels, mask))), expected)

    def test_a_large_cut_out_is_made_smaller(self) -> None:
        mask = np.zeros((40, 3000), dtype=bool)
        mask[10:30, 100:2900] = True
        pixels = np.random.default_rng(0).integers(0, 255, (*mask.shape, 3), dtype=np.uint8)
        part, inside = read_cutout(cut_out(pixels, mask))
        assert part.shape[1] == 1024
        assert abs(inside.mean() - mask.mean()) < 0.1

    def test_pictures_that_cannot_be_used(self, pictures: Path) -> None:
        out = choose(pictures).out
        (out / "exemplars" / "cut.png").write_bytes((out / "exemplars" / "blue.png").read_bytes()[:200])
        Image.new("RGBA", (40, 40), (200, 30, 30, 0)).save(out / "exemplars" / "brick" / "hidden.png")
        Image.new("RGB", (40, 40), (30, 30, 30)).save(out / "exemplars" / "leaf" / "flat.png")
        pool = load_pool(out)
        assert [name for name, _ in pool.skipped] == [
            f"exemplars/{n}" for n in ("brick/hidden.png", "cut.png", "leaf/flat.png")
        ]
        reasons = [reason for _, reason in pool.skipped]
        for reason, text in zip(reasons, ("transparent everywhere", "damaged", "of one colour"), strict=True):
            assert text in reason
        assert pool.counts == (1, 2, 2)
        result = choose(pictures)
        assert (result.exemplars, result.failed) == (5, 3)
        assert failures(out) == dict(pool.skipped)

    def test_emptied(self, pictures: Path) -> None:
        out = choose(pictures).out
        for path in out.glob("exemplars/**/*.png"):
            path.write_bytes(b"")
        with pytest.raises(
            UsageError, match=r"None of the 5 pictures .* The first: exemplars/blue\.png: The file is empty"
        ):
            load_pool(out)
        for path in out.glob("exemplars/**/*.png"):
            path.unlink()
        for look in (lambda: load_pool(out), lambda: choose(pictures)):
            with pytest.raises(UsageError, match=r"is empty: .* has no picture"):
                look()


class TestPoolsThatAreNone:
    def test_nowhere(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"no pool of exemplars at .* no pool\.json"):
            load_pool(tmp_path)

    @pytest.mark.parametrize(
        "change",
        [
            lambda known: known.pop("embedder"),
            lambda known: known["embedder"].update(view="sideways"),
            lambda known: known["embedder"]["backbone"].update(name=3),
            lambda known: known.update(pictures=[]),
            None,
        ],
    )
    def test_damaged(self, pictures: Path, change: Any) -> None:
        file = choose(pictures).out / "pool.json"
        known = json.loads(file.read_text())
        if change is not None:
            change(known)
        file.write_text(json.dumps(known) if change is not None else "{")
        with pytest.raises(ConfigError, match=r"pool\.json is damaged"):
            load_pool(file.parent)

    def test_of_another_backbone(self, pictures: Path) -> None:
        pool = load_pool(choose(pictures).out)
        assert pool.backbone == identify(pool.config, pool.view, pool.size) == "handcrafted, image of 96 px"
        check_backbone(pool, pool.backbone)
        others = [
            identify(BackboneConfig(name="dino_s16"), "image", 96),
            identify(BackboneConfig(), "crop", 96),
            identify(BackboneConfig(), "image", 97),
        ]
        for other in others:
            with pytest.raises(ConfigError, match=f"by {pool.backbone}, but instances by {other}"):
                check_backbone(pool, other)

    def test_identity_is_of_what_decides_the_vectors(self, tmp_path: Path) -> None:
        official = BackboneConfig(name="dino_s16", precision="bf16")
        assert identify(official, "crop", 224) == "dino_s16 keys, crop of 224 px"
        seen = set()
        for content in (b"1", b"2"):
            (tmp_path / "weights.pth").write_bytes(content)
            mine = BackboneConfig(name="dino_s16", weights=str(tmp_path / "weights.pth"))
            seen.add(identify(mine, "crop", 224))
        assert len(seen | {identify(official, "crop", 224)}) == 3
        assert identify(BackboneConfig(name="dino_s16", features="tokens"), "crop", 224) not in seen
        with pytest.raises(UsageError, match="dinosaur"):
            make_embedder(BackboneConfig(name="dinosaur"), "crop", 224, "cpu")


@pytest.mark.parametrize(
    ("assignments", "options", "message"),
    [
        ([], {"run": "RUN", "method": "background"}, "method says how objects are found, but those of the run"),
        (["refine.crf.steps=3"], {"run": "RUN"}, "refine says how"),
        ([], {"k": "many"}, "number of clusters or `auto`"),
        (["per_image=0"], {}, "per_image"),
        (["view=sideways"], {}, "view"),
    ],
)
def test_what_is_not_understood(assignments: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configure(["x"], assignments, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"backbone": {"name": "dinosaur"}}, "dinosaur"), ({"device": "tpu"}, "tpu"), ({"run": "/nowhere"}, "/nowhere")],
)
def test_nothing_is_left_behind(pictures: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose(pictures, **options)
    assert not (pictures.parent / "pool").exists()


def test_runs_without_masks(scenes: Path) -> None:
    edit(scenes / "run", lambda all_: all_["annotations"].clear())
    with pytest.raises(UsageError, match="has no mask to choose from"):
        cluster(scenes)


def test_the_page_needs_nothing_but_itself(pictures: Path) -> None:
    (pictures / "brick").rename(pictures / "<img src=x>")
    page = choose(pictures).report.read_text()
    assert page.count('class="sheet"') == 3
    assert page.count("data:image/webp;base64,") == 5
    assert "handcrafted, image of 96 px" in page
    assert "<img src=x>" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
