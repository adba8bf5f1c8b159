from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from lfcc_jax.errors import UserError, checked_arguments, unknown


def function(a, b, c=3):
    """Takes arguments."""


def function_of_anything(a, **rest):
    """Takes more."""


def test_a_function_that_takes_anything_is_checked_for_what_it_needs():
    assert checked_arguments(function_of_anything, {"a": 1, "x": 2}, "here") == {"a": 1, "x": 2}
    with pytest.raises(UserError, match="here: missing a"):
        checked_arguments(function_of_anything, {"x": 2}, "here")


def test_the_nearest_name_is_suggested_only_if_one_is_near():
    assert "did you mean 'vit'" in str(unknown("network", "vitt", ["vit", "resnet"]))
    assert "did you mean" not in str(unknown("network", "xyz", ["vit", "resnet"]))


def test_arguments_that_fit_are_returned():
    assert checked_arguments(function, {"a": 1, "b": 2}, "here") == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("given", "message"), [({"a": 1, "b": 2, "d": 3}, "here: unknown key 'd'"), ({"c": 1}, "here: missing a, b")]
)
def test_arguments_that_do_not_fit_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        checked_arguments(function, given, "here")


def typed(
    number: float,
    block: float | Mapping[str, Any] = 0.0,
    flag: bool = False,
    count: int | None = None,
    pair: tuple[int, int] = (1, 2),
    several: tuple = (),
):
    """Says what it takes."""


def test_values_of_the_types_that_are_asked_for_are_returned():
    for given in (
        {"number": 1},
        {"number": np.float32(0.5), "count": np.int64(3)},
        {
            "number": 1.5,
            "block": {"name": "cosine"},
            "flag": True,
            "count": None,
            "pair": [3, 4],
            "several": [5, "six"],
        },
    ):
        assert checked_arguments(typed, given, "here") == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"number": "one"}, "here.number: 'one' will not do; a number will"),
        ({"number": True}, "here.number: True will not do; a number will"),
        ({"number": 1, "block": "cosine"}, "'cosine' will not do; a number or a block of names and values will"),
        ({"number": 1, "flag": 1}, "here.flag: 1 will not do; true or false will"),
        ({"number": 1, "count": 1.5}, "here.count: 1.5 will not do; a whole number or none will"),
        ({"number": 1, "pair": (1, 2, 3)}, "here.pair: .1, 2, 3. will not do; a list of 2, each a whole number will"),
        ({"number": 1, "several": 5}, "here.several: 5 will not do; a list will"),
    ],
)
def test_values_of_other_types_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        checked_arguments(typed, given, "here")
