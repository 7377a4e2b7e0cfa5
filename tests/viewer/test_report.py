"""The report of a run, read back the way a browser reads it."""

import errno
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from figureground.errors import ImageError, RunError
from figureground.viewer import write_report

HOSTILE = [
    "<img src=x onerror=alert(1)>.jpg",
    "</script><script>alert(1)</script>.png",
    "<!--<script>.png",
    "\"quotes' & {{ 7 * 7 }} {% raw %}.png",
    "line\nbreak\u2028separator.png",
    "smile 😀 \udcff.png",
]
VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """Elements with their attributes, the text of each kind of element, and whether everything was closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[dict[str, str | None], str]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.texts.append((self.open[-1][1], data))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text_of(self, **wanted: str) -> list[str]:
        return [text for attributes, text in self.texts if wanted.items() <= attributes.items()]

    @property
    def data(self) -> list[dict]:
        return json.loads("".join(self.text_of(id="data")))


def load_image(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def make_run(run: Path, names: list[str], size: tuple[int, int] = (300, 600), **optional) -> list[np.ndarray]:
    """A run with one image, and one mask with a hole, for each name; returns the masks."""
    run.mkdir(parents=True, exist_ok=True)
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    images, annotations, masks = [], [], []
    for i, name in enumerate(names):
        distance = np.hypot(rows - height / 2, columns - width / 3 - i)
        mask = (distance < height / 3) & (distance > height / 8)
        photograph = np.stack([rows % 256, columns % 256, mask * 255], axis=2).astype(np.uint8)
        Image.fromarray(photograph).save(run / f"{i}.png")
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        images.append({"id": i + 1, "file_name": name, "path": str(run / f"{i}.png"), "width": width, "height": height})
        annotations.append(
            {
                "id": i + 1,
                "image_id": i + 1,
                "category_id": 1,
                "bbox": coco_mask.toBbox(rle).tolist(),
                "area": int(mask.sum()),
                "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                "score": 0.5,
                "iscrowd": 0,
            }
        )
        masks.append(mask)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (run / "annotations.json").write_text(json.dumps(content))
    for file, value in optional.items():
        (run / f"{file}.json").write_text(json.dumps(value))
    return masks


def edit(run: Path, change) -> None:
    """Changes ``annotations.json`` in place."""
    path = run / "annotations.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def read(report: Path) -> Page:
    return Page(report.read_text("utf-8"))


def test_page_is_self_contained(tmp_path):
    make_run(tmp_path, ["a.png", "b.png"])
    report = write_report(tmp_path, load_image=load_image)
    assert report == tmp_path / "report.html"
    page = read(report)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert re.match(r"data:|#|$", attributes.get(name) or "")
        assert not any(name.startswith("on") for name in attributes)
    policy = next(meta["content"] for meta in page.named("meta") if meta.get("http-equiv"))
    assert "default-src 'none'" in policy
    style = "".join(text for text in re.findall(r"<style>(.*?)</style>", report.read_text("utf-8"), re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style


def test_hostile_names_and_messages_are_text(tmp_path):
    config = {"images": HOSTILE[1], "maskcut": {"tau": 0.15, HOSTILE[0]: HOSTILE[2]}}
    make_run(tmp_path, HOSTILE, config=config, environment={"cpu": HOSTILE[0]}, result={"stage": HOSTILE[1]})
    lines = [{"path": name, "error": f"Cannot read {name}"} for name in HOSTILE]
    (tmp_path / "failures.jsonl").write_text("\n".join(json.dumps(line, ensure_ascii=True) for line in lines))
    report = write_report(tmp_path, load_image=load_image)
    page = read(report)
    assert len(page.named("script")) == 2
    assert all(image["src"].startswith("data:image/webp;base64,") for image in page.named("img"))
    assert [image["name"] for image in page.data] == HOSTILE
    readable = [name.replace("\udcff", "\\udcff") for name in HOSTILE]
    assert page.text_of(**{"class": "name"}) == readable
    assert [span["title"] for span in page.named("span") if span.get("class") == "name"] == readable
    text = "".join(text for _, text in page.texts)
    for expected in (*readable, f"Cannot read {readable[0]}", f"maskcut.{HOSTILE[0]}"):
        assert expected in text
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', report.read_text("utf-8"), re.DOTALL)
    assert block is not None
    assert block[1].isascii()
    assert not set("<>&'") & set(block[1])


def test_masks_and_boxes_are_those_of_the_run_at_the_size_of_the_thumbnail(tmp_path):
    masks = make_run(tmp_path, ["a.png", "b.png"], size=(300, 600))
    for image, mask in zip(read(write_report(tmp_path, load_image=load_image)).data, masks, strict=True):
        assert image["size"] == [600, 300]
        assert image["thumbnail"] == [480, 240]
        (instance,) = image["instances"]
        small = coco_mask.decode({"size": [240, 480], "counts": instance["mask"].encode()}).astype(bool)
        nearest = mask[(np.arange(240) * 2 + 1) * 300 // 480][:, (np.arange(480) * 2 + 1) * 600 // 960]
        assert (small & nearest).sum() / (small | nearest).sum() > 0.97
        y, x = np.nonzero(small)
        assert instance["box"] == pytest.approx([x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1], abs=1.0)
        assert instance["share"] == pytest.approx(mask.mean())
        assert instance["area"] == mask.sum()
        assert instance["score"] == 0.5


def test_a_small_image_is_not_enlarged_and_its_mask_is_exact(tmp_path):
    (mask,) = make_run(tmp_path, ["a.png"], size=(50, 70))
    (image,) = read(write_report(tmp_path, load_image=load_image)).data
    assert image["thumbnail"] == [70, 50]
    small = coco_mask.decode({"size": [50, 70], "counts": image["instances"][0]["mask"].encode()})
    assert np.array_equal(small, mask)


def test_a_mask_thinner_than_a_thumbnail_pixel_stays_visible(tmp_path):
    make_run(tmp_path, ["a.png"], size=(1000, 2000))

    def thin(content):
        mask = np.zeros((1000, 2000), np.uint8, order="F")
        mask[500, 100:900] = 1
        content["annotations"][0]["segmentation"]["counts"] = coco_mask.encode(mask)["counts"].decode()

    edit(tmp_path, thin)
    (image,) = read(write_report(tmp_path, load_image=load_image)).data
    assert coco_mask.area({"size": [240, 480], "counts": image["instances"][0]["mask"].encode()}) > 150


def test_a_long_run_is_sampled_evenly_and_says_so(tmp_path):
    make_run(tmp_path, [f"{i:03}.png" for i in range(21)], size=(12, 16))
    page = read(write_report(tmp_path, load_image=load_image, max_images=5))
    assert [image["name"] for image in page.data] == ["000.png", "005.png", "010.png", "015.png", "020.png"]
    assert page.text_of(**{"class": "sample"}) == ["Showing 5 of 21 images, evenly spread over the run."]
    whole = read(write_report(tmp_path, load_image=load_image))
    assert len(whole.data) == 21
    assert whole.text_of(**{"class": "sample"}) == []


def test_numbers_and_settings_are_shown(tmp_path):
    result = {
        "stage": "label",
        "failed": 1234,
        "skipped": 2,
        "seconds": 125.0,
        "images_per_s": 0.472,
        "stage_seconds": {"decode": 1.0, "features": 3.0, "write": 0.0},
    }
    make_run(
        tmp_path, ["a.png"], result=result, config={"device": "cpu", "maskcut": {"tau": 0.15, "crf": {"steps": 10}}}
    )
    text = " ".join(text.strip() for _, text in read(write_report(tmp_path, load_image=load_image)).texts)
    for expected in ("1,234", "2 min 5 s", "0.47 images/s", "maskcut.crf.steps", "features", "75%"):
        assert expected in text


def test_only_the_annotations_are_needed(tmp_path):
    make_run(tmp_path, ["a.png"])
    page = read(write_report(tmp_path, load_image=load_image))
    assert page.named("details") == []
    assert page.text_of(**{"class": "failures"}) == []
    edit(tmp_path, lambda content: content["annotations"][0].pop("score"))
    page = read(write_report(tmp_path, load_image=load_image))
    assert page.data[0]["instances"][0]["score"] is None
    assert not any(field.get("name") == "score" for field in page.named("input"))


def test_a_run_without_images_or_without_objects_has_a_page(tmp_path):
    make_run(tmp_path, ["a.png"])
    edit(tmp_path, lambda content: content["annotations"].clear())
    assert read(write_report(tmp_path, load_image=load_image)).data[0]["instances"] == []
    edit(tmp_path, lambda content: content["images"].clear())
    assert "This run has no images." in read(write_report(tmp_path, load_image=load_image)).text_of(
        **{"class": "nothing"}
    )


def test_an_image_that_cannot_be_read_is_a_card_that_says_so(tmp_path):
    make_run(tmp_path, ["gone.png", "broken.png", "replaced.png", "good.png"], size=(30, 40))
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").write_bytes(b"not an image")
    Image.new("RGB", (9, 7)).save(tmp_path / "2.png")
    page = read(write_report(tmp_path, load_image=load_image))
    assert len(page.named("img")) == 1
    gone, broken, replaced = page.text_of(**{"class": "problem"})
    assert "0.png" in gone
    assert "1.png" in broken
    assert "it was 40 by 30 pixels, now it is 9 by 7" in replaced

    def refuse(path: str) -> np.ndarray:
        raise ImageError(f"{path} is <b>bad</b>.", "Replace it.")

    problems = read(write_report(tmp_path, load_image=refuse)).text_of(**{"class": "problem"})
    assert len(problems) == 4
    assert problems[0].endswith("is <b>bad</b>.\nReplace it.")


def test_failures_are_listed_even_when_the_last_line_is_cut(tmp_path):
    make_run(tmp_path, ["a.png"])
    whole = json.dumps({"path": "x\u2028y.jpg", "error": "It ends early."}, ensure_ascii=False)
    (tmp_path / "failures.jsonl").write_text(f'{whole}\n{{"path": "z.j', "utf-8")
    text = [text for _, text in read(write_report(tmp_path, load_image=load_image)).texts]
    for expected in ("x\u2028y.jpg", "It ends early.", '{"path": "z.j'):
        assert expected in text
    (tmp_path / "failures.jsonl").write_text(f"{whole}\n" * 203, "utf-8")
    assert "… and 3 more." in [text for _, text in read(write_report(tmp_path, load_image=load_image)).texts]


def test_what_cannot_be_understood_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(RunError, match=r"no annotations\.json") as caught:
        write_report(tmp_path, load_image=load_image)
    assert caught.value.remedy
    make_run(tmp_path, ["a.png"])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json is not JSON"):
        write_report(tmp_path, load_image=load_image)
    (tmp_path / "annotations.json").write_text('{"images": 3}')
    with pytest.raises(RunError, match="not a COCO file"):
        write_report(tmp_path, load_image=load_image)


def test_an_interrupted_report_leaves_the_old_one(tmp_path, monkeypatch):
    make_run(tmp_path, ["a.png", "b.png"])
    before = write_report(tmp_path, load_image=load_image).read_bytes()
    files = sorted(tmp_path.iterdir())

    def interrupt(path: str) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path, load_image=interrupt)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="disk is full"):
        write_report(tmp_path, load_image=load_image)
    assert (tmp_path / "report.html").read_bytes() == before
    assert sorted(tmp_path.iterdir()) == files


def test_the_page_works_in_a_browser(tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium or google-chrome on the path")
    make_run(tmp_path, HOSTILE)
    report = write_report(tmp_path, load_image=load_image)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1400,1400", "--virtual-time-budget=3000", "--dump-dom", f"{report.as_uri()}#image-2"]
    dom = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout.decode()
    assert "6 objects in 6 images." in dom
    # One drawing on each card and one in the large view; each mask is an outer and an inner boundary.
    outlines = re.findall(r'<path class="mask" d="([^"]*)"', dom)
    assert [outline.count("Z") for outline in outlines] == [2] * 7
    assert '<h2 id="title">&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;.png</h2>' in dom
