from typing import Literal

import pytest
from pydantic import Field

from figureground.config import Config, build, describe_fields, differences, merge, parse_assignments
from figureground.errors import ConfigError


class Inner(Config):
    tau: float = Field(0.15, ge=0, le=1, description="A threshold.")


class Outer(Config):
    inner: Inner = Inner()
    mode: Literal["a", "b"] = "a"
    other: Inner | None = None


def test_assignments_reach_any_field() -> None:
    made = build(Outer, parse_assignments(["inner.tau=0.5", "mode=b", "other.tau=1"]))
    assert made == Outer(inner=Inner(tau=0.5), mode="b", other=Inner(tau=1))


@pytest.mark.parametrize("assignment", ["tau", "=3", "inner..tau=1", "."])
def test_malformed_assignment(assignment: str) -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_assignments([assignment])


def test_contradicting_assignments() -> None:
    with pytest.raises(ConfigError, match="plain value"):
        parse_assignments(["inner=3", "inner.tau=1"])


def test_mistyped_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'inner\.tua'.*'inner\.tau'"):
        build(Outer, {"inner": {"tua": 1}})


def test_value_out_of_range_names_key_and_value() -> None:
    with pytest.raises(ConfigError, match=r"inner\.tau.*less than or equal to 1.*got 3"):
        build(Outer, {"inner": {"tau": 3}})
    with pytest.raises(ConfigError, match="mode"):
        build(Outer, {"mode": "c"})


def test_replace_validates() -> None:
    assert Inner().replace(tau=0.2).tau == 0.2
    with pytest.raises(ConfigError):
        Inner().replace(tau=2)


def test_differences_and_merge() -> None:
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 3}) == ["c: 2 -> 3"]
    assert merge({"a": {"b": 1}}, {"a": {"c": 2}, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}


def test_fields_are_described() -> None:
    rows = describe_fields(Outer, Outer().model_dump())
    assert ("inner.tau", 0.15, "A threshold.") in rows
