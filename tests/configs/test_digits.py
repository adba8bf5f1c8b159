import pytest

from configs import digits
from lfcc_jax import methods
from lfcc_jax.methods import presets
from lfcc_jax.training.config import read_config
from lfcc_jax.training.distillation import Images, build

# Losses of the methods whose names do not list them.
PARTS = {
    "scratch": set(),
    "teacher": set(),
    "lfcc": {"kd", "lfcc"},
    "kd_standardized": {"kd"},
    "lfcc_rsd": {"kd", "lfcc", "rsd"},
    "dual_view_kd": {"dual_view", "kd"},
}


@pytest.mark.parametrize("method", ["teacher", *presets.METHODS])
def test_digits_config_of_every_method_builds_the_losses_of_its_name(method):
    run = read_config(digits.get_config(f"method={method}"))
    losses = build(run, Images(10, 8, 1, 1297)).losses
    named = {method} if method in methods.METHODS else method.split("_")
    assert set(losses) == {"cross_entropy", *PARTS.get(method, named)}


def test_method_without_a_preset_gets_weight_1():
    rows = presets.with_all_methods({"scratch": {}, "kd": {"kd": {"weight": 2.0}}})
    assert rows["kd"] == {"kd": {"weight": 2.0}}
    assert rows["at"] == {"at": {"weight": 1.0}}
    assert "cross_entropy" not in rows


def test_digits_config_changes_kd_but_not_standardized_kd():
    changed = [digits.get_config(f"method={method}").losses.kd.temperature for method in ("kd", "kd_standardized")]
    assert changed == [4.0, presets.losses("kd_standardized", "resnet18")["kd"]["temperature"]]


def test_digits_config_lists_all_methods_except_those_with_dist():
    assert set(presets.METHODS) - set(digits.METHODS) == {"lfcc_dist", "fitnet_dist", "dist_rsd", "lfcc_dist_rsd"}


def test_changes_do_not_modify_the_preset():
    before = presets.losses("kd", "resnet18")
    presets.losses("kd", "resnet18", {"kd": {"temperature": 7.0}})["cross_entropy"]["weight"] = 3.0
    assert presets.losses("kd", "resnet18") == before
