import pytest

from lfcc_jax import methods, models
from lfcc_jax.errors import UserError, shown, unknown


def test_unknown_suggests_the_nearest_name_only_if_it_is_close():
    assert "did you mean 'vit'" in str(unknown("network", "vitt", ["vit", "resnet"]))
    assert "did you mean" not in str(unknown("network", "xyz", ["vit", "resnet"]))


def test_unknown_shortens_a_long_list_with_the_nearest_names_first():
    names = [f"network_{i}" for i in range(1000)]
    message = str(unknown("network", "netwrk_987", names))
    assert "did you mean 'network_987'? Known: network_987, " in message
    assert message.endswith("... (1000 in all).")
    assert len(message) < 500


@pytest.mark.parametrize("names", [models.list_models(), methods.list_methods()], ids=["models", "methods"])
def test_unknown_returns_one_line_of_at_most_700_characters(names):
    for given in ("", "x", "resnet", "\n", "x" * 10**6, None, ["kd"], 10**5000):
        message = str(unknown("name", given, names, "config.student.name"))
        assert len(message) <= 700
        assert "\n" not in message


def test_user_error_is_one_line_that_keeps_beginning_and_end():
    message = str(UserError("config.x:\n" + "is wrong; " * 1000 + "\r\nGive another --workdir."))
    assert message.startswith("config.x: is wrong; ")
    assert message.endswith(" Give another --workdir.")
    assert len(message.splitlines()) == 1
    assert len(message) <= 700


def test_shown_shortens_long_values():
    for value in ("x" * 10**6, list(range(10**5)), 10**5000, {str(i): i for i in range(1000)}):
        assert len(shown(value)) <= 80
