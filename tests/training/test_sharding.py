import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from lfcc_jax.errors import UserError
from lfcc_jax.training import sharding


def test_the_mesh_takes_all_devices_and_propagates_automatically():
    mesh = sharding.create_mesh()
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert dict(sharding.create_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert dict(sharding.create_mesh(data=1).shape) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize("shape", [{"data": 16}, {"fsdp": 3}, {"data": 0}, {"data": 4, "fsdp": 4}])
def test_a_mesh_that_cannot_be_laid_is_refused(shape):
    with pytest.raises(UserError, match="8 devices|devices; here are 8"):
        sharding.create_mesh(**shape)


def test_a_batch_must_divide_over_the_devices_and_the_nearest_that_do_are_named():
    mesh = sharding.create_mesh()
    sharding.check_batch_size(16, mesh, "config.batch_size")
    with pytest.raises(
        UserError, match="config.batch_size: a batch of 20 does not divide over 8 devices; 16 or 24 does"
    ):
        sharding.check_batch_size(20, mesh, "config.batch_size")
    with pytest.raises(UserError, match="; 8 does"):
        sharding.check_batch_size(3, mesh, "config.batch_size")


def test_large_weights_are_split_along_their_longest_dimension_that_divides():
    mesh = sharding.create_mesh(fsdp=4)
    tree = {
        "large": jnp.zeros((256, 1024)),
        "odd": jnp.zeros((257, 1023)),
        "tall": jnp.zeros((1024, 255)),
        "small": jnp.zeros(8),
    }
    specs = jax.tree.map(lambda s: s.spec, sharding.weight_shardings(tree, mesh))
    assert specs["large"] == PartitionSpec(None, "fsdp")
    assert specs["tall"] == PartitionSpec("fsdp", None)
    assert specs["odd"] == specs["small"] == PartitionSpec()


def test_without_an_fsdp_axis_everything_is_replicated():
    specs = jax.tree.map(lambda s: s.spec, sharding.weight_shardings(jnp.zeros((512, 512)), sharding.create_mesh()))
    assert specs == PartitionSpec()
