"""The benchmark's recipes, compared with timm's schedulers and parameter groups."""

import importlib
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import benchmark
from lfcc_jax import convert, models
from lfcc_jax.data import Images
from lfcc_jax.errors import UserError
from lfcc_jax.methods import presets
from lfcc_jax.training import schedules
from lfcc_jax.training.config import read_config
from lfcc_jax.training.distillation import build
from lfcc_jax.training.optimizer import decay_mask

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "timm_training.json").read_text())
PAIRS = [("cifar100", *pair) for pair in benchmark.CIFAR100_PAIRS] + [
    ("imagenet", *pair) for pair in benchmark.IMAGENET_PAIRS
]
# Number of parameters, by network and number of classes.
PARAMETERS = {
    ("resnet18", 100): 11_227_812,
    ("resnet18", 1000): 11_689_512,
    ("mobilenetv2_100", 100): 2_351_972,
    ("mobilenetv2_100", 1000): 3_504_872,
    ("deit_tiny", 100): 5_543_716,
    ("deit_tiny", 1000): 5_717_416,
    ("swin_pico", 100): 5_160_496,
    ("swin_nano", 1000): 9_599_940,
    ("resmlp_12", 100): 15_004_372,
    ("resmlp_12", 1000): 15_350_872,
    ("swin_tiny", 100): 27_596_254,
    ("swin_tiny", 1000): 28_288_354,
    ("vit_small", 100): 21_704_164,
    ("mixer_b16", 100): 59_188_372,
    ("mixer_b16", 1000): 59_880_472,
    ("convnext_tiny", 100): 27_897_028,
    ("convnext_tiny", 1000): 28_589_128,
    ("resnet50", 1000): 25_557_032,
}
IMAGES = {"cifar100": Images(100, 224, 3, 50_000), "imagenet": Images(1000, 224, 3, 1_281_167)}


@pytest.mark.parametrize(
    ("recipe", "student", "golden", "steps"),
    [
        (benchmark.cifar100, "resnet18", "cifar100_cnn", 48),
        (benchmark.cifar100, "deit_tiny", "cifar100_token", 48),
        (benchmark.imagenet, "mobilenetv2_100", "imagenet_cnn", 2502),
        (benchmark.imagenet, "swin_nano", "imagenet_token", 1251),
    ],
)
def test_learning_rate_of_recipes_matches_timm_in_every_epoch(recipe, student, golden, steps):
    block = recipe(student)["optimizer"]["learning_rate"]
    epochs = len(GOLDEN[golden])
    rate = schedules.create(block, steps_per_epoch=steps, total_steps=epochs * steps, where="here")
    for part in (0, steps // 2, steps - 1):  # constant within an epoch
        ours = jax.vmap(rate)(np.arange(epochs) * steps + part)
        np.testing.assert_allclose(ours, GOLDEN[golden], rtol=2e-6, atol=1e-7 * block["peak"])
    smooth = schedules.create(block | {"by_epoch": False}, steps_per_epoch=steps, total_steps=epochs * steps, where="")
    assert not np.allclose(jax.vmap(smooth)(np.arange(epochs) * steps + steps - 1), GOLDEN[golden], rtol=2e-6)


@pytest.mark.parametrize("name", GOLDEN["decayed"])
def test_decay_mask_of_networks_matches_timm(name):
    network = models.create(name, 10)
    shapes = network.variable_shapes()
    mask = decay_mask(shapes["params"], network.decays)
    ones = jax.tree.map(lambda s, decays: np.full(s.shape, decays, np.float32), shapes["params"], mask)
    rest = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), {k: v for k, v in shapes.items() if k != "params"})
    state = convert.to_timm(name, {"params": ones, **rest})
    assert sorted(key for key, value in state.items() if value.any() and value.ndim) == GOLDEN["decayed"][name]


def config(dataset, argument):
    return importlib.import_module(f"configs.{dataset}").get_config(argument)


@pytest.mark.parametrize(("dataset", "teacher", "student"), PAIRS)
def test_config_of_every_pair_builds_networks_of_the_published_size(dataset, teacher, student):
    for method in ("scratch", "kd", "ofa", "lfcc"):
        run = read_config(config(dataset, f"teacher={teacher},student={student},method={method}"))
        distillation = build(run, IMAGES[dataset])
        for name, network in ((student, distillation.student), (teacher, distillation.teachers.get(""))):
            if network is None:
                assert method == "scratch"
                continue
            size = sum(leaf.size for leaf in jax.tree.leaves(network.variable_shapes()["params"]))
            assert size == PARAMETERS[name, IMAGES[dataset].num_classes]
        assert set(distillation.losses) == set(presets.losses(method, student))


@pytest.mark.parametrize("dataset", ["cifar100", "imagenet"])
@pytest.mark.parametrize("method", benchmark.METHODS)
def test_config_of_every_method_builds(dataset, method):
    run = read_config(config(dataset, f"method={method}"))
    assert build(run, IMAGES[dataset]).losses


@pytest.mark.parametrize("dataset", ["cifar100", "imagenet"])
def test_config_docstrings_contain_only_valid_commands(dataset):
    text = importlib.import_module(f"configs.{dataset}").__doc__
    for argument in re.findall(r"--config=configs/\w+\.py:(\S+)", text):
        config(dataset, argument)
    for module in re.findall(r"python -m (\S+)", text):
        importlib.import_module(module.removesuffix(".__main__"))


def test_recipe_of_every_network_depends_on_its_family():
    for name in models.list_models():
        kind = models.variant(name).network.__name__
        is_cnn = kind in ("ResNet", "MobileNetV2", "MobileNetV3", "EfficientNet", "ConvNeXt")
        for recipe in (benchmark.cifar100, benchmark.imagenet):
            assert (recipe(name)["optimizer"]["name"] == "sgd") == is_cnn, name
        assert presets.losses("ofa", name)["ofa"]["branch"] == ("convolution" if is_cnn else "attention")


def test_config_of_scratch_has_no_teacher():
    run = config("cifar100", "teacher=swin_tiny,student=resnet18,method=scratch")
    assert run["teacher"]["name"] == ""


def test_benchmark_configs_reject_unknown_names():
    with pytest.raises(UserError, match="runlocal: 'resnet34' has no small variant; networks that have one: convnext_"):
        config("imagenet", "student=resnet34,runlocal")
    with pytest.raises(UserError, match="unknown method 'lfc'; did you mean 'lfcc'"):
        presets.losses("lfc", "resnet18")
    with pytest.raises(UserError, match="unknown method 'ofaa'; did you mean 'ofa'"):
        config("cifar100", "method=ofaa")
    with pytest.raises(UserError, match="unknown network 'resnet_18'; did you mean 'resnet18'"):
        config("imagenet", "student=resnet_18")
    with pytest.raises(UserError, match="unknown network 'resnet_18'; did you mean 'resnet18'"):
        config("imagenet", "student=resnet_18,runlocal")
