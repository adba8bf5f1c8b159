"""Values and gradients of every loss against published code, in float64.

`tests/goldens/published_losses.npz` was recorded once, in float64, from the PyTorch code that published the losses or
made them known: mdistiller (KD, DKD, AT, SP, RKD, PKT, ReviewKD's HCL), RepDistiller (CC, NST, VID, CRD),
image_classification_sota (DIST), OFAKD (OFA), and the authors' of TTM, WTTM and logit standardization. It holds values
(float64), gradients (float32, for a small file), VID's weights, and the sums of the inputs, which are generated here.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax import losses

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "published_losses.npz")


@functools.cache
def inputs():
    """Returns (student, teacher) by kind, as for the recording; channels of the maps come last."""
    rng = np.random.default_rng(0)
    drawn = {"logits": (3 * rng.normal(size=(16, 100)), 3 * rng.normal(size=(16, 100)))}
    drawn["labels"] = rng.integers(0, 100, 16)
    student, teacher, same = (rng.normal(size=shape) for shape in ((16, 32, 8, 8), (16, 64, 4, 4), (16, 32, 8, 8)))
    drawn["maps"] = tuple(np.moveaxis(x, 1, 3) for x in (student, teacher))
    drawn["same_maps"] = tuple(np.moveaxis(x, 1, 3) for x in (student, same))
    student, teacher, same = (rng.normal(size=(16, channels)) for channels in (64, 128, 64))
    drawn["vectors"], drawn["same_vectors"] = (student, teacher), (student, same)
    drawn["scores"] = (rng.uniform(1e-6, 1e-3, (16, 65)),)
    return drawn


def standardized_kd(student, teacher):
    return losses.kd(losses.standardize_logits(student), losses.standardize_logits(teacher), temperature=2.0)


def vid(student, teacher):
    for name in ("w0", "w1", "w2"):
        student = jax.nn.relu(student) if name != "w0" else student
        student = jnp.einsum("bhwc,dc->bhwd", student, GOLDENS[f"vid/{name}"].astype(np.float64))
    return losses.vid(student, teacher, jnp.asarray(GOLDENS["vid/log_scale"], student.dtype))


def crd(scores):
    return losses.crd_nce(jnp.log(scores[:, 0]), jnp.log(scores[:, 1:]), data_size=50000)


def labeled(loss, **settings):
    return lambda student, teacher: loss(student, teacher, jnp.asarray(inputs()["labels"]), **settings)


LOSSES = {
    "kd_T1": ("logits", losses.kd),
    "kd_T4": ("logits", functools.partial(losses.kd, temperature=4.0)),
    "dkd_a1_b8_T4": ("logits", labeled(losses.dkd)),
    "dist_b1_g1_T1": ("logits", losses.dist),
    "dist_b1_g1_T4": ("logits", functools.partial(losses.dist, temperature=4.0)),
    "ofa_g1_T1": ("logits", labeled(losses.ofa)),
    "ofa_g1.5_T1": ("logits", labeled(losses.ofa, exponent=1.5)),
    "logit_standard_kd_T2": ("logits", standardized_kd),
    "ttm_l0.2": ("logits", losses.ttm),
    "wttm_l0.2": ("logits", losses.wttm),
    "at_p2": ("maps", losses.at),
    "nst": ("maps", losses.nst),
    "sp": ("maps", losses.sp),
    "hcl": ("same_maps", losses.hcl),
    "vid": ("same_maps", vid),
    "cc": ("same_vectors", losses.cc),
    "rkd_d25_a50": ("vectors", losses.rkd),
    "pkt": ("vectors", losses.pkt),
    "crd_nce_N50000": ("scores", crd),
}


@pytest.mark.parametrize("kind", ["logits", "maps", "same_maps", "vectors", "same_vectors", "scores"])
def test_inputs_are_those_of_the_recording(kind):
    np.testing.assert_allclose([x.sum() for x in inputs()[kind]], GOLDENS[f"sum/{kind}"], rtol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_match_the_published_code(name):
    kind, loss = LOSSES[name]
    with jax.enable_x64(True):
        student, *teacher = map(jnp.asarray, inputs()[kind])
        value, gradient = jax.jit(jax.value_and_grad(lambda x: loss(x, *teacher).mean()))(student)
        assert value.dtype == jnp.float64
        value, gradient = np.asarray(value), np.asarray(gradient)
    np.testing.assert_allclose(value, GOLDENS[f"{name}/value"], rtol=1e-12)
    expected = GOLDENS[f"{name}/gradient"]  # relative precision 6e-8: recorded in float32
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


def test_goldens_and_losses_have_the_same_names():
    assert {key.rpartition("/")[0] for key in GOLDENS if key.endswith("/value")} == set(LOSSES)


def test_control_other_settings_differ_from_the_published_values():
    with jax.enable_x64(True):
        student, teacher = map(jnp.asarray, inputs()["logits"])
        biased = losses.kd(student / student.std(axis=1, keepdims=True), teacher, temperature=2.0).mean()
        assert abs(float(losses.ttm(student, teacher, exponent=0.21).mean()) / GOLDENS["ttm_l0.2/value"] - 1) > 1e-3
        assert abs(float(biased) / GOLDENS["logit_standard_kd_T2/value"] - 1) > 1e-3
