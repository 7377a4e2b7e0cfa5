"""Render the tables of README.md and of the pages in docs/ from `results/`.

python -m benchmarks.render_tables           # rewrites them
"""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


PAGES = (ROOT / "README.md", ROOT / "docs" / "embedded.md")


def main() -> None:
    for page in PAGES:
        page.write_text(render(page.read_text("utf-8")), "utf-8")


def render(text: str) -> str:
    """Replace what stands between ``<!-- table: NAME -->`` and ``<!-- /table -->``."""
    tables = (methods, embedded, solver, label, learning, exemplars, semantic)
    for table in tables:
        pattern = rf"(<!-- table: {table.__name__} -->\n).*?(<!-- /table -->)"
        if re.search(pattern, text, flags=re.DOTALL) is None:
            continue
        block = table()
        text = re.sub(pattern, lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text, flags=re.DOTALL)
    return text


_OURS = {"background": " (what `label` does)"}


def methods() -> str:
    rows = _read("methods")
    by_method: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        by_method.setdefault((row["refine"], row["method"]), {})[row["set"]] = row
    head = ["method", "CorLoc voc100", "CorLoc coco128", "mask AP50 / AR10 coco128", "IoU weizmann", "IoU davis8", "ms"]
    ranked = sorted(by_method.items(), key=lambda item: -float(item[1]["voc100"]["corloc"]))
    lines = []
    for (refine, method), sets in ranked:
        coco = sets["coco128"]
        lines.append(
            [
                method if refine == "none" else f"**{method} + dense CRF**{_OURS.get(method, '')}",
                *(_interval(sets[name], "corloc") for name in ("voc100", "coco128")),
                f"{float(coco['mask_ap50']):.1f} / {float(coco['mask_ar10']):.1f}",
                *(_interval(sets[name], "iou") for name in ("weizmann", "davis8")),
                f"{float(coco['ms_total']):.0f}",
            ]
        )
    return _table(head, lines, rows)


def embedded() -> str:
    rows = [row for row in _read("methods") if row["refine"] == "dense_crf"]
    by_set = {(row["set"], row["method"]): row for row in rows}
    head = ["set", "measure", "with", "without", "difference"]
    lines = []
    for name, measures in (
        ("voc100", ("corloc", "box_ap50")),
        ("coco128", ("corloc", "mask_ap50")),
        ("weizmann", ("corloc", "iou")),
        ("davis8", ("corloc", "iou")),
    ):
        learned, without = by_set[name, "background"], by_set[name, "background:unlearned"]
        for measure in measures:
            # A row's differences are to the first method, which is the one with it.
            low, high = (-float(without[f"{measure}_difference_{end}"]) for end in ("high", "low"))
            change = float(learned[measure]) - float(without[measure])
            difference = f"{change:+.1f} [{round(low, 1) + 0:.1f}, {round(high, 1) + 0:.1f}]"
            intervals = (_interval(learned, measure), _interval(without, measure))
            lines.append([name, _MEASURES[measure], *intervals, difference])
    return _table(head, lines, rows)


_MEASURES = {"corloc": "CorLoc", "box_ap50": "box AP50", "mask_ap50": "mask AP50", "iou": "IoU"}


def _interval(row: dict[str, str], key: str) -> str:
    value, low, high = (float(row[name]) for name in (key, f"{key}_low", f"{key}_high"))
    return f"{value:.1f} [{low:.0f}, {high:.0f}]"


def solver() -> str:
    rows = _read("bench/solver")
    head = ["patches", "threads", "what", "published, ms", "ours, ms", "times faster"]
    lines = []
    for row in rows:
        if row["method"] in ("scipy eigh f64", "published procedure"):
            published = row["ms"]
        elif row["method"] != "maskcut reference":
            what = {"solve": "one solve"}.get(row["what"], "MaskCut's cuts, N = 3")
            lines.append([row["nodes"], row["threads"], what, published, row["ms"], row["ratio"]])
    return _table(head, lines, rows)


def label() -> str:
    rows = _read("bench/label")
    head = ["method", "threads", "images/s", "decode", "features", "propose", "refine", "write (ms an image)"]
    lines = [
        [row["method"], row["threads"], row["images_per_s"]]
        + [row[f"{part}_ms"] for part in ("decode", "features", "propose", "refine", "write")]
        for row in rows
    ]
    return _table(head, lines, rows)


def semantic() -> str:
    rows = _read("semantic")
    by_what: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        by_what.setdefault(row["embedding"], {})[row["set"]] = row
    head = ["embedding", "purity coco128", "NMI coco128", "purity voc100", "NMI voc100"]
    lines = [
        [what, *(_interval(sets[name], measure) for name in ("coco128", "voc100") for measure in ("purity", "nmi"))]
        for what, sets in by_what.items()
    ]
    return _table(head, lines, rows)


def learning() -> str:
    return _detectors("learning")


def exemplars() -> str:
    return _detectors("exemplars")


def _detectors(name: str) -> str:
    rows = _read(name)
    by_what: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        by_what.setdefault((row["what"], row["side"]), {})[row["set"]] = row
    head = ["what", "px", "CorLoc coco128", "box AP50 / AR10", "mask AP50 / AR10", "CorLoc voc100", "box AP50 / AR10"]
    lines = []
    for (what, side), sets in by_what.items():
        coco, voc = sets["coco128"], sets["voc100"]
        pairs = [(coco, "box"), (coco, "mask"), (voc, "box")]
        box, mask, voc_box = (
            f"{_interval(row, f'{kind}_ap50')} / {float(row[f'{kind}_ar10']):.1f}" for row, kind in pairs
        )
        lines.append([what, side, _interval(coco, "corloc"), box, mask, _interval(voc, "corloc"), voc_box])
    return _table(head, lines, rows)


def _read(name: str) -> list[dict[str, str]]:
    with open(ROOT / "results" / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], rows: list[dict[str, str]]) -> str:
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    source = f"{rows[0]['hardware']}; torch {rows[0]['torch']}; commit {rows[0]['commit']}; {rows[0]['date']}."
    return f"| {' | '.join(head)} |\n|{' --- |' * len(head)}\n{body}\n\n{source}"


if __name__ == "__main__":
    main()
