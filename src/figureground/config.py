"""Configuration: frozen pydantic models, any field reachable by a dotted key."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict

from figureground.errors import ConfigError

T = TypeVar("T", bound="Config")


class Config(BaseModel):
    """Base of every component's configuration: frozen, unknown keys forbidden.

    Each field is described with its unit and the paper's value by ``pydantic.Field(description=...)``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def replace(self: T, **values: Any) -> T:
        """Return a copy with ``values`` changed, validated again."""
        return build(type(self), {**self.model_dump(), **values})


def build(model: type[T], values: Mapping[str, Any]) -> T:
    """Make a ``model`` from plain values; a wrong key or value becomes a :class:`ConfigError`."""
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(model, error)) from None


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn ``["maskcut.tau=0.2"]`` into ``{"maskcut": {"tau": 0.2}}``.

    Values are read as JSON where they are JSON (numbers, ``true``, ``null``, lists), else as text.

    Raises:
        ConfigError: If an assignment has no ``=``, no key, or two of them contradict each other in shape.

    Example:
        >>> parse_assignments(["maskcut.tau=0.2", "method=tokencut"])
        {'maskcut': {'tau': 0.2}, 'method': 'tokencut'}
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not separator or not all(parts):
            raise ConfigError(f"--set {assignment!r} is not of the form KEY=VALUE.", "Example: --set maskcut.tau=0.2")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        node = tree
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {assignment!r}: {part!r} was already given a plain value.")
        node[parts[-1]] = value
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``over`` laid on top, dictionaries merged key by key.

    Example:
        >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
        {'a': {'b': 3, 'c': 2}}
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def requested(assignments: Iterable[str], shorthands: Mapping[str, Any], images: Iterable[str] = ()) -> dict[str, Any]:
    """What a command line asks for: ``--set``, the shorthands over it where they are not ``None``, and the images.

    Example:
        >>> requested(["size=64"], {"limit": 3, "device": None}, ["photos"])
        {'size': 64, 'limit': 3, 'images': ['photos']}
    """
    given = {key: value for key, value in shorthands.items() if value is not None}
    named = list(images)
    return merge(parse_assignments(assignments), given | ({"images": named} if named else {}))


def differences(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the dotted keys whose values differ, each with both values.

    Example:
        >>> differences({"a": {"b": 1}}, {"a": {"b": 2}})
        ['a.b: 1 -> 2']
    """
    lines = []
    for key in sorted(left.keys() | right.keys()):
        old, new = left.get(key), right.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {json.dumps(old)} -> {json.dumps(new)}")
    return lines


def describe_fields(model: type[BaseModel], values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, str]]:
    """List the leaves of a configuration: dotted key, value, meaning."""
    rows = []
    for name, field in model.model_fields.items():
        value = values.get(name)
        nested = _nested_models(field.annotation)
        if nested and isinstance(value, Mapping):
            rows += describe_fields(nested[0], value, f"{prefix}{name}.")
        elif not nested:
            rows.append((prefix + name, value, field.description or ""))
    return rows


def _explain(model: type[Config], error: pydantic.ValidationError) -> str:
    lines = []
    for problem in error.errors():
        location = [part for part in problem["loc"] if isinstance(part, str)]
        dotted = ".".join(str(part) for part in problem["loc"]) or "configuration"
        if problem["type"] == "extra_forbidden":
            keys = _dotted_keys(model)
            name = ".".join(location)
            near = difflib.get_close_matches(name, keys, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Keys: {', '.join(keys)}."
            lines.append(f"Unknown configuration key {name!r}. {hint}")
        elif problem["type"] == "value_error":
            lines.append(problem["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"Configuration key {dotted!r}: {problem['msg']} (got {problem['input']!r}).")
    return "\n".join(lines)


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for nested in _nested_models(field.annotation):
            keys += _dotted_keys(nested, f"{prefix}{name}.")
    return keys


def _nested_models(annotation: Any) -> list[type[BaseModel]]:
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return [entry for entry in candidates if isinstance(entry, type) and issubclass(entry, BaseModel)]
