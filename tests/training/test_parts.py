"""Images that are augmented, and pass through a teacher, a few at a time."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tpu.collectives import collectives
from lfcc_jax.data import Images, augmentation
from lfcc_jax.errors import UserError
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training.config import read_config
from lfcc_jax.training.distillation import build
from lfcc_jax.training.parts import Parts, check_parts
from lfcc_jax.training.sharding import batch_sharding, create_mesh, to_global


def test_parts_give_what_all_images_at_once_give_and_no_image_changes_its_device():
    mesh = create_mesh(4, 2)
    seen = []

    def function(index, images):
        seen.append(images.shape)
        return {"sum": images.sum((1, 2)) * index[:, None], "maps": images[:, ::2].astype(jnp.int32)}

    rng = np.random.default_rng(0)
    batch = to_global({"index": rng.permutation(48), "image": rng.integers(0, 9, (48, 4, 4, 3))}, mesh)
    arguments = batch["index"], batch["image"]
    compiled = jax.jit(Parts(mesh, 2)(function)).lower(*arguments).compile()
    results = compiled(*arguments)
    assert seen == [(16, 4, 4, 3)]  # two images from each of eight devices
    assert not collectives(compiled.as_text())
    for name, expected in function(*map(np.asarray, arguments)).items():
        np.testing.assert_array_equal(results[name], expected)
        assert results[name].sharding.is_equivalent_to(batch_sharding(mesh), results[name].ndim)


@pytest.mark.parametrize("size", [0, 6, -1])
def test_all_images_are_one_part_if_asked_or_not_on_a_tpu(size):
    mesh = create_mesh()
    function = Parts(mesh, size)(lambda x: x + 1)
    assert "scan" not in str(jax.make_jaxpr(function)(jnp.zeros((6 * mesh.size, 2, 2, 1))))


def test_what_a_network_returns_for_no_image_needs_all_at_once():
    mesh = create_mesh()
    images = jnp.ones((4 * mesh.size, 2, 2, 1))
    result = Parts(mesh, 2)(lambda x: {"logits": x[:, 0, 0], "positions": jnp.arange(3.0)})(images)
    np.testing.assert_array_equal(result["positions"], [0, 1, 2])
    assert result["logits"].shape == (4 * mesh.size, 1)


def test_size_must_divide_the_images_of_a_device():
    mesh = create_mesh()
    with pytest.raises(UserError, match="must divide the number of images of each device, 6, got 4; use 3, or 0 for"):
        Parts(mesh, 4)(lambda x: x)(jnp.zeros((6 * mesh.size, 2, 2, 1)))
    with pytest.raises(UserError, match="config.images_at_once must .*, 6, got 100; use 6"):
        check_parts(100, 6 * mesh.size, mesh)


def test_run_whose_parts_do_not_divide_writes_nothing(tiny, tmp_path):
    with pytest.raises(UserError, match="config.images_at_once must divide .*, 4, got 3; use 2"):
        train_and_evaluate(tiny(images_at_once=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("count", "side", "fsdp", "size"),
    [
        (64, 224, 1, 8),
        (60, 224, 1, 6),
        (100, 224, 1, 5),
        (68, 224, 1, 4),
        (67, 224, 1, 67),  # has no divisor from 4 to 8
        (6, 224, 1, 6),
        (64, 384, 1, 2),
        (2, 1024, 1, 1),
        (64, 32, 1, 64),
        (1024, 32, 1, 256),
        (64, 224, 2, 64),
    ],
)
def test_size_that_a_tpu_takes(count, side, fsdp, size):
    chips = np.array([types.SimpleNamespace(platform="tpu")])
    mesh = types.SimpleNamespace(devices=chips, shape={"fsdp": fsdp}, size=1)
    images = jax.ShapeDtypeStruct((count, side, side, 3), jnp.float32)
    assert Parts(mesh).count(images) == count // size


@pytest.mark.parametrize(
    "kind", ["box", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("none", "learned"))]
)
def test_training_step_in_parts_is_that_of_all_images_at_once(tiny, kind):
    mesh = create_mesh(2)
    images = Images(num_classes=10, size=8, channels=1, count=32)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (16, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 10, 16, np.int32),
        "index": rng.permutation(16).astype(np.int32),
    }
    augment = augmentation.create(10, color_jitter=0.4, erasing=0.5, mixup=0.8, flip=True)
    networks = {
        "teacher": {"name": "vit_pico", "width": 12, "depth": 4},
        "losses": {"kd": {}, "lfcc": {"width": 8, "grids": (2, 1), "kind": kind}, "at": {}},
    }

    def step(**config):
        distillation = build(read_config(tiny(**networks, **config)), images)
        teacher = distillation.teachers[""]
        variables = jax.jit(teacher.init)(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))
        arguments = distillation.create_state(mesh, 0), {"": variables}, to_global(batch, mesh)
        lowered = distillation.train_step(mesh, augment).lower(*arguments)
        state, metrics = lowered.compile()(*arguments)
        return lowered.as_text().count("stablehlo.while"), jax.device_get((state.params, metrics))

    loops, whole = step()
    loops_in_parts, in_parts = step(images_at_once=2)
    assert loops_in_parts == loops + 3  # the augmentation before and after the mixing, and the teacher
    for x, y in zip(*map(jax.tree.leaves, (in_parts, whole)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
