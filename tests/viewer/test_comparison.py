"""The report of a comparison, read back the way a browser reads it."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from figureground.errors import RunError
from figureground.viewer import write_comparison
from tests.viewer.test_report import HOSTILE, Page, load_image, make_run

METHODS = ["background", "maskcut:reference", "centred_box"]


def make_comparison(
    run: Path, names: list[str], truth: bool = True, size: tuple[int, int] = (90, 120), **facts: Any
) -> None:
    """A comparison in which the first method finds the truth, the second nothing, the third the whole image."""
    make_run(run, names, size, config={"methods": METHODS, "settings": {"maskcut:reference": {"tau": 0.15}}})
    content = json.loads((run / "annotations.json").read_text())
    (run / "annotations.json").unlink()
    (run / "annotations").mkdir()
    found = {
        "background": content["annotations"],
        "maskcut-reference": [],
        "centred_box": [
            {**each, "segmentation": _encode(np.ones(size, np.uint8)), "bbox": [0, 0, size[1], size[0]], "score": 1.0}
            for each in content["annotations"]
        ],
    }
    for file, annotations in found.items():
        (run / "annotations" / f"{file}.json").write_text(json.dumps({**content, "annotations": annotations}))
    if truth:
        annotations = [{key: value for key, value in each.items() if key != "score"} for each in found["background"]]
        (run / "truth.json").write_text(json.dumps({**content, "annotations": annotations}))
    methods = [
        {
            "name": name,
            "baseline": name == "centred_box",
            "annotations": f"annotations/{name.replace(':', '-')}.json",
            "objects": len(found[name.replace(":", "-")]),
            "objects_per_image": 1.0,
            "ms": {"shared": 10.0, "propose": 20.0, "refine": 70.0, "total": 100.0},
            **({"measures": _measures(index)} if truth else {}),
        }
        for index, name in enumerate(METHODS)
    ]
    comparison = {
        "stage": "compare",
        "images": len(names),
        "methods": methods,
        "left_out": {"attention": "It needs <b>attention</b>."},
        "truth": {"path": HOSTILE[0], "images": len(names), "objects": len(names), "crowd": 0, "with_masks": True}
        if truth
        else None,
    }
    (run / "comparison.json").write_text(json.dumps({**comparison, **facts}))


def _encode(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    runs: Any = coco_mask.encode(np.asfortranarray(mask))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


def _measures(index: int) -> dict[str, dict[str, float | None]]:
    measures: dict[str, dict[str, float | None]] = {}
    for name in ("corloc", "iou", "box_ap50", "mask_ap50"):
        measures[name] = {"value": 50.0 - 20 * index, "low": 40.0 - 20 * index, "high": 61.25 - 20 * index}
        if index:
            measures[name] |= {"difference": -20.0 * index, "difference_low": -30.0, "difference_high": 5.0 - 8 * index}
    measures["mask_ar10"] = {"value": None, "low": None, "high": None, "difference": None}
    return measures


def read(report: Path) -> Page:
    return Page(report.read_text("utf-8"))


def data_of(page: Page) -> dict[str, Any]:
    return json.loads("".join(page.text_of(id="data")))


def test_page_is_self_contained_and_hostile_names_are_text(tmp_path: Path) -> None:
    make_comparison(tmp_path, HOSTILE)
    lines = [{"path": name, "error": f"Cannot read {name}"} for name in HOSTILE]
    (tmp_path / "failures.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    report = write_comparison(tmp_path, load_image=load_image)
    assert report == tmp_path / "report.html"
    page = read(report)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert re.match(r"data:|#|$", attributes.get(name) or "")
        assert not any(name.startswith("on") for name in attributes)
    assert "default-src 'none'" in next(meta["content"] or "" for meta in page.named("meta") if meta.get("http-equiv"))
    assert len(page.named("script")) == 2
    readable = [name.replace("\udcff", "\\udcff") for name in HOSTILE]
    assert page.text_of(**{"class": "name"}) == readable
    assert [image["name"] for image in data_of(page)["images"]] == HOSTILE
    text = "".join(text for _, text in page.texts)
    for expected in (HOSTILE[0], "It needs <b>attention</b>.", f"Cannot read {readable[1]}", "maskcut:reference.tau"):
        assert expected in text


def test_what_the_methods_found_and_how_they_agree(tmp_path: Path) -> None:
    make_comparison(tmp_path, ["a.png", "b.png"])
    data = data_of(read(write_comparison(tmp_path, load_image=load_image)))
    assert [method["name"] for method in data["methods"]] == METHODS
    assert [method["baseline"] for method in data["methods"]] == [False, False, True]
    for image in data["images"]:
        assert [len(instances) for instances in image["found"]] == [1, 0, 1]
        assert image["truth"][0]["score"] is None
        assert image["found"][0][0]["score"] == 0.5
        share = image["truth"][0]["share"]
        # The first with the second, the first with the third, the second with the third.
        assert image["agreement"] == pytest.approx([0, share, 0], abs=0.002)
        assert image["iou"] == pytest.approx([1, 0, share], abs=0.002)


def test_the_table(tmp_path: Path) -> None:
    make_comparison(tmp_path, ["a.png"])
    page = read(write_comparison(tmp_path, load_image=load_image))
    text = " ".join(text.strip() for _, text in page.texts)
    for expected in ("CorLoc", "50.0", "40.0 \N{EN DASH} 61.2", "AP50", "▼", "100", "Left out: attention"):
        assert expected in text
    titles = [cell["title"] for cell in page.named("td") if cell.get("title")]
    assert "-20.0 against background (-30.0 to -3.0)" in titles
    assert "The truth has no such object." in titles
    classes = [cell["class"] or "" for cell in page.named("td")]
    assert sum("best" in name for name in classes) == 4


def test_without_a_truth(tmp_path: Path) -> None:
    make_comparison(tmp_path, ["a.png"], truth=False)
    page = read(write_comparison(tmp_path, load_image=load_image))
    [image] = data_of(page)["images"]
    assert (image["truth"], image["iou"]) == (None, None)
    assert [option["value"] for option in page.named("option")] == ["order", "disagreement", "agreement"]
    assert "How fast" in [text for _, text in page.texts]


def test_a_truth_without_masks_is_shown_by_its_boxes(tmp_path: Path) -> None:
    make_comparison(tmp_path, ["a.png", "b.png"])
    content = json.loads((tmp_path / "truth.json").read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    content["images"] = content["images"][:1]
    content["annotations"] = content["annotations"][:1]
    (tmp_path / "truth.json").write_text(json.dumps(content))
    first, second = data_of(read(write_comparison(tmp_path, load_image=load_image)))["images"]
    assert first["truth"][0]["mask"] is None
    assert first["iou"] is None
    # Of the second nobody knows what there is.
    assert second["truth"] is None


def test_a_long_run_is_sampled_evenly_and_says_so(tmp_path: Path) -> None:
    make_comparison(tmp_path, [f"{i:02}.png" for i in range(9)])
    page = read(write_comparison(tmp_path, load_image=load_image, max_images=3))
    assert [image["name"] for image in data_of(page)["images"]] == ["00.png", "04.png", "08.png"]
    assert page.text_of(**{"class": "sample"}) == ["Showing 3 of 9 images, evenly spread over the run."]


def test_an_image_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    make_comparison(tmp_path, ["gone.png", "b.png"])
    (tmp_path / "0.png").unlink()
    page = read(write_comparison(tmp_path, load_image=load_image))
    assert len(page.named("img")) == 1
    [problem] = page.text_of(**{"class": "problem"})
    assert "0.png" in problem


def test_what_is_missing_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"comparison\.json is missing") as caught:
        write_comparison(tmp_path, load_image=load_image)
    assert caught.value.remedy
    make_comparison(tmp_path, ["a.png"])
    (tmp_path / "annotations" / "centred_box.json").unlink()
    with pytest.raises(RunError, match=r"centred_box\.json is missing"):
        write_comparison(tmp_path, load_image=load_image)


def test_the_page_works_in_a_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium or google-chrome on the path")
    make_comparison(tmp_path, HOSTILE[:2])
    report = write_comparison(tmp_path, load_image=load_image)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1400,2400", "--virtual-time-budget=10000", "--dump-dom", f"{report.as_uri()}#image-2:0"]
    dom = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout.decode()
    assert dom.count('class="tile"') == 2 * 5
    # On each image the truth, the first method and the whole image; once more the first method in the large view.
    outlines = re.findall(r'<path class="mask" d="([^"]*)"', dom)
    assert [outline.count("Z") for outline in outlines] == [2, 2, 1, 2, 2, 1, 2]
    assert "0.50 · IoU 1.00" in dom
    assert "nothing · IoU 0.00" in dom
    assert "disagreement 1.00 · mean IoU 0.50" in dom
    assert '<h2 id="title">&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;.png</h2>' in dom
