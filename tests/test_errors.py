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
