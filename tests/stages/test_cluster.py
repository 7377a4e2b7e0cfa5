"""`cluster` from the masks of a run to kinds with names."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from figureground.data.coco import annotate, write_coco
from figureground.data.label_file import LabelFile
from figureground.errors import ConfigError, ImageError, RunError, UsageError
from figureground.ops.masks import masks_to_boxes
from figureground.ops.rle import encode
from figureground.stages.cluster import ClusterResult, configure, run
from figureground.stages.instance_features import InstanceEmbedder
from figureground.structures import Instances, PatchFeatures
from tests.stages.labelled import edit

KINDS = {"brick": (0.8, 0.25, 0.15), "leaf": (0.15, 0.7, 0.2), "pool": (0.2, 0.3, 0.9)}
SIZE = (72, 96)
IMAGES, FAST = 6, ["size=96", "shard_size=2"]


def draw(index: int) -> tuple[np.ndarray, torch.Tensor]:
    """One disc of each kind, on grey; kinds differ in colour, and in place from image to image."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    picture = 0.5 + rng.normal(scale=0.02, size=(*SIZE, 3))
    masks = []
    for slot, colour in zip(rng.permutation(3), KINDS.values(), strict=True):
        shape = (y - rng.uniform(25, 45)) ** 2 + (x - 16 - 32 * slot) ** 2 < rng.uniform(9, 14) ** 2
        picture[shape] = np.array(colour) + rng.normal(scale=0.02, size=(shape.sum(), 3))
        masks.append(shape)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8), torch.from_numpy(np.array(masks))


def write_scenes(folder: Path) -> Path:
    """Pictures in ``folder/photos``, their masks in ``folder/run`` and the truth, with classes, in ``truth.json``."""
    (folder / "photos").mkdir(parents=True)
    (folder / "run").mkdir()
    images = []
    for index in range(IMAGES):
        pixels, masks = draw(index)
        Image.fromarray(pixels).save(folder / "photos" / f"{index}.png")
        ones = torch.ones(3, dtype=torch.int64)
        images.append(
            annotate(f"{index}.png", SIZE, Instances(masks, masks_to_boxes(masks), torch.linspace(1, 0.8, 3), ones))
        )
    write_coco(folder / "run" / "annotations.json", lambda: images, "drawn")
    (folder / "run" / "result.json").write_text(json.dumps({"image_root": str(folder / "photos")}))
    for image in images:
        for name, annotation in zip(KINDS, image["annotations"], strict=True):
            annotation["name"] = name
    write_coco(folder / "truth.json", lambda: images, "truth")
    return folder


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path)


def cluster(scenes: Path, out: str = "out", *more: str, **options: Any) -> ClusterResult:
    options = {"k": "3", **options}
    return run(configure(scenes / "run", [*FAST, *more], **options), scenes / out)


def content(path: Path) -> Any:
    return json.loads(path.read_text())


def made(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("annotations.json", "clusters.json", "failures.jsonl")}


def test_kinds_are_found_and_measured(scenes: Path) -> None:
    result = cluster(scenes, truth=str(scenes / "truth.json"))
    assert result.measured is not None
    assert (result.images, result.instances, result.clusters, result.failed) == (6, 18, 3, 0)
    assert {key: result.measured[key] for key in ("purity", "nmi", "matched", "instances", "classes")} == {
        "purity": 100,
        "nmi": 100,
        "matched": 18,
        "instances": 18,
        "classes": 3,
    }
    written, before = (content(scenes / name / "annotations.json") for name in ("out", "run"))
    assert written["images"] == before["images"]
    assert before["categories"] == [{"id": 1, "name": "object"}]
    assert written["categories"] == [{"id": number, "name": f"cluster {number}"} for number in (1, 2, 3)]
    for new, old in zip(written["annotations"], before["annotations"], strict=True):
        assert new.pop("cluster") == new.pop("category_id")
        old.pop("category_id")
        assert new == old
    # Others can read it, with its categories.
    labels = LabelFile(scenes / "out" / "annotations.json")
    assert {entry["category_id"] for image in labels for entry in image["annotations"]} == {1, 2, 3}
    facts = content(scenes / "out" / "result.json")
    assert (facts["stage"], facts["clusters"], facts["image_root"]) == ("cluster", 3, str(scenes / "photos"))


def test_number_of_clusters_by_the_silhouette(scenes: Path) -> None:
    result = cluster(scenes, k="auto")
    assert result.clusters == 3
    assert list(result.silhouettes) == [2, 3, 4, 5, 6, 8, 10, 12, 15]
    assert max(result.silhouettes, key=lambda k: result.silhouettes[k]) == 3
    assert '<li class="best"><b>3</b>' in (scenes / "out" / "report.html").read_text()


