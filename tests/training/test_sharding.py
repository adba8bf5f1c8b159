import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from lfcc_jax.errors import UserError
from lfcc_jax.training import sharding


def test_create_mesh_uses_all_devices_with_automatic_axes():
    mesh = sharding.create_mesh()
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert dict(sharding.create_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert dict(sharding.create_mesh(data=1).shape) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize("shape", [{"data": 16}, {"fsdp": 3}, {"data": 0}, {"data": 4, "fsdp": 4}])
def test_create_mesh_rejects_invalid_shapes(shape):
    with pytest.raises(UserError, match="does not divide 8 devices|uses 16 devices, but the run has 8"):
        sharding.create_mesh(**shape)


def test_check_batch_size_rejects_other_than_multiples_and_suggests_the_nearest():
    mesh = sharding.create_mesh()
    sharding.check_batch_size(16, mesh, "config.batch_size")
    with pytest.raises(
        UserError, match="config.batch_size must be a multiple of the number of devices, 8, got 20; use 16 or 24"
    ):
        sharding.check_batch_size(20, mesh, "config.batch_size")
    with pytest.raises(UserError, match="; use 8$"):
        sharding.check_batch_size(3, mesh, "config.batch_size")


def test_weight_shardings_split_large_weights_along_their_longest_divisible_dimension():
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


def test_weight_shardings_without_fsdp_replicate_everything():
    specs = jax.tree.map(lambda s: s.spec, sharding.weight_shardings(jnp.zeros((512, 512)), sharding.create_mesh()))
    assert specs == PartitionSpec()
