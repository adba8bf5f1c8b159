import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from lfcc_jax.arguments import (
    AtLeast,
    AtMost,
    Between,
    Distinct,
    Fraction,
    HalfOpenFraction,
    Length,
    NonNegative,
    Positive,
    check_value,
    checked_arguments,
)
from lfcc_jax.errors import UserError


def function(a, b, c=3):
    """Takes arguments."""


def function_with_kwargs(a, **rest):
    """Takes any keyword arguments."""


def test_checked_arguments_finds_missing_arguments_of_a_function_with_kwargs():
    assert checked_arguments(function_with_kwargs, {"a": 1, "x": 2}, "here") == {"a": 1, "x": 2}
    with pytest.raises(UserError, match="here: missing a"):
        checked_arguments(function_with_kwargs, {"x": 2}, "here")


def test_checked_arguments_returns_valid_arguments():
    assert checked_arguments(function, {"a": 1, "b": 2}, "here") == {"a": 1, "b": 2}


def test_checked_arguments_adds_set_by_run_and_drops_read_by_caller():
    arguments = checked_arguments(function, {"a": 1, "name": "x"}, "here", {"b": 2}, {"name": str})
    assert arguments == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": 1, "b": 2, "d": 3}, "here: unknown key 'd'"),
        ({"c": 1}, "here: missing a, b"),
        ({"a": 1, "b": 2, 3: 4}, "here: unknown key '3'"),
        (5, "here must be a block of settings, got 5"),
    ],
)
def test_checked_arguments_rejects_invalid_arguments(given, message):
    with pytest.raises(UserError, match=message):
        checked_arguments(function, given, "here")


def test_checked_arguments_rejects_and_never_suggests_arguments_set_by_the_run():
    with pytest.raises(UserError, match="here.b is set by the run and cannot be configured"):
        checked_arguments(function, {"a": 1, "b": 2}, "here", {"b": 3})
    with pytest.raises(UserError, match="unknown key 'd'. Known: a, c, name."):
        checked_arguments(function, {"a": 1, "d": 2}, "here", {"b": 3}, {"name": str})


ACCEPTED = [
    (float, (1, 1.5, -2.0, np.float32(0.5), np.int64(3))),
    (int, (0, -5, np.int32(7), 10**30)),
    (bool, (True, False)),
    (int | None, (None, 4)),
    (float | Mapping[str, Any], (1.0, {"name": "cosine"})),
    (tuple[int, int], ((3, 4), [3, 4])),
    (tuple, ((), [5, "six"])),
    (Literal["a", "b"], ("a", "b")),
    (Annotated[int, Positive], (1, 10**30)),
    (Annotated[float, Positive], (1e-30, 3e38)),
    (Annotated[float, NonNegative], (0, 0.0)),
    (Annotated[float, Fraction], (0, 1, 0.5)),
    (Annotated[float, HalfOpenFraction], (0, 0.99999)),
    (Annotated[int, Between(-1, 3)], (-1, 3)),
    (Annotated[float, Positive, AtMost(1)], (1, 1e-9)),
    (Annotated[tuple[Annotated[int, AtLeast(2)], ...], Length(0, 2)], ((), (2, 3))),
    (Annotated[tuple[str, ...], Distinct], (("a",), ["a", "b"])),
    (dict[str, dict[str, Any]], ({}, {"kd": {"weight": 1}})),
]


@pytest.mark.parametrize(("wanted", "values"), ACCEPTED)
def test_check_value_accepts_values_within_bounds(wanted, values):
    for value in values:
        check_value(value, wanted, "here")


@pytest.mark.parametrize(
    ("wanted", "value", "message"),
    [
        (float, "one", "here must be a number, got 'one'"),
        (float, True, "here must be a number, got True"),
        (float, math.nan, "here must be a number, got nan"),
        (float, -math.inf, "here must be a number, got -inf"),
        (float, 1e39, "here must be a number, got 1e+39"),  # infinite in float32
        (float, 10**400, "here must be a number, got 1000"),
        (int, 1.5, "here must be an integer, got 1.5"),
        (int | None, 1.5, "here must be an integer or None, got 1.5"),
        (bool, 1, "here must be True or False, got 1"),
        (str, None, "here must be a string, got None"),
        (float | Mapping[str, Any], "cosine", "here must be a number or a block of settings, got 'cosine'"),
        (tuple[int, int], (1, 2, 3), "here must be a list of 2 integers, got (1, 2, 3)"),
        (tuple, 5, "here must be a list, got 5"),
        (Literal["basic", "bottleneck"], "bottelneck", "'basic' or 'bottleneck', got 'bottelneck'; did you mean 'bott"),
        (Literal["a", "b", "c"], ["a"], "here must be one of 'a', 'b', 'c', got ['a']"),
        (Annotated[float, Positive], -1, "here must be a positive number, got -1"),
        (Annotated[float, Positive], 1e-40, "here must be a positive number, got 1e-40"),  # zero in float32
        (Annotated[int, Positive], 0, "here must be a positive integer, got 0"),
        (Annotated[float, NonNegative], -0.1, "here must be a non-negative number, got -0.1"),
        (Annotated[float, Fraction], 1.5, "here must be a number in [0, 1], got 1.5"),
        (Annotated[float, HalfOpenFraction], 1, "here must be a number in [0, 1), got 1"),
        (Annotated[float, HalfOpenFraction], 1 - 1e-9, "got 0.999999999"),  # 1 in float32
        (Annotated[int, Between(1, 512)], 10**6, "here must be an integer between 1 and 512, got 1000000"),
        (Annotated[int, AtLeast(-1)], -2, "here must be an integer >= -1, got -2"),
        (Annotated[float, Positive, AtMost(9)], 10, "here must be a positive number up to 9, got 10"),
        (tuple[Annotated[int, Positive], ...], (1, 0), "here must be a list of positive integers, got (1, 0)"),
        (Annotated[tuple[int, ...], Length(4)], [1], "here must be a list of 4 integers, got [1]"),
        (
            Annotated[tuple[str, ...], Distinct],
            ("a", "a"),
            "must be a non-empty list of distinct strings, got ('a', 'a",
        ),
        (dict[str, dict[str, Any]], {"kd": 1.0}, "here.kd must be a block of settings, got 1.0"),
    ],
)
def test_check_value_rejects_values_with_a_description_of_valid_ones(wanted, value, message):
    with pytest.raises(UserError) as error:
        check_value(value, wanted, "here")
    assert message in str(error.value)
