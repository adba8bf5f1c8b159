"""Methods with state or projectors of their own: RSD, the queue, UNIC's regression, two views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax import losses, methods, models
from lfcc_jax.errors import UserError


def vectors(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def outputs(seed=0, batch=6):
    maps = {"stage4": vectors(batch, 4, 4, 8, seed=seed), "pooled": vectors(batch, 8, seed=seed + 1)}
    theirs = {"stage4": vectors(batch, 2, 2, 5, seed=seed + 2), "pooled": vectors(batch, 5, seed=seed + 3)}
    logits = vectors(batch, 3, seed=seed + 4), vectors(batch, 3, seed=seed + 5)
    return models.Output(logits[0], maps), methods.TeacherOutput(logits[1], theirs, {})


def test_rsd_projector_is_that_of_the_authors_and_is_applied_by_group():
    student, taught = outputs()
    method = methods.create("rsd", groups=2)
    params = method.init(jax.random.key(0), {}, student, taught)["params"]
    assert jax.tree.map(jnp.shape, params) == {
        "projector": {
            "expand": {"kernel": (8, 16)},
            "norm": {"scale": (16,), "bias": (16,)},
            "reduce": {"kernel": (16, 5)},
        }
    }
    kernels = params["projector"]["expand"]["kernel"], params["projector"]["reduce"]["kernel"]
    for kernel in kernels:
        assert 0.015 < np.std(kernel) < 0.025

    def projected(x):
        x = x @ kernels[0]
        x = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
        return jax.nn.gelu(x, approximate=False) @ kernels[1]

    ours, theirs = student.features["pooled"], taught.features["pooled"]
    halves = [losses.rsd(projected(ours[part]), theirs[part]) for part in (slice(3), slice(3, 6))]
    np.testing.assert_allclose(method.apply({"params": params}, {}, student, taught), np.mean(halves), rtol=1e-3)
    whole = methods.create("rsd").apply({"params": params}, {}, student, taught)
    np.testing.assert_allclose(whole, losses.rsd(projected(ours), theirs), rtol=1e-3)


def test_rsd_on_logits_has_no_projector():
    student, taught = outputs()
    method = methods.create("rsd", on="logits")
    variables = method.init(jax.random.key(0), {}, student, taught)
    assert variables == {}
    np.testing.assert_allclose(
        method.apply({}, {}, student, taught), losses.rsd(student.logits, taught.logits), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "settings", "change", "message"),
    [
        ("rsd", {"groups": 4}, {}, "config.losses.rsd.groups must divide the batch of 6 images, got 4"),
        (
            "queue",
            {},
            {"features": {"stage4": jnp.ones((6, 1, 1, 5)), "pooled": jnp.ones((6, 5))}},
            "larger than 1 x 1",
        ),
        ("dual_view", {}, {"features": {"stage4": jnp.ones((6, 1, 1, 5))}}, "dual_view.stages .* larger than 1 x 1"),
    ],
)
def test_newer_methods_reject_networks_that_do_not_fit(name, settings, change, message):
    student, taught = outputs()
    fitting = methods.create(name).init(jax.random.key(0), {}, student, taught)
    with pytest.raises(UserError, match=message):
        methods.create(name, **settings).apply(fitting, {}, student, taught._replace(**change), mutable=["memory"])


def test_queue_holds_the_newest_vectors_of_the_teacher_and_ignores_entries_that_are_not_filled():
    method = methods.create("queue", size=16)
    student, taught = outputs()
    variables = method.init(jax.random.key(0), {}, student, taught)
    params, memory = variables["params"], {"memory": variables["memory"]}
    assert not np.any(memory["memory"]["queue"])
    seen = np.zeros((0, 5), np.float32)
    for seed in (0, 10, 20):
        student, taught = outputs(seed)
        loss, memory = method.apply({"params": params, **memory}, {}, student, taught, mutable=["memory"])
        theirs = taught.features["pooled"]
        seen = np.concatenate([theirs / np.linalg.norm(theirs, axis=1, keepdims=True), seen])[:16]
        queue = memory["memory"]["queue"]
        np.testing.assert_allclose(queue[: len(seen)], seen, rtol=1e-5, atol=1e-6)
        assert not np.any(queue[len(seen) :])
        ours = student.features["pooled"] @ params["pooled"]["kernel"] + params["pooled"]["bias"][None]
        expected = losses.queue_similarity(ours, theirs, jnp.asarray(seen))
        np.testing.assert_allclose(loss["global"], expected, rtol=1e-4)
    # Only the first entries of a batch that is larger than the queue are kept.
    small = methods.create("queue", size=4)
    start = {"params": params, "memory": {"queue": jnp.zeros((4, 5))}}
    _, memory = small.apply(start, {}, student, taught, mutable=["memory"])
    np.testing.assert_array_equal(memory["memory"]["queue"], queue[:4])


def test_queue_without_its_local_part_needs_no_maps():
    student, taught = (output._replace(features={"pooled": output.features["pooled"]}) for output in outputs())
    loss = methods.create("queue", local_weight=0.0).init_with_output(jax.random.key(0), {}, student, taught)[0]
    assert list(loss) == ["global"]


def test_queue_and_statistics_are_the_same_for_a_batch_on_one_device_and_on_eight():
    student, taught = outputs(batch=16)
    for name in ("queue", "regression"):
        method = methods.create(name, **({"size": 24} if name == "queue" else {}))
        variables = method.init(jax.random.key(0), {}, student, taught)
        results = []
        for count in (1, 8):
            mesh = jax.make_mesh((count,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:count])
            split, everywhere = (jax.NamedSharding(mesh, spec) for spec in (jax.P("data"), jax.P()))
            step = jax.jit(lambda v, s, t, method=method: method.apply(v, {}, s, t, mutable=["memory"]))
            state = jax.device_put(variables, everywhere)
            for _ in range(2):
                loss, memory = step(state, *jax.device_put((student, taught), split))
                state = state | jax.device_put(memory, everywhere)
            results.append(jax.device_get((loss, memory)))
        for one, eight in zip(*map(jax.tree.leaves, results), strict=True):
            np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-6)
            assert np.any(one)