def test_a_person_names_and_drops(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(scenes)
    clusters = made(scenes / "out")["clusters.json"]
    # Nothing is looked at again, and nothing clustered anew.
    monkeypatch.setattr(InstanceEmbedder, "embed", None)
    monkeypatch.setattr("figureground.stages.cluster.group", None)
    (scenes / "out" / "names.json").write_text(json.dumps({"1": "Ding & <b>", "2": None, "3": "Ding & <b>"}))
    result = cluster(scenes)
    assert (result.instances, result.clusters, result.named, result.dropped, result.resumed) == (12, 3, 2, 1, 6)
    written = content(scenes / "out" / "annotations.json")
    assert written["categories"] == [{"id": 1, "name": "Ding & <b>"}]
    assert {(entry["category_id"], entry["cluster"]) for entry in written["annotations"]} == {(1, 1), (1, 3)}
    assert len(written["images"]) == 6
    assert [entry["id"] for entry in written["annotations"]] == list(range(1, 13))
    assert made(scenes / "out")["clusters.json"] == clusters
    page = (scenes / "out" / "report.html").read_text()
    assert "Ding &amp; &lt;b&gt;" in page
    assert "<b>Ding" not in page
    assert "Ding & <b>" not in page
    # The truth measures clusters, not names.
    measured = cluster(scenes, truth=str(scenes / "truth.json")).measured
    assert measured is not None
    assert (measured["purity"], measured["instances"]) == (100, 18)


def test_the_page_needs_nothing_but_itself(scenes: Path) -> None:
    odd = scenes / "photos" / "<img src=x>.png"
    (scenes / "photos" / "0.png").rename(odd)
    edit(scenes / "run", lambda all_: all_["images"][0].update(file_name=odd.name))
    cluster(scenes, truth=str(scenes / "truth.json"))
    page = (scenes / "out" / "report.html").read_text()
    assert page.count('class="sheet"') == 3
    assert page.count("data:image/webp;base64,") == 18
    assert "100% brick by the truth" in page
    assert "<img src=x>" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)


def test_stopped_and_gone_on_with(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(scenes)
    original, looked = InstanceEmbedder.embed, []

    def embed(self: InstanceEmbedder, *arguments: Any) -> np.ndarray:
        looked.append(1)
        if len(looked) == 4:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(InstanceEmbedder, "embed", embed)
    with pytest.raises(KeyboardInterrupt):
        cluster(scenes, "stopped")
    assert not (scenes / "stopped" / "annotations.json").exists()
    result = cluster(scenes, "stopped")
    # A whole shard of two images was done; the two of the next are looked at again.
    assert (result.resumed, len(looked)) == (2, 8)
    assert made(scenes / "stopped") == made(scenes / "out")


def test_another_configuration_or_other_masks(scenes: Path) -> None:
    cluster(scenes)
    with pytest.raises(ConfigError, match="k: 3 -> 4"):
        cluster(scenes, k="4")
    edit(scenes / "run", lambda all_: all_["annotations"].pop())
    with pytest.raises(ConfigError, match="digest"):
        cluster(scenes)


def test_images_that_cannot_be_used(scenes: Path) -> None:
    kept = (scenes / "photos" / "1.png").read_bytes()
    (scenes / "photos" / "1.png").unlink()
    Image.new("RGB", (5, 5)).save(scenes / "photos" / "2.png")
    result = cluster(scenes)
    assert (result.images, result.instances, result.failed) == (4, 12, 2)
    lines = (scenes / "out" / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["1.png", "2.png"]
    assert "5x5 px, but its masks have 72x96" in lines[1]
    # One that is back belongs to a cluster like the others, but names are of what was seen before.
    (scenes / "photos" / "1.png").write_bytes(kept)
    (scenes / "out" / "names.json").write_text('{"1": "x"}')
    with pytest.raises(UsageError, match="names clusters of other instances"):
        cluster(scenes)
    (scenes / "out" / "names.json").unlink()
    assert cluster(scenes).instances == 15


def test_images_that_are_nowhere(scenes: Path) -> None:
    (scenes / "photos").rename(scenes / "moved")
    with pytest.raises(RunError, match=r"None of the images .* 0\.png"):
        cluster(scenes)
    assert cluster(scenes, "out", f"images={scenes / 'moved'}").instances == 18


def test_images_without_masks_stay(scenes: Path) -> None:
    def empty(all_: Any) -> None:
        all_["annotations"] = [entry for entry in all_["annotations"] if entry["image_id"] != 3]

    edit(scenes / "run", empty)
    (scenes / "photos" / "2.png").unlink()
    result = cluster(scenes)
    assert (result.images, result.instances, result.failed) == (6, 15, 0)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda a: a["annotations"].clear(), {}, "has no mask to cluster"),
        (lambda a: [entry.pop("segmentation") for entry in a["annotations"]], {}, "`segmentation` is missing"),
        (lambda a: a["images"][1].update(file_name="0.png"), {}, "lists an image twice"),
        (None, {"k": "19"}, "19 clusters cannot be made of 18 instances"),
        (None, {"min_score": 0.95, "k": "7"}, "7 clusters cannot be made of 6 instances"),
        (None, {"k": "many"}, "number of clusters or `auto`"),
        (None, {"k": "0"}, "greater than or equal to 1"),
        (None, {"images": "/nowhere"}, "no file or folder '/nowhere'"),
        (None, {"backbone": {"name": "dinosaur"}}, "dinosaur"),
        (None, {"device": "tpu"}, "tpu"),
    ],
)
def test_what_cannot_be_clustered(scenes: Path, change: Any, options: dict[str, Any], message: str) -> None:
    if change:
        edit(scenes / "run", change)
    with pytest.raises(UsageError, match=message):
        cluster(scenes, **options)
    assert not (scenes / "out").exists()


