import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lfcc_jax.digest import changes, digests, not_finite


def split_mix(index):
    """SplitMix64 in Python integers."""
    x = index * 0x9E3779B97F4A7C15 % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return (x ^ x >> 31) | 1


def digest(array):
    return digests({"x": array})["x"]


def test_digest_is_the_documented_sum():
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    bits = x.view(np.uint32).tolist()
    total = sum(bits[i][j] * split_mix(i + 1) * split_mix(j + 1 + 2**40) for i in range(3) for j in range(5))
    assert digest(x) == f"float32[3,5] {total % 2**64:016x}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool", "uint8"])
def test_every_single_bit_flip_changes_the_digest(dtype):
    x = np.random.default_rng(0).integers(0, 2, (2, 3)).astype(jnp.dtype(dtype))
    before, changed = digest(x), set()
    flat = x.reshape(-1).view(np.uint8)
    for byte in range(flat.size):
        for bit in range(8):
            flat[byte] ^= 1 << bit
            changed.add(digest(x))
            flat[byte] ^= 1 << bit
    assert before not in changed
    assert len(changed) == flat.size * 8


def test_digest_depends_on_dtype_shape_order_and_signs():
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    flipped = x.copy()
    flipped[1, 2], flipped[3, 0] = -x[1, 2], -x[3, 0]
    others = (x, x.T.copy(), x.view(np.int32), x.reshape(2, 8), x[::-1].copy(), x[:, ::-1].copy(), flipped, -x)
    assert len({digest(other) for other in others}) == len(others)


def test_digest_does_not_depend_on_sharding():
    x = np.random.default_rng(0).normal(size=(16, 8, 3)).astype(np.float32)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for spec in (PartitionSpec(), PartitionSpec("a"), PartitionSpec(None, "b"), PartitionSpec("b", "a")):
        assert digest(jax.device_put(x, NamedSharding(mesh, spec))) == digest(x), spec
    assert digest(np.asfortranarray(x)) == digest(x)


def test_digests_of_keys_scalars_and_empty_arrays():
    tree = {"key": jax.random.key(3), "step": jnp.int32(7), "none": None, "empty": np.zeros((0, 4), np.float32)}
    result = digests(tree)
    assert result == {
        "empty": "float32[0,4] " + 16 * "0",
        "key": digest(jax.random.key_data(jax.random.key(3))).replace("uint32[2]", "key<fry>[]"),
        "step": "int32[] 0000000000000007",
    }
    assert changes(result, digests(tree | {"key": jax.random.key(4)})) == ["key"]


def test_changes_names_missing_arrays():
    assert changes({"a": "1", "b": "2"}, {"b": "2", "c": "3"}) == ["a", "c"]
    assert changes({"a": "1"}, {"a": "1"}) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_names_the_arrays(value):
    mesh = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(np.zeros((8, 2), np.float32), NamedSharding(mesh, PartitionSpec("a")))
    tree = {"fine": x, "key": jax.random.key(0), "count": jnp.int32(2**31 - 1), "half": jnp.bfloat16(3e38)}
    assert not_finite(tree) == []
    assert not_finite(tree | {"bad": {"x": x.at[5, 1].set(value)}, "half": jnp.bfloat16(value)}) == ["bad/x", "half"]
