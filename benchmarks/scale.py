"""Hours, cost and bytes of labelling ImageNet, Open Images and a billion photographs, into docs/scale.md.

    python -m benchmarks.scale --measure      # bytes an image on the photographs of coco128: results/bench/output.csv
    python -m benchmarks.scale                # renders the tables of docs/scale.md from results/bench/

Rates are those of `results/bench/`: label.csv, published.csv, and accelerator.csv where an accelerator was at hand.
"""

import argparse
import csv
import re
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import RESULTS, ROOT, SHARED, write_rows
from figureground.stages.label import configure
from figureground.stages.planning import plan

PAGE = ROOT / "docs" / "scale.md"
SETS = {"ImageNet": 1_281_167, "Open Images": 9_011_219, "a billion": 1_000_000_000}
# Assumed, in US dollars an hour: a small virtual machine of two cores, and an H200 with its share of a server.
CPU_USD_PER_H, ACCELERATOR_USD_PER_H = 0.08, 4.0
# What an accelerator shall do, where it has not been measured: images a second.
TARGETS = {"dino_b8": 150.0}


@dataclass(frozen=True)
class Machine:
    """Something that labels so many images a second.

    Attributes:
        name: What it runs.
        rate: Images a second.
        usd_per_h: What it costs.
        source: Where the rate is from.
    """

    name: str
    rate: float
    usd_per_h: float
    source: str


def machines() -> list[Machine]:
    """All whose rates are known, and those that are aimed at."""
    found = [
        Machine(f"{row['method']}, {row['backbone']}, 2 cores", float(row["images_per_s"]), CPU_USD_PER_H, "label.csv")
        for row in read("label")
        if row["threads"] == "2" and row["method"] == "background"
    ]
    for row in read("published"):
        if row["variant"] in ("published procedure", "figureground default bf16"):
            name = f"{row['variant']}, {row['backbone']}, {row['threads']} threads"
            found.append(Machine(name, float(row["images_per_s"]), CPU_USD_PER_H, "published.csv"))
    measured = [row for row in read("accelerator") if row["device"] != "cpu"]
    for row in measured:
        name = f"maskcut, {row['backbone']} {row['precision']}, {row['device']}"
        found.append(Machine(name, float(row["images_per_s"]), ACCELERATOR_USD_PER_H, "accelerator.csv"))
    for backbone in TARGETS.keys() - {row["backbone"] for row in measured}:
        found.append(Machine(f"maskcut, {backbone}, H200", TARGETS[backbone], ACCELERATOR_USD_PER_H, "a target only"))
    return found


def times() -> str:
    """Hours of one machine and dollars, for each set."""
    lines = [["what, where", "images/s", *SETS, "from"]]
    for machine in machines():
        cells = []
        for count in SETS.values():
            hours = count / machine.rate / 3600
            cells.append(f"{hours:,.0f} h, ${hours * machine.usd_per_h:,.0f}")
        lines.append([machine.name, f"{machine.rate:.3g}", *cells, machine.source])
    return table(lines)


def output() -> str:
    """Bytes of masks and of shards, for each set."""
    lines = [["method", "bytes an image: masks, shards", *SETS]]
    for row in read("output"):
        masks, shards = int(row["annotations_bytes_per_image"]), int(row["shards_bytes_per_image"])
        cells = [f"{count * masks / 1e9:,.1f} + {count * shards / 1e9:,.1f} GB" for count in SETS.values()]
        lines.append([row["method"], f"{masks}, {shards}", *cells])
    return table(lines)


def start() -> str:
    """Seconds and memory before the first image, for each set, in proportion to what was measured."""
    lines = [["measured on", "an image", *SETS]]
    for row in read("listing"):
        seconds = (float(row["list_s"]) + float(row["cut_s"])) / int(row["images"])
        size = float(row["bytes_per_image"])
        cells = [f"{count * seconds:,.0f} s, {count * size / 1e9:,.1f} GB" for count in SETS.values()]
        lines.append([f"{int(row['images']):,} files", f"{1e6 * seconds:.0f} us, {size:.0f} B", *cells])
    return table(lines)


def measure() -> None:
    """Bytes an image, by the sample of `label --dry-run`."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(SHARED / "data" / "eval" / "coco128.tar") as archive:
            archive.extractall(folder, filter="data")
        for method in ("background", "maskcut"):
            made = plan(configure([folder], method=method))
            row = {"method": method, "sampled": made.sampled, "instances": made.instances}
            row["annotations_bytes_per_image"] = round(made.annotations_bytes / made.images)
            row["shards_bytes_per_image"] = round(made.shards_bytes / made.images)
            rows.append(row)
            print(row, flush=True)
    print(write_rows("bench/output", rows))


def read(name: str) -> list[dict[str, str]]:
    """The rows of a table of results; none where it has not been measured."""
    path: Path = RESULTS / "bench" / f"{name}.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(lines: list[list[str]]) -> str:
    """Markdown; the first line is the head."""
    rows = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([rows[0], "| --- " * len(lines[0]) + "|", *rows[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the bytes an image first")
    if parser.parse_args().measure:
        measure()
    text = PAGE.read_text("utf-8")
    for made in (times, output, start):
        pattern = rf"(<!-- table: {made.__name__} -->\n).*?(<!-- /table -->)"
        block = made()
        text, count = re.subn(pattern, lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text, flags=re.S)
        assert count == 1, f"docs/scale.md has no place for the table {made.__name__!r}"
    PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
