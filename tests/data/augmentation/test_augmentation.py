"""Random crops, boxes and mixing ratios against timm's distributions; determinism of augmented pixels."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from PIL import Image, ImageEnhance

from lfcc_jax.data.augmentation import color_jitter, create, crops, mixing, operations, policy
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


def test_random_box_has_the_distribution_of_timm():
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
        quantiles = np.quantile(box, QUANTILES, axis=0)
        # Boxes have integer coordinates, so a quantile of 5,000 draws may be off by one pixel.
        assert np.abs(quantiles - golden).max() <= 1
        assert np.abs(quantiles - golden).mean() < 0.25
    *wrong, _ = jax.vmap(lambda key: crops.random_box(key, 32, 32, (0.25, 1.0)))(keys)
    assert np.abs(np.quantile(np.stack(wrong, axis=1), QUANTILES, axis=0) - GOLDEN["crops"]).mean() > 0.5


@pytest.mark.parametrize(("kind", "alphas"), [("mixup", (0.8, 0.0)), ("cutmix", (0.0, 1.0))])
def test_mix_ratios_have_the_distribution_of_timm(kind, alphas):
    settings = mixing.Mix(*alphas, switch=0.5, probability=1.0)
    images, targets = jnp.zeros((2, 32, 32, 1)), jnp.eye(2)
    keys = jax.random.split(KEY, DRAWS)
    kept = jax.jit(jax.vmap(lambda key: mixing.mix(key, images, targets, settings)[1][0, 0]))(keys)
    # The standard error of a quantile of 5,000 draws is at most 0.014, at densities of about 1/2.
    assert np.abs(np.quantile(kept, QUANTILES) - GOLDEN[kind]).max() < 0.035


def test_mix_applies_the_same_ratio_to_images_and_targets():
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


def test_random_erasing_noise_has_the_mean_and_std_of_the_data():
    mean, std = jnp.array([0.2, 0.5]), jnp.array([0.1, 0.3])
    images = jax.vmap(lambda k: random_erasing(k, jnp.full((16, 16, 2), -9.0), 1.0, mean, std))(
        jax.random.split(KEY, 400)
    )
    erased = np.asarray(images).reshape(-1, 2)
    erased = erased[erased[:, 0] != -9.0]
    np.testing.assert_allclose(erased.mean(axis=0), mean, atol=0.01)
    np.testing.assert_allclose(erased.std(axis=0), std, rtol=0.03)


def test_padded_crop_shifts_by_whole_pixels():
    image = jnp.arange(1.0, 17.0).reshape(4, 4, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    places = {padded[i : i + 4, j : j + 4].tobytes(): (i, j) for i in range(3) for j in range(3)}
    moved = jax.vmap(lambda key: crops.padded_crop(key, image, 1))(jax.random.split(KEY, 200))
    assert len({places[np.asarray(x).tobytes()] for x in moved}) == 9


def test_random_resized_crop_of_the_whole_area_is_the_image():
    image = jnp.asarray(GOLDEN["picture"][:32, :32], jnp.float32)
    same = crops.random_resized_crop(KEY, image, 32, (1.0, 1.0))
    # At an area fraction of 1, only the whole image fits; it is also the fallback.
    np.testing.assert_allclose(same, image, atol=1e-3)
    assert crops.random_resized_crop(KEY, image, 64, (0.08, 1.0)).shape == (64, 64, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_depend_on_key_and_index_but_not_on_batch_position(channels):
    augment = jax.jit(create(5, **ALL | {"mixup": 0.0, "cutmix": 0.0}))
    given = batch(8, channels)
    images = augment(KEY, given)["image"]
    assert images.shape == (8, 24, 24, channels)
    reversed_ = augment(KEY, jax.tree.map(lambda x: x[::-1], given))["image"]
    np.testing.assert_array_equal(reversed_[::-1], images)
    for key, changed in ((jax.random.key(4), given), (KEY, given | {"index": given["index"] + 1})):
        assert all(np.abs(a - b).max() > 0.1 for a, b in zip(augment(key, changed)["image"], images, strict=True))


def test_augmentation_on_eight_devices_matches_one():
    augment = create(5, **ALL)
    given = batch(16, 3)
    expected = jax.jit(augment)(KEY, given)
    mesh = create_mesh(4, 2)
    split = jax.tree.map(lambda x: jax.device_put(x, batch_sharding(mesh)), given)
    actual = jax.jit(augment, in_shardings=(NamedSharding(mesh, jax.P()), batch_sharding(mesh)))(KEY, split)
    np.testing.assert_allclose(actual["target"], expected["target"], atol=1e-6)
    difference = np.abs(actual["image"] - expected["image"])
    # The order of summation differs, so a value close to a rounding boundary may round differently.
    assert difference.max() < 1.01 / 255
    assert (difference > 1e-5).mean() < 1e-3
    np.testing.assert_allclose(expected["target"].sum(axis=-1), 1, rtol=1e-6)
    assert expected["label"].tolist() == expected["target"].argmax(axis=-1).tolist()


def test_only_mixing_communicates_between_devices():
    mesh = create_mesh(8)

    def text(**settings):
        given = batch(16)
        arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)), given)
        augment = jax.jit(create(5, **settings), out_shardings=batch_sharding(mesh))
        return augment.lower(KEY, arguments).compile().as_text()

    kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    each = text(**ALL | {"mixup": 0.0, "cutmix": 0.0})
    assert not [kind for kind in kinds if f" {kind}(" in each]
    # Image i is paired with image B-1-i, so each device exchanges images with one other device.
    mixed = text(mixup=0.8, cutmix=1.0)
    assert [kind for kind in kinds if f" {kind}(" in mixed] == ["collective-permute"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"erasing": 1.5}, r"config.data.augmentation.erasing must be a number in \[0, 1\], got 1.5"),
        ({"mixup": -1.0}, "augmentation.mixup must be a number between 0 and 1000, got -1.0"),
        ({"padding": 1.5}, "augmentation.padding must be an integer between 0 and 8192, got 1.5"),
        ({"scale": (0.5, 0.1)}, r"scale must be \(min, max\) with 0 < min <= max <= 1, got \(0.5, 0.1\)"),
        ({"randaugment": "rand"}, "augmentation.randaugment must be a policy like 'rand-m9-mstd0.5-inc1', got 'rand'"),
    ],
)
@pytest.mark.usefixtures("types_unchecked")
def test_augmentation_rejects_invalid_arguments(settings, message):
    with pytest.raises(UserError, match=message):
        create(5, **settings)


def test_flip_mirrors_half_of_the_images():
    image = np.arange(24.0, dtype=np.float32).reshape(2, 4, 3)
    flipped = np.asarray(jax.vmap(crops.flip, (0, None))(jax.random.split(KEY, 2000), jnp.asarray(image)))
    mirrored = (flipped == image[:, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(mirrored, ~(flipped == image).all((1, 2, 3)))
    assert abs(mirrored.mean() - 0.5) < 0.05


def test_random_resized_crop_matches_pillow_on_the_same_box():
    rng = np.random.default_rng(0)
    # A smooth image, so that pixels outside of the crop have little effect.
    y, x = np.mgrid[:40, :40] / 40
    pixels = np.stack([x, y, x * y], axis=-1) * 200 + rng.uniform(0, 30, (1, 1, 3))
    channels = [Image.fromarray(pixels[..., c].astype(np.float32)) for c in range(3)]
    cases = set()
    for key in jax.random.split(KEY, 12):
        box_key, method_key = jax.random.split(key)
        top, left, h, w, found = (float(v) for v in crops.random_box(box_key, 40, 40, (0.1, 1.0)))
        assert found
        cubic = bool(jax.random.bernoulli(method_key))
        box = (left, top, left + w, top + h)
        method = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
        expected = np.stack([np.asarray(c.crop(box).resize((24, 24), method)) for c in channels], axis=-1)
        ours = crops.random_resized_crop(key, jnp.asarray(pixels, jnp.float32), 24, (0.1, 1.0))
        # Pillow's cubic is sharper (a = -0.5 in both), and its border is the box's.
        np.testing.assert_allclose(np.asarray(ours)[4:-4, 4:-4], expected[4:-4, 4:-4], atol=1.0)
        cases |= {cubic, h > w}
    assert len(cases) == 2


def test_images_augmented_one_by_one_equal_those_augmented_at_once(monkeypatch):
    given = batch(size=24)
    at_once = jax.jit(create(5, **ALL))(KEY, given)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    lowered = jax.jit(create(5, **ALL)).lower(KEY, given)
    assert "stablehlo.while" in lowered.as_text()
    one_by_one = lowered.compile()(KEY, given)
    different = np.abs(at_once["image"] - one_by_one["image"]) > 1e-5  # the noise of erasing is not rounded
    assert different.mean() < 2e-4
    np.testing.assert_allclose(at_once["image"], one_by_one["image"], rtol=0, atol=1.01 / 255)
    np.testing.assert_array_equal(at_once["target"], one_by_one["target"])


def test_randaugment_draws_operations_uniformly_and_applies_them_with_the_given_probability(monkeypatch):
    # Each layer writes its operation into the last pixel, 0 for none, and moves the others up.
    def apply(image, operation, fill):
        return jnp.concatenate([image[1:], (operation + 1).astype(image.dtype).reshape(1, 1, 1)])

    monkeypatch.setattr(policy, "change", lambda image, operation, argument: operation)
    monkeypatch.setattr(policy, "apply", apply)
    settings = policy.parse_policy("rand-m9-mstd0.5-n3-p0.7-inc1")

    def pixels(key):
        return policy.randaugment(key, jnp.zeros((3, 1, 1)), settings, jnp.zeros(1))[:, 0, 0]

    found = np.asarray(jax.vmap(pixels)(jax.random.split(KEY, 6000))).astype(int) - 1
    assert abs((found >= 0).mean() - 0.7) < 0.02
    frequencies = np.bincount(found[found >= 0], minlength=len(policy.NAMES)) / (found >= 0).sum()
    assert len(frequencies) == 15
    assert np.abs(frequencies - 1 / 15).max() < 0.01
    assert abs(np.mean(found[:, 0] == found[:, 1]) - (0.49 / 15 + 0.09)) < 0.02  # layers are drawn independently


@pytest.mark.parametrize("switch", [0.0, 0.3, 1.0])
def test_mix_uses_cutmix_with_the_given_probability(switch):
    images = jnp.stack([jnp.zeros((8, 8, 1)), jnp.ones((8, 8, 1))])
    settings = mixing.Mix(0.8, 1.0, switch, 1.0)
    mixed = np.asarray(
        jax.vmap(lambda key: mixing.mix(key, images, jnp.eye(2), settings)[0])(jax.random.split(KEY, 2000))
    )
    blended = ((mixed > 1e-3) & (mixed < 1 - 1e-3)).any((1, 2, 3, 4))
    # A mixup ratio close to 0 or 1 does not count as blended.
    assert abs(blended.mean() - (1 - switch)) < 0.06


def test_color_jitter_matches_pillow_enhancements_in_random_order():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    enhancements = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "color": ImageEnhance.Color,
    }
    jitter = jax.jit(lambda key, x: color_jitter.color_jitter(key, x, 0.4, jnp.zeros(3)))
    for key in jax.random.split(KEY, 6):
        order_key, factor_key = jax.random.split(key)
        known = jnp.array([operations.NAMES.index(name) for name in enhancements])
        order = jax.random.permutation(order_key, known)
        factors = jax.random.uniform(factor_key, (3,), minval=0.6, maxval=1.4)
        expected = image
        for index, factor in zip(order, factors, strict=True):
            expected = enhancements[operations.NAMES[int(index)]](expected).enhance(float(factor))
        ours = jitter(key, jnp.asarray(np.asarray(image), jnp.float32))
        difference = np.abs(np.asarray(ours) - np.asarray(expected, np.float32))
        assert difference.max() <= 3  # one level in each of three steps
        assert difference.mean() < 0.5
    whole = create(10, color_jitter=0.4)(KEY, batch())["image"]
    assert np.abs(np.asarray(whole) - np.asarray(batch()["image"]) / 255).mean() > 0.02


def test_erasing_comes_after_mixing():
    white = batch() | {"image": jnp.full((16, 20, 20, 3), 255, jnp.uint8)}
    noisy = create(5, erasing=1.0, mixup=0.8, mean=(0.0,), std=(0.0,))(KEY, white)["image"]
    # Each pixel is white or constant noise of 0; mixing after erasing would give gray pixels.
    assert set(np.unique(noisy)) == {0.0, 1.0}
