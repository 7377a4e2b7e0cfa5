"""Going on with a run: only with the configuration and the images it was started with."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from figureground.config import Config, differences
from figureground.errors import ConfigError
from figureground.storage.shards import fingerprint


def check_config(config: Config, path: Path, free: Collection[str]) -> None:
    """Compare a configuration with that of the run that is there already, if one is.

    Args:
        config: Of this start.
        path: ``config.json`` of the run.
        free: Keys that may differ; those below the top level dotted, as ``train.workers``.

    Raises:
        ConfigError: If another key differs, each one listed, or the file is damaged.
    """
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}.", "Choose another --out.") from None
    old, new = (_without(tree, free) for tree in (before, config.model_dump(mode="json")))
    changed = differences(old, new)
    if changed:
        raise ConfigError(
            f"{path.parent} holds a run with another configuration:\n  " + "\n  ".join(changed),
            "Choose another --out, or give the same settings to go on with it.",
        )


def _without(tree: Mapping[str, Any], keys: Collection[str], prefix: str = "") -> dict[str, Any]:
    """A tree without the leaves and branches of these dotted keys."""
    return {
        name: _without(value, keys, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        for name, value in tree.items()
        if f"{prefix}{name}" not in keys
    }


def check_images(names: Sequence[str], path: Path) -> None:
    """Compare a list of images with that of the run that is there already, if one is.

    A run that goes on with other images would be neither the old one nor the new one.

    Args:
        names: Of this start.
        path: ``images.json`` of the run.

    Raises:
        ConfigError: If they are others, or the file is damaged.
    """
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}.", "Choose another --out.") from None
    if before["fingerprint"] != fingerprint(names):
        raise ConfigError(
            f"The photographs are not those that {path.parent} was started with: {before['images']} then, "
            f"{len(names)} now, or other names.",
            "Choose another --out, or bring the folder back to what it was.",
        )
