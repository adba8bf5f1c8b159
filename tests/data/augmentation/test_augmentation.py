"""Random crops, boxes and shares against timm's distributions; and that pixels depend on seed, step and image alone."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lfcc_jax.data.augmentation import create, crops, mixing
from lfcc_jax.data.augmentation.erasing import random_erasing
from lfcc_jax.errors import UserError
from lfcc_jax.training.sharding import batch_sharding, create_mesh

GOLDEN = dict(np.load(Path(__file__).parents[2] / "goldens" / "augmentation.npz"))
QUANTILES = np.linspace(0.05, 0.95, 19)
DRAWS = 20_000
ALL = {
    "padding": 2,
    "size": 24,
    "flip": True,
    "randaugment": "rand-m9-mstd0.5-inc1",
    "erasing": 0.5,
    "mixup": 0.8,
    "cutmix": 1.0,
}
KEY = jax.random.key(3)


def batch(count=16, channels=3, size=20):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, channels), np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.arange(count) % 5, "index": jnp.arange(count) + 100}


def test_random_boxes_are_distributed_as_timms():
    keys = jax.random.split(KEY, DRAWS)
    erase_ratio = (float(np.log(0.3)), -float(np.log(0.3)))
    for golden, scale, ratio in (
        (GOLDEN["crops"], (0.08, 1.0), crops._LOG_RATIO),
        (GOLDEN["erased"], (0.02, 1 / 3), erase_ratio),
    ):
        *box, found = jax.vmap(functools.partial(crops.random_box, height=32, width=32, scale=scale, log_ratio=ratio))(
            keys
        )
        box = np.stack(box, axis=1)[np.asarray(found)]
        means = np.quantile(box, QUANTILES, axis=0)
        # Whole pixels of 32, from at least 5,000 draws of each: a quantile may be on the next pixel.
        assert np.abs(means - golden).max() <= 1
        assert np.abs(means - golden).mean() < 0.25
    *wrong, _ = jax.vmap(lambda key: crops.random_box(key, 32, 32, (0.25, 1.0)))(keys)
    assert np.abs(np.quantile(np.stack(wrong, axis=1), QUANTILES, axis=0) - GOLDEN["crops"]).mean() > 0.5


@pytest.mark.parametrize(("kind", "alphas"), [("mixup", (0.8, 0.0)), ("cutmix", (0.0, 1.0))])
def test_shares_are_distributed_as_timms(kind, alphas):
    how = mixing.Mix(*alphas, switch=0.5, probability=1.0)
    images, targets = jnp.zeros((2, 32, 32, 1)), jnp.eye(2)
    keys = jax.random.split(KEY, DRAWS)
    kept = jax.jit(jax.vmap(lambda key: mixing.mix(key, images, targets, how)[1][0, 0]))(keys)
    # The standard error of a quantile from 5,000 draws, with densities of about one half at the ends: 0.014.
    assert np.abs(np.quantile(kept, QUANTILES) - GOLDEN[kind]).max() < 0.035


def test_a_mixed_image_is_made_of_two_with_the_shares_of_its_target():
    shape = (4, 16, 16, 1)
    images = jnp.broadcast_to(jnp.eye(4)[:, :1].reshape(4, 1, 1, 1), shape)  # the first is white, the others black
    for alphas in ((0.8, 0.0), (0.0, 1.0), (0.8, 1.0)):
        mixed, targets = mixing.mix(KEY, images, jnp.eye(4), mixing.Mix(*alphas, 0.5, 1.0))
        np.testing.assert_allclose(targets.sum(axis=-1), 1, rtol=1e-6)
        np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), targets[:, 0], atol=1e-6)
        assert set(np.flatnonzero(targets[0])) == {0, 3}
        assert set(np.flatnonzero(targets[1])) == {1, 2}
    mixed, targets = mixing.mix(KEY, images, jnp.eye(4), mixing.Mix(0.8, 1.0, 0.5, 0.0))
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(targets, jnp.eye(4))


def test_erased_pixels_are_noise_of_the_datas_mean_and_deviation():
    mean, std = jnp.array([0.2, 0.5]), jnp.array([0.1, 0.3])
    images = jax.vmap(lambda k: random_erasing(k, jnp.full((16, 16, 2), -9.0), 1.0, mean, std))(
        jax.random.split(KEY, 400)
    )
    erased = np.asarray(images).reshape(-1, 2)
    erased = erased[erased[:, 0] != -9.0]
    np.testing.assert_allclose(erased.mean(axis=0), mean, atol=0.01)
    np.testing.assert_allclose(erased.std(axis=0), std, rtol=0.03)


def test_a_padded_crop_is_the_image_moved_by_whole_pixels():
    image = jnp.arange(1.0, 17.0).reshape(4, 4, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    places = {padded[i : i + 4, j : j + 4].tobytes(): (i, j) for i in range(3) for j in range(3)}
    moved = jax.vmap(lambda key: crops.padded_crop(key, image, 1))(jax.random.split(KEY, 200))
    assert len({places[np.asarray(x).tobytes()] for x in moved}) == 9


def test_a_crop_of_the_whole_image_is_the_image_and_one_of_twice_the_size_is_larger():
    image = jnp.asarray(GOLDEN["picture"][:32, :32], jnp.float32)
    same = crops.random_resized_crop(KEY, image, 32, (1.0, 1.0))
    # With an area of one only a square fits, or nothing does and the whole image is taken.
    np.testing.assert_allclose(same, image, atol=1e-3)
    assert crops.random_resized_crop(KEY, image, 64, (0.08, 1.0)).shape == (64, 64, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_depend_on_seed_step_and_image_and_not_on_the_place_in_the_batch(channels):
    augment = jax.jit(create(5, **ALL | {"mixup": 0.0, "cutmix": 0.0}))
    given = batch(8, channels)
    images = augment(KEY, given)["image"]
    assert images.shape == (8, 24, 24, channels)
    other_way = augment(KEY, jax.tree.map(lambda x: x[::-1], given))["image"]
    np.testing.assert_array_equal(other_way[::-1], images)
    for key, changed in ((jax.random.key(4), given), (KEY, given | {"index": given["index"] + 1})):
        assert all(np.abs(a - b).max() > 0.1 for a, b in zip(augment(key, changed)["image"], images, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_eight_devices_make_the_pixels_and_targets_of_one(channels):
    augment = create(5, **ALL)
    given = batch(16, channels)
    alone = jax.jit(augment)(KEY, given)
    mesh = create_mesh(4, 2)
    split = jax.tree.map(lambda x: jax.device_put(x, batch_sharding(mesh)), given)
    together = jax.jit(augment, in_shardings=(NamedSharding(mesh, jax.P()), batch_sharding(mesh)))(KEY, split)
    np.testing.assert_allclose(together["target"], alone["target"], atol=1e-6)
    off = np.abs(together["image"] - alone["image"])
    # XLA sums in another order on an eighth of the batch, so a level that is nearly between two may fall otherwise.
    assert off.max() < 1.01 / 255
    assert (off > 1e-5).mean() < 1e-3
    np.testing.assert_allclose(alone["target"].sum(axis=-1), 1, rtol=1e-6)
    assert alone["label"].tolist() == alone["target"].argmax(axis=-1).tolist()


def test_only_mixing_sends_anything_between_devices():
    mesh = create_mesh(8)

    def text(**settings):
        given = batch(16)
        arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)), given)
        augment = jax.jit(create(5, **settings), out_shardings=batch_sharding(mesh))
        return augment.lower(KEY, arguments).compile().as_text()

    kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    each = text(**ALL | {"mixup": 0.0, "cutmix": 0.0})
    assert not [kind for kind in kinds if f" {kind}(" in each]
    # The partner is at the other end of the batch, so a device sends its images to one other, and gathers nothing.
    mixed = text(mixup=0.8, cutmix=1.0)
    assert [kind for kind in kinds if f" {kind}(" in mixed] == ["collective-permute"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"erasing": 1.5}, "config.data.augmentation.erasing: 1.5 is no probability"),
        ({"mixup": -1.0}, "augmentation.mixup: -1.0 will not do"),
        ({"padding": 1.5}, "augmentation.padding: 1.5 will not do; a whole number"),
        ({"scale": (0.5, 0.1)}, r"augmentation.scale: \(0.5, 0.1\) will not do"),
        ({"randaugment": "rand"}, "augmentation.randaugment: 'rand' will not do"),
    ],
)
def test_a_value_that_makes_no_sense_is_said(settings, message):
    with pytest.raises(UserError, match=message):
        create(5, **settings)
