"""What every page of a run has in common: one self-contained file, numbers as a person says them, the run's files."""

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from figureground.errors import RunError
from figureground.storage.atomic import write_bytes

FAILURES_SHOWN = 200
"""Failures listed on the page; the rest stay in ``failures.jsonl``."""


def write_page(path: Path, template: str, context: dict[str, Any]) -> Path:
    """Write a page that needs nothing but itself; it replaces an older one only when it is whole.

    The policy in its head forbids every request and every script but its own.

    Args:
        path: Where to.
        template: Name of the template, without ``.html.j2``; a style and a script of that name go with it.
        context: What the template shows.

    Returns:
        ``path``.

    Raises:
        RunError: If the page cannot be written.
    """
    folder = resources.files("figureground.viewer")

    def read(*names: str) -> str:
        return "\n".join(folder.joinpath(name).read_text("utf-8") for name in names)

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # `tojson` escapes <, >, & and ' and all that is not ASCII, which makes it safe inside a script element.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    style, script = read("page.css", f"{template}.css"), read("masks.js", f"{template}.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(f"{template}.html.j2").render(
        context, style=Markup(style), script=Markup(script), script_sha256=digest
    )
    # A file name that is not UTF-8 arrives with lone surrogates; they are written as "\udcff", readable and harmless.
    write_bytes(path, page.encode("utf-8", errors="backslashreplace"))
    return path


def about(run: Path) -> dict[str, Any]:
    """What every page says of its run: name, settings, environment, failures."""
    failures, failed = read_failures(run / "failures.jsonl")
    return {
        "name": run.resolve().name,
        "settings": sections(read_json(run / "config.json") or {}),
        "environment": sections(read_json(run / "environment.json") or {}),
        "failures": failures,
        "failures_left_out": failed - len(failures),
    }


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` indices below ``count``, evenly spread, the first and the last among them.

    Example:
        >>> spread(10, 4), spread(3, 200)
        ([0, 3, 6, 9], [0, 1, 2])
    """
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def timing(stage_seconds: dict[str, float | int]) -> list[tuple[str, str, float]]:
    """Steps with their time and their share of the whole."""
    whole = sum(stage_seconds.values())
    return [(step, duration(seconds), seconds / whole) for step, seconds in stage_seconds.items() if seconds > 0]


def duration(seconds: float | int) -> str:
    """Seconds as a person says them.

    Example:
        >>> duration(0.042), duration(12.34), duration(125), duration(7384)
        ('0.04 s', '12.3 s', '2 min 5 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours:,} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def sections(tree: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """A tree of settings as one section per branch, with the dotted keys that ``--set`` takes; plain values first.

    Example:
        >>> sections({"maskcut": {"tau": 0.15, "crf": {"steps": 10}}, "device": "cpu"})
        [('', [('device', 'cpu')]), ('maskcut', [('maskcut.tau', '0.15'), ('maskcut.crf.steps', '10')])]
    """
    plain = [row for key, value in tree.items() if not isinstance(value, dict) for row in _rows(key, value)]
    branches = [(key, _rows(key, value)) for key, value in tree.items() if isinstance(value, dict)]
    return [(title, rows) for title, rows in [("", plain), *branches] if rows]


def _rows(key: str, value: object) -> list[tuple[str, str]]:
    """The leaves under ``key``."""
    if isinstance(value, dict):
        return [row for name, below in value.items() for row in _rows(f"{key}.{name}", below)]
    return [(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or ``None`` where there is no file."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}.", "Remove it and run the stage again.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no JSON object.", "Remove it and run the stage again.")
    return content


def read_failures(path: Path, most: int = FAILURES_SHOWN) -> tuple[list[tuple[str, str]], int]:
    """Path and error of the first images that failed, and how many failed in all.

    A line cut short by a kill is shown as it is.
    """
    if not path.exists():
        return [], 0
    failures: list[tuple[str, str]] = []
    total = 0
    # Split at "\n" only: str.splitlines would cut a file name at U+2028.
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        for line in filter(str.strip, file):
            total += 1
            if total > most:
                continue
            try:
                failure = json.loads(line)
                failures.append((str(failure["path"]), str(failure["error"])))
            except (ValueError, KeyError, TypeError):
                failures.append(("", line.rstrip("\n")))
    return failures, total
