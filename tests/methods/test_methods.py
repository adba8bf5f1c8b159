import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax import methods, models
from lfcc_jax.errors import UserError

BATCH = {"image": jnp.zeros((6, 8, 8, 1)), "label": jnp.arange(6) % 3}


def output(seed, size, channels):
    key = jax.random.key(seed)
    features = {f"stage{s}": jax.random.normal(key, (6, size, size, channels)) for s in (1, 2, 3, 4)}
    return models.Output(jax.random.normal(key, (6, 3)), features | {"pooled": jnp.zeros((6, channels))})


STUDENT, TEACHER = output(0, 8, 4), output(1, 4, 6)


@pytest.mark.parametrize("name", methods.list_methods())
def test_every_method_gives_a_finite_loss_for_each_example_and_no_gradient_to_the_teacher(name):
    method = methods.create(name)
    variables = method.init(jax.random.key(0), BATCH, STUDENT, TEACHER)

    def total(student, teacher):
        return sum(loss.sum() for loss in method.apply(variables, BATCH, student, teacher).values())

    losses = method.apply(variables, BATCH, STUDENT, TEACHER)
    assert losses
    for loss in losses.values():
        assert loss.shape == (6,)
        assert np.isfinite(loss).all()
    to_student, to_teacher = jax.grad(total, argnums=(0, 1))(STUDENT, TEACHER)
    assert max(np.abs(g).max() for g in jax.tree.leaves(to_student)) > 0
    assert max(np.abs(g).max() for g in jax.tree.leaves(to_teacher)) == 0


@pytest.mark.parametrize("name", methods.list_methods())
def test_the_order_of_a_batch_does_not_matter(name):
    method = methods.create(name)
    variables = method.init(jax.random.key(0), BATCH, STUDENT, TEACHER)
    order = np.array([3, 1, 5, 0, 4, 2])
    shuffled = jax.tree.map(lambda x: x[order], (BATCH, STUDENT, TEACHER))
    for key, loss in method.apply(variables, BATCH, STUDENT, TEACHER).items():
        np.testing.assert_allclose(method.apply(variables, *shuffled)[key], loss[order], rtol=1e-5)


def test_lfcc_takes_all_the_options_of_its_loss():
    for settings in ({"kind": "learned"}, {"projector": "mlp"}, {"negatives": "both"}, {"stages": ("stage4",)}):
        method = methods.create("lfcc", **settings)
        losses, variables = method.init_with_output(jax.random.key(0), BATCH, STUDENT, TEACHER)
        assert np.isfinite(losses["lfcc"]).all()
        assert ("filters" in variables["params"]["lfcc"]) == (settings.get("kind") == "learned")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lfc", {}, "unknown method 'lfc'; did you mean 'lfcc'? Known: cross_entropy, kd, lfcc"),
        ("kd", {"temprature": 2.0}, "unknown key 'temprature'; did you mean 'temperature'"),
        ("lfcc", {"stages": ("stage5",)}, "unknown stage 'stage5'; did you mean 'stage4'"),
        ("lfcc", {"kind": "boks"}, "unknown filter kind 'boks'; did you mean 'box'"),
    ],
)
def test_what_cannot_work_is_said(name, settings, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        methods.create(name, **settings).init(jax.random.key(0), BATCH, STUDENT, TEACHER)
