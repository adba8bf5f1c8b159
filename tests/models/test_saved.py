import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax import models
from lfcc_jax.errors import UserError

OVERRIDES = {"image_channels": 1, "widths": (4, 4, 8, 8)}
DESCRIPTION = {"name": "resnet_pico", "num_classes": 10, "image_size": 8, "overrides": OVERRIDES}


@pytest.fixture
def network():
    return models.create("resnet_pico", 10, 8, **OVERRIDES)


def variables_of(network):
    return network.init(jax.random.key(0), jnp.zeros(network.image_shape()))


def test_a_network_comes_back_from_its_directory_or_from_its_runs(tmp_path, network):
    variables = variables_of(network)
    models.save(tmp_path / "student", variables, DESCRIPTION)
    for path in (tmp_path / "student", tmp_path, str(tmp_path)):
        jax.tree.map(np.testing.assert_array_equal, models.load_variables(path, network), variables)


def test_a_missing_network_is_said(tmp_path, network):
    with pytest.raises(UserError, match="no finished network in"):
        models.load_variables(tmp_path / "nowhere", network)


def test_every_leaf_that_does_not_fit_is_named(tmp_path, network):
    models.save(tmp_path, variables_of(network), DESCRIPTION)
    with pytest.raises(UserError, match="holds a resnet_pico with 10 classes, not this ResNet with 7") as error:
        models.load_variables(tmp_path, network.clone(num_classes=7))
    assert "params/head/kernel is (8, 10) there and (8, 7) here" in str(error.value)
    assert "params/head/bias is (10,) there and (7,) here" in str(error.value)
    assert str(error.value).count(" there and ") == 2

    vit = models.create("vit_pico", 10, 8, image_channels=1)
    with pytest.raises(UserError, match="params/pos_embed is missing there") as error:
        models.load_variables(tmp_path, vit)
    assert "batch_stats/stem_norm/mean is (4,) there and unknown here" in str(error.value)


def test_a_network_that_differs_in_no_array_is_still_another_one(tmp_path):
    overrides = {"image_channels": 1, "width": 12}
    made = models.create("vit_pico", 10, 8, **overrides)
    models.save(tmp_path, variables_of(made), DESCRIPTION | {"name": "vit_pico", "overrides": overrides})
    models.load_variables(tmp_path, made.clone(dropout=0.5))
    with pytest.raises(
        UserError, match=r"holds another vit_pico: mean is \(0.5,\) there and \(0.0,\) here; heads is 3"
    ):
        models.load_variables(tmp_path, made.clone(heads=6, mean=(0.0,)))


def test_damaged_variables_are_said(tmp_path, network):
    models.save(tmp_path, variables_of(network), DESCRIPTION)
    (tmp_path / "variables" / "_METADATA").unlink()
    with pytest.raises(UserError, match="variables is damaged"):
        models.load_variables(tmp_path, network)
