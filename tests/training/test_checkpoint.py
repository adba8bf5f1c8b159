import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax import models
from lfcc_jax.errors import UserError
from lfcc_jax.training.checkpoint import Checkpoints, load_network, save_network


def state(step):
    return {"w": jnp.full((64, 64), float(step)), "key": jax.random.key(step), "nothing": None}


def abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))


def saved(directory, accuracies):
    checkpoints = Checkpoints(directory)
    for step, accuracy in accuracies.items():
        checkpoints.save(step, state(step), {"next_index": step}, None if accuracy is None else {"accuracy": accuracy})
    checkpoints.close()
    return Checkpoints(directory)


def damage(directory):
    """Cuts every data file in half, as a full disk would."""
    for file in directory.rglob("d/*"):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])


def test_state_and_data_come_back_bit_for_bit(tmp_path):
    restored, data = saved(tmp_path / "c", {3: None}).restore(abstract())
    np.testing.assert_array_equal(restored["w"], state(3)["w"])
    np.testing.assert_array_equal(*map(jax.random.key_data, (restored["key"], state(3)["key"])))
    assert data == {"next_index": 3}


def test_there_may_be_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path / "c").restore(abstract()) is None


def test_the_last_two_and_the_best_are_kept(tmp_path):
    saved(tmp_path / "c", {1: 0.1, 2: 0.9, 3: 0.3, 4: None, 5: 0.5, 6: None})
    assert sorted(int(path.name) for path in (tmp_path / "c").iterdir() if path.name.isdigit()) == [2, 5, 6]


def test_a_truncated_newest_checkpoint_is_set_aside_for_the_one_before(tmp_path, capsys):
    checkpoints = saved(tmp_path / "c", {1: None, 2: None})
    damage(tmp_path / "c" / "2")
    restored, data = checkpoints.restore(abstract())
    assert (float(restored["w"][0, 0]), data) == (1.0, {"next_index": 1})
    assert "checkpoint 2 is damaged" in capsys.readouterr().out
    assert (tmp_path / "damaged" / "2").exists()
    # The run will come to step 2 again, and must be able to save it.
    checkpoints.save(2, state(2), {"next_index": 2})
    checkpoints.close()
    assert Checkpoints(tmp_path / "c").restore(abstract())[1] == {"next_index": 2}


def test_it_is_an_error_if_no_checkpoint_can_be_read(tmp_path):
    checkpoints = saved(tmp_path / "c", {1: None, 2: None})
    damage(tmp_path / "c")
    with pytest.raises(UserError, match=r"none of the checkpoints \[2, 1\] in .* can be read"):
        checkpoints.restore(abstract())
    assert not (tmp_path / "damaged").exists()


def test_a_state_of_another_structure_is_no_damage_and_nothing_is_moved(tmp_path):
    checkpoints = saved(tmp_path / "c", {1: None, 2: None})
    with pytest.raises(UserError, match=r"none of the checkpoints \[2, 1\] .* can be read; the newest: "):
        checkpoints.restore({"v": abstract()["w"]})
    assert checkpoints.restore(abstract())[1] == {"next_index": 2}


OVERRIDES = {"image_channels": 1, "widths": (4, 4, 8, 8)}
DESCRIPTION = {"name": "resnet_pico", "num_classes": 10, "image_size": 8, "overrides": OVERRIDES}


@pytest.fixture
def network():
    return models.create("resnet_pico", 10, 8, **OVERRIDES)


def variables_of(network):
    return network.init(jax.random.key(0), jnp.zeros(network.image_shape()))


def test_a_network_comes_back_from_its_directory_or_from_its_runs(tmp_path, network):
    variables = variables_of(network)
    save_network(tmp_path / "student", variables, DESCRIPTION)
    for path in (tmp_path / "student", tmp_path, str(tmp_path)):
        jax.tree.map(np.testing.assert_array_equal, load_network(path, network), variables)


def test_a_missing_network_is_said(tmp_path, network):
    with pytest.raises(UserError, match="no finished network in"):
        load_network(tmp_path / "nowhere", network)


def test_every_leaf_that_does_not_fit_is_named(tmp_path, network):
    save_network(tmp_path, variables_of(network), DESCRIPTION)
    with pytest.raises(UserError, match="holds a resnet_pico with 10 classes, not this ResNet with 7") as error:
        load_network(tmp_path, network.clone(num_classes=7))
    assert "params/head/kernel is (8, 10) there and (8, 7) here" in str(error.value)
    assert "params/head/bias is (10,) there and (7,) here" in str(error.value)
    assert str(error.value).count(" there and ") == 2

    vit = models.create("vit_pico", 10, 8, image_channels=1)
    with pytest.raises(UserError, match="params/pos_embed is missing there") as error:
        load_network(tmp_path, vit)
    assert "batch_stats/stem_norm/mean is (4,) there and unknown here" in str(error.value)


def test_a_network_that_differs_in_no_array_is_still_another_one(tmp_path):
    overrides = {"image_channels": 1, "width": 12}
    made = models.create("vit_pico", 10, 8, **overrides)
    save_network(tmp_path, variables_of(made), DESCRIPTION | {"name": "vit_pico", "overrides": overrides})
    load_network(tmp_path, made.clone(dropout=0.5))
    with pytest.raises(
        UserError, match=r"holds another vit_pico: mean is \(0.5,\) there and \(0.0,\) here; heads is 3"
    ):
        load_network(tmp_path, made.clone(heads=6, mean=(0.0,)))


def test_damaged_variables_are_said(tmp_path, network):
    save_network(tmp_path, variables_of(network), DESCRIPTION)
    (tmp_path / "variables" / "_METADATA").unlink()
    with pytest.raises(UserError, match="variables is damaged"):
        load_network(tmp_path, network)
