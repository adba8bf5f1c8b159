import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lfcc_jax import models
from lfcc_jax.errors import UserError
from lfcc_jax.learned_filter import learned_filter_init
from lfcc_jax.training import optimizer


def test_decay_mask_excludes_vectors_and_position_embeddings():
    network = models.create("vit_pico", 10, 8, image_channels=1)
    mask = optimizer.decay_mask(network.variable_shapes()["params"], network.decays)
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, decays in jax.tree_util.tree_leaves_with_path(mask)
        if decays
    }
    kernels = ["attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2"]
    expected = {f"blocks/{k}/kernel" for k in kernels} | {"head/kernel", "patch_embed/kernel"}
    assert decayed == expected


def test_optimizers_do_not_decay_learned_filters():
    filters = {"stage4": learned_filter_init((14, 14), (1, 4))}
    params = {"lfcc": {"filters": {"student": filters}, "student": {"stage4": {"out": {"kernel": jnp.ones((4, 4))}}}}}
    for name in ("adamw", "sgd"):
        tx = optimizer.create(name, lambda _: 0.1, weight_decay=0.5, decays=models.variant("resmlp_12").network.decays)
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        decayed = optax.apply_updates(params, updates)
        jax.tree.map(np.testing.assert_array_equal, decayed["lfcc"]["filters"], params["lfcc"]["filters"])
        assert np.all(decayed["lfcc"]["student"]["stage4"]["out"]["kernel"] < 1)


def test_optimizers_follow_the_networks_decay_rule():
    params = {"student": {"alpha": jnp.ones(3), "bias": jnp.ones(3), "kernel": jnp.ones((3, 3))}}
    for name in ("adamw", "sgd"):
        for network, decayed in (("resmlp_12", {"alpha", "kernel"}), ("resnet18", {"kernel"})):
            rule = models.variant(network).network.decays
            tx = optimizer.create(name, lambda _: 0.1, weight_decay=0.5, decays=rule)
            updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
            assert {key for key, update in updates["student"].items() if np.any(update)} == decayed


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_matches_pytorch(nesterov):
    # torch.optim.SGD, written out: d = g + wd w; v = m v + d; w -= lr v, or lr (d + m v) with Nesterov.
    tx = optimizer.create("sgd", lambda _: 0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01)
    params = {"kernel": jnp.array([[1.0, -2.0]])}
    state = tx.init(params)
    w, v = np.array([[1.0, -2.0]]), np.zeros((1, 2))
    for g in (0.5, -0.25, 1.0):
        d = g + 0.01 * w
        v = 0.9 * v + d
        w = w - 0.1 * (d + 0.9 * v if nesterov else v)
        updates, state = tx.update({"kernel": jnp.full((1, 2), g)}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"], w, rtol=1e-6)


def test_clip_norm_bounds_the_global_norm_of_the_gradient():
    clipped, free = (optimizer.create("sgd", lambda _: 1.0, clip_norm=c, momentum=0.0) for c in (1.0, 0.0))
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    grads = jax.tree.map(lambda x: jnp.full_like(x, 4.0), params)
    for tx, norm in ((clipped, 1.0), (free, 4.0 * 7**0.5)):
        updates, _ = tx.update(grads, tx.init(params), params)
        np.testing.assert_allclose(optax.tree.norm(updates), norm, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("adam", {}, "unknown optimizer 'adam'; did you mean 'adamw'"),
        ("sgd", {"b1": 0.9}, "unknown key 'b1'"),
        ("sgd", {"mask": None}, "config.optimizer.mask is set by the run and cannot be configured"),
        ("adamw", {"wieght_decay": 0.1}, "unknown key 'wieght_decay'; did you mean 'weight_decay'"),
    ],
)
def test_create_rejects_unknown_names_and_settings(name, settings, message):
    with pytest.raises(UserError, match=message):
        optimizer.create(name, lambda _: 0.1, **settings)
