"""RandAugment operations against results of Pillow and timm, recorded in tests/goldens/augmentation.npz."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax.data.augmentation import operations, policy, warp
from lfcc_jax.errors import UserError

GOLDEN = dict(np.load(Path(__file__).parents[2] / "goldens" / "augmentation.npz"))
IMAGE = jnp.asarray(GOLDEN["picture"], jnp.float32)
FILL = jnp.asarray(GOLDEN["fill"], jnp.float32)
# timm's names, in our order.
TIMM_NAMES = {
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


@jax.jit
def apply_operation(image, operation, argument):
    return operations.apply(image, operations.change(image, operation, argument), FILL[: image.shape[-1]])


def result_of(name, argument, image=IMAGE):
    index = operations.NAMES.index(name) if name else -1
    return np.asarray(apply_operation(image, jnp.int32(index), jnp.float32(argument)))


@pytest.mark.parametrize("name", operations.NAMES)
def test_operation_matches_pillow(name):
    difference = np.abs(result_of(name, GOLDEN[f"{name}/argument"]) - GOLDEN[f"{name}/result"])
    # Pillow interpolates in double precision, so rounding may differ by one level.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.1
    others = [other for other in operations.NAMES if other != name]
    nearest = min(np.abs(result_of(o, GOLDEN[f"{o}/argument"]) - GOLDEN[f"{name}/result"]).max() for o in others)
    assert nearest > 5  # negative control: other operations differ


def test_unknown_operation_is_the_identity():
    np.testing.assert_array_equal(result_of(None, 0.0), IMAGE)


@pytest.mark.parametrize("name", operations.NAMES)
def test_operation_keeps_constant_and_grayscale_images_in_range(name):
    argument = GOLDEN[f"{name}/argument"]
    for image in (jnp.full((6, 5, 3), 77.0), IMAGE[..., :1]):
        result = result_of(name, argument, image)
        assert result.shape == image.shape
        assert np.array_equal(result, np.clip(np.round(result), 0, 255))
    if name in ("autocontrast", "equalize", "color", "sharpness", "contrast"):
        np.testing.assert_array_equal(result_of(name, argument, jnp.full((6, 5, 3), 77.0)), 77)


@pytest.mark.parametrize("magnitude", [0.0, 4.5, 9.0, 10.0])
def test_arguments_match_timm(magnitude):
    for negative, sign in ((False, 1), (True, -1)):
        ours = dict(zip(operations.NAMES, policy.arguments(jnp.float32(magnitude), jnp.array(negative)), strict=True))
        for name, theirs in TIMM_NAMES.items():
            golden = GOLDEN[f"level/{magnitude:g}/{theirs}"]
            if name in operations.SIGNED and sign < 0:
                golden = max(0.1, 2 - golden) if name in ("color", "contrast", "brightness", "sharpness") else -golden
            np.testing.assert_allclose(ours[name], golden, rtol=1e-6, atol=1e-7, err_msg=name)


def test_parse_policy_matches_timm():
    parsed = policy.parse_policy("rand-m9-mstd0.5-inc1")
    assert parsed == (9.0, 0.5, GOLDEN["policy/layers"], GOLDEN["policy/p"])
    assert len(operations.NAMES) == GOLDEN["policy/operations"]
    assert policy.parse_policy("rand-m7-n3-p1-inc1") == (7.0, 0.0, 3, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rand-m9", "must be a policy like 'rand-m9-mstd0.5-inc1', got 'rand-m9'"),
        ("augmix-m9-inc1", "must be a policy like"),
        ("rand-x9-inc1", "must consist of m, mstd, n and p, each with a number, and inc1, got 'x9'"),
        ("rand-m11-inc1", "config.data.augmentation.randaugment.magnitude must be a number between 0 and 10"),
        ("rand-m9-mstd1000-inc1", "spread must be a number between 0 and 100, got 1000.0"),
        ("rand-m9-n1000000-inc1", "layers must be an integer between 1 and 16, got 1000000"),
        ("rand-m9-n0-inc1", "layers must be an integer between 1 and 16, got 0"),
        ("rand-m9-p1.5-inc1", r"probability must be a number in \[0, 1\], got 1.5"),
    ],
)
def test_parse_policy_rejects_invalid_policies(text, message):
    with pytest.raises(UserError, match=message):
        policy.parse_policy(text)


def test_tpu_histogram_and_lookup_match_the_default():
    tables = jax.random.randint(jax.random.key(0), (3, 256), 0, 256).astype(jnp.float32)
    counts = np.stack([np.bincount(GOLDEN["picture"][..., c].ravel(), minlength=256) for c in range(3)])
    two = jnp.stack([IMAGE, IMAGE]), jnp.array([False, True])
    for count in (operations.histogram, operations._count_with_matmul):
        np.testing.assert_array_equal(count(IMAGE, jnp.array(True)), counts)
        np.testing.assert_array_equal(jax.vmap(count)(*two)[1], counts)
    np.testing.assert_array_equal(jax.vmap(operations.histogram)(*two)[0], 0 * counts)
    expected = np.stack([np.asarray(tables)[c][GOLDEN["picture"][..., c]] for c in range(3)], axis=-1)
    for look_up in (operations.look_up, operations._look_up_with_matmul):
        np.testing.assert_array_equal(look_up(IMAGE, tables), expected)


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
@pytest.mark.parametrize("fraction", [1.0, -1.0, 0.3, 0.0])
def test_tpu_warp_by_shears_matches_the_default(name, fraction):
    # A smooth image, since the three interpolations of a rotation blur fine detail.
    y, x = jnp.mgrid[:40, :48]
    smooth = 127 + 100 * jnp.stack([jnp.sin(x / 9 + c) * jnp.cos(y / (8 + c)) for c in range(3)], axis=-1)
    maximum = dict(zip(operations.NAMES, policy.arguments(jnp.float32(10), jnp.array(False)), strict=True))[name]
    affine = operations.change(smooth, jnp.int32(operations.NAMES.index(name)), fraction * maximum).affine
    inside = np.asarray(warp._inside(affine, 40, 48))
    difference = np.abs(warp._read_by_shears(smooth, affine) - warp._read(smooth, affine))[inside]
    assert inside.mean() > 0.4
    assert difference.max() < (6 if name == "rotate" else 1e-2)
    assert difference.mean() < (0.6 if name == "rotate" else 1e-3)
    if fraction == 1.0:
        identity = operations.change(smooth, jnp.int32(-1), jnp.float32(0)).affine
        assert np.abs(warp._read(smooth, identity) - warp._read(smooth, affine))[inside].mean() > 5