def test_no_run(scenes: Path) -> None:
    with pytest.raises(UsageError, match=r"has no annotations\.json"):
        run(configure(scenes / "photos"), scenes / "out")
    (scenes / "run" / "result.json").unlink()
    with pytest.raises(UsageError, match="tells where its images are"):
        cluster(scenes)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ('{"4": "dog"}', "clusters that are not there: 4"),
        ('{"0": "dog"}', "clusters that are not there: 0"),
        ('{"dog": 1}', "'dog' is not the number of a cluster"),
        ('{"1": ""}', "the name of cluster 1 is not a text"),
        ("[]", "not an object"),
        ("{", "cannot be read"),
        ('{"1": null, "2": null, "3": null}', "drops all 3 clusters"),
    ],
)
def test_wrong_names(scenes: Path, names: str, message: str) -> None:
    cluster(scenes)
    before = made(scenes / "out")
    (scenes / "out" / "names.json").write_text(names)
    with pytest.raises(UsageError, match=message):
        cluster(scenes)
    assert made(scenes / "out") == before


class TestTruth:
    def test_without_classes(self, scenes: Path) -> None:
        path = scenes / "run" / "annotations.json"
        with pytest.raises(UsageError, match="its objects have no class"):
            cluster(scenes, truth=str(path))
        assert not (scenes / "out").exists()

    def test_classes_of_categories_and_original_ids(self, scenes: Path) -> None:
        truth = content(scenes / "truth.json")
        for entry in truth["annotations"]:
            entry["orig_category_id"] = list(KINDS).index(entry.pop("name")) + 7
        (scenes / "ids.json").write_text(json.dumps(truth))
        truth["categories"] = [{"id": 7 + index, "name": name} for index, name in enumerate(KINDS)]
        for entry in truth["annotations"]:
            entry["category_id"] = entry.pop("orig_category_id")
        (scenes / "categories.json").write_text(json.dumps(truth))
        majorities = []
        for name in ("ids", "categories"):
            measured = cluster(scenes, truth=str(scenes / f"{name}.json")).measured
            assert measured is not None
            assert measured["purity"] == 100
            majorities.append({label for label, _ in measured["majorities"].values()})
        assert majorities == [{"7", "8", "9"}, set(KINDS)]

    def test_crowds_and_what_is_elsewhere_do_not_count(self, scenes: Path) -> None:
        truth = content(scenes / "truth.json")
        truth["annotations"][0]["iscrowd"] = 1
        truth["annotations"][1].update(bbox=[0, 0, 4, 4], segmentation=[[0, 0, 4, 0, 4, 4, 0, 4]])
        truth["annotations"] = [entry for entry in truth["annotations"] if entry["image_id"] < 3]
        (scenes / "some.json").write_text(json.dumps(truth))
        measured = cluster(scenes, truth=str(scenes / "some.json")).measured
        assert measured is not None
        assert (measured["matched"], measured["instances"]) == (4, 18)


class TestFeatures:
    """A backbone whose only feature is the colour of a patch tells what was looked at."""

    class Colours(torch.nn.Module):
        patch_size, width = 8, 3

        def forward(self, images: torch.Tensor) -> Any:
            means = torch.nn.functional.avg_pool2d(images, 8).permute(0, 2, 3, 1)
            return PatchFeatures(means, 8, (images.shape[2], images.shape[3]))

    @pytest.mark.parametrize("view", ["crop", "image"])
    def test_mean_inside_the_mask(self, view: Any) -> None:
        pixels, masks = draw(0)
        masks = torch.cat([masks, torch.zeros(1, *SIZE, dtype=torch.bool)])
        masks[3, 70, 95] = True
        embedder = InstanceEmbedder(self.Colours(), view, 96, "cpu")
        found = embedder.embed(pixels, encode(masks))
        assert found.shape == (4, 3)
        # Instances do not depend on how many there are.
        np.testing.assert_allclose(embedder.embed(pixels, encode(masks.repeat(5, 1, 1))), np.tile(found, (5, 1)))
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
        for vector, colour in zip(found, KINDS.values(), strict=False):
            expected = np.array(colour) / np.linalg.norm(colour)
            # Patches at the border show some of the grey around.
            assert vector @ expected > (0.97 if view == "crop" else 0.93)
            assert vector.argmax() == expected.argmax()

    def test_features_that_cannot_be_made(self) -> None:
        class Damaged(torch.nn.Module):
            patch_size, width = 8, 3

            def forward(self, images: torch.Tensor) -> Any:
                raise ValueError("NaN")

        pixels, masks = draw(0)
        with pytest.raises(ImageError, match="No features could be made"):
            InstanceEmbedder(Damaged(), "crop", 64, "cpu").embed(pixels, encode(masks))
