import collections
import importlib.util

import jax
import numpy as np
import pytest
from cases import NAMES
from flax.traverse_util import flatten_dict
from random_weights import random_state_dict

from lfcc_jax import convert, models
from lfcc_jax.convert.names import timm_names
from lfcc_jax.convert.tables import table
from lfcc_jax.errors import UserError

ONE_OF_EACH_FAMILY = [
    "convnext_tiny",
    "deit_tiny_patch16_224",
    "mixer_s16_224",
    "mobilenetv2_100",
    "resmlp_12_224",
    "resnet18",
    "resnet50",
    "swin_pico_patch4_window7_224",
]


def state_of(name, num_classes=7, **overrides):
    """Returns random tensors for a network, by timm's names."""
    shapes = models.create(name, num_classes, **overrides).variable_shapes()
    state = convert.to_timm(name, jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes), **overrides)
    return random_state_dict({key: value.shape for key, value in state.items()})


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_from_timm_and_to_timm_are_inverse_bit_for_bit(name):
    state = state_of(name)
    variables = convert.from_timm(name, state)
    shapes = models.create(name, 7).variable_shapes()
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda x: x.shape, shapes)
    back = convert.to_timm(name, variables)
    assert {key for key in back if not key.endswith("num_batches_tracked")} == set(state)
    for key, value in state.items():
        assert back[key].dtype == np.float32
        np.testing.assert_array_equal(back[key], value, err_msg=key)


# A network of each kind; the others differ in size.
EACH_KIND = set({models.variant(name).network: name for name in reversed(models.list_models())}.values())
EACH_KIND |= {"convnextv2_atto", "resnet18", "vit_base_patch16_siglip_224", "vit_small_patch16_dinov3"}
EACH_KIND |= {"vit_small_patch14_reg4_dinov2"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in EACH_KIND else pytest.mark.exhaustive) for n in models.list_models()],
)
def test_table_contains_every_array_of_a_network_once(name):
    network = models.create(name, 7, models.variant(name).fields.get("image_size", 32))
    rows = [row for row in table(network) if row.path is not None]
    counts = collections.Counter(row.path for row in rows)
    shapes = flatten_dict(network.variable_shapes())
    stacked = {row.path for row in rows if row.block is not None}
    assert counts == {path: leaf.shape[0] if path in stacked else 1 for path, leaf in shapes.items()}
    assert len({row.timm for row in rows}) == len(rows)


def test_from_timm_names_all_wrong_tensors_in_one_error():
    state = state_of("resnet18")
    del state["layer1.0.conv1.weight"], state["fc.weight"]
    state["layer9.weight"] = np.zeros(3)
    state["bn1.bias"] = np.zeros((2, 2))
    with pytest.raises(UserError) as error:
        convert.from_timm("resnet18", state)
    for part in (
        "not a checkpoint of resnet18: 2 of 102 tensors are missing, 1 have the wrong shape, 1 are unexpected",
        "fc.weight is missing",
        "layer1.0.conv1.weight is missing",
        "layer9.weight is unexpected",
        "bn1.bias has shape [2, 2], expected [64]",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_to_timm_names_all_wrong_variables_in_one_error():
    variables = convert.from_timm("resnet18", state_of("resnet18"))
    del variables["params"]["stem_conv"]
    variables["params"]["extra"] = np.zeros(2)
    variables["batch_stats"]["stem_norm"]["mean"] = np.zeros(3)
    with pytest.raises(UserError) as error:
        convert.to_timm("resnet18", variables)
    for part in (
        "params/stem_conv/kernel is missing",
        "params/extra is unexpected",
        "stem_norm/mean has shape [3], expected [64]",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet81"}, "unknown network 'resnet81'; did you mean 'resnet18'"),
        ({"num_classes": 100}, "has 7 classes, not 100"),
        ({"head": "new"}, "num_classes is required for a new head"),
        ({"head": "nwe"}, "head: unknown value 'nwe'; did you mean 'new'"),
        ({"name": "resnet34"}, "not a checkpoint of resnet34"),
        ({"dpeth": 3}, "unknown key 'dpeth'"),
    ],
)
def test_from_timm_rejects_invalid_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        convert.from_timm(**({"name": "resnet18", "state_dict": state_of("resnet18")} | arguments))


def test_from_timm_keeps_or_replaces_the_head():
    state = state_of("deit_tiny_patch16_224")
    kept = convert.from_timm("deit_tiny", state)["params"]
    new = convert.from_timm("deit_tiny", state, head="new", num_classes=100)["params"]
    np.testing.assert_array_equal(kept["head"]["kernel"], state["head.weight"].T)
    assert new["head"]["kernel"].shape == (192, 100)
    assert 0.01 < new["head"]["kernel"].std() < 0.03
    both = [{k: v for k, v in params.items() if k != "head"} for params in (kept, new)]
    jax.tree.map(np.testing.assert_array_equal, *both)
    without = {key: value for key, value in state.items() if not key.startswith("head")}
    assert convert.from_timm("deit_tiny", without, head="new", num_classes=3)["params"]["head"]["bias"].shape == (3,)
    with pytest.raises(UserError, match=r"head.bias is missing; head.weight is missing"):
        convert.from_timm("deit_tiny", without, num_classes=1000)
    for key in ("head.weight", "head.bias"):
        with pytest.raises(UserError, match=f"1 of 152 tensors are missing.*{key} is missing"):
            convert.from_timm("deit_tiny", {name: value for name, value in state.items() if name != key})


def test_from_timm_without_a_classifier():
    state = state_of("deit_tiny_patch16_224")
    without = {key: value for key, value in state.items() if not key.startswith("head")}
    expected = convert.from_timm("deit_tiny", state)["params"]
    del expected["head"]
    for arguments in ({}, {"num_classes": 0}, {"head": "new", "num_classes": 0}):
        params = convert.from_timm("deit_tiny", without, **arguments)["params"]
        jax.tree.map(np.testing.assert_array_equal, params, expected)
    dropped = convert.from_timm("deit_tiny", state, head="new", num_classes=0)
    jax.tree.map(np.testing.assert_array_equal, dropped["params"], expected)
    back = convert.to_timm("deit_tiny", dropped)
    assert back.keys() == without.keys()
    with pytest.raises(UserError, match="the checkpoint's classifier has 7 classes, not 0"):
        convert.from_timm("deit_tiny", state, num_classes=0)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_from_timm_removes_trainer_wrappers(wrapper):
    state = state_of("resnet18")
    wrapped = {wrapper: {f"module.{key}": value for key, value in state.items()}, "epoch": 3}
    expected = convert.from_timm("resnet18", state)
    jax.tree.map(np.testing.assert_array_equal, convert.from_timm("resnet18", wrapped), expected)


def test_from_timm_reads_the_authors_swin():
    name = "swin_pico_patch4_window7_224"
    state = state_of(name)
    authors = {}
    for key, value in state.items():
        for s in (1, 2, 3):
            key = key.replace(f"layers.{s}.downsample", f"layers.{s - 1}.downsample.")
        authors[key.replace("..", ".").replace("head.fc.", "head.")] = value
    authors["layers.0.blocks.1.attn_mask"] = np.zeros((64, 49, 49))
    authors["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((49, 49), np.int64)
    assert "layers.0.downsample.reduction.weight" in authors
    jax.tree.map(np.testing.assert_array_equal, convert.from_timm(name, authors), convert.from_timm(name, state))


def test_from_timm_reads_the_authors_convnext():
    network = models.create("convnext_tiny", 7)
    authors = {
        "downsample_layers.0.0.weight": "stem.0.weight",
        "downsample_layers.0.1.bias": "stem.1.bias",
        "downsample_layers.2.1.weight": "stages.2.downsample.1.weight",
        "stages.2.5.gamma": "stages.2.blocks.5.gamma",
        "stages.2.5.dwconv.weight": "stages.2.blocks.5.conv_dw.weight",
        "stages.0.1.pwconv2.bias": "stages.0.blocks.1.mlp.fc2.bias",
        "stages.0.1.norm.bias": "stages.0.blocks.1.norm.bias",
        "norm.weight": "head.norm.weight",
        "head.bias": "head.fc.bias",
    }
    assert timm_names(network, authors) == {v: v for v in authors.values()}


@pytest.mark.parametrize("case", ["positions/14/10", "positions/14/24", "positions/4/7"])
def test_resize_positions_matches_timm(case, resized):
    old, new = resized[f"{case}/old"], resized[f"{case}/new"]
    np.testing.assert_allclose(convert.positions.resize_positions(old, new.shape[1], prefix=1), new, atol=2e-6)
    assert np.abs(old).max() > 1


@pytest.mark.parametrize("case", ["bias/7/12", "bias/7/8", "bias/7/5", "bias/4/7"])
def test_resize_position_bias_matches_timm(case, resized):
    old, new = resized[f"{case}/old"], resized[f"{case}/new"]
    np.testing.assert_allclose(convert.positions.resize_position_bias(old, len(new)), new, atol=2e-5)


def test_from_timm_converts_to_another_image_size():
    state = state_of("deit_tiny_patch16_224")
    variables = convert.from_timm("deit_tiny", state, image_size=160)
    assert variables["params"]["pos_embed"].shape == (1, 101, 192)
    back = convert.to_timm("deit_tiny", variables, image_size=160)
    assert back["pos_embed"].shape == (1, 101, 192)
    # At 128 pixels, the last stage has 4 cells per side, so its windows and tables shrink.
    state = state_of("swin_pico_patch4_window7_224")
    variables = convert.from_timm("swin_pico", state, image_size=128)
    assert [variables["params"][f"stage{s}_blocks"]["attn"]["position_bias"].shape[1] for s in (1, 2, 3, 4)] == [
        169,
        169,
        169,
        49,
    ]
    with pytest.raises(UserError, match=r"mlp_tokens.fc1.weight has shape \[256, 196\], expected \[256, 100\]"):
        convert.from_timm("mixer_s16", state_of("mixer_s16_224"), image_size=160)


def test_from_timm_accepts_torch_tensors():
    torch = pytest.importorskip("torch")
    state = state_of("resnet18")
    tensors = {key: torch.tensor(value).to(torch.bfloat16) for key, value in state.items()}
    variables = convert.from_timm("resnet18", tensors)
    kernel = variables["params"]["head"]["kernel"]
    np.testing.assert_allclose(kernel, state["fc.weight"].T, rtol=2**-8)
    assert kernel.dtype == np.float32


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_exported_files_give_the_same_logits_in_timm(name, tmp_path):
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    from safetensors.torch import load_file
    from timm_networks import build, run

    from lfcc_jax.convert.files import write_safetensors

    network = models.create(name, 7)
    images = jax.random.uniform(jax.random.key(0), (2, 224, 224, 3))
    variables = jax.jit(network.init)(jax.random.key(0), images)
    # A classifier initialized to zero would hide differences.
    variables["params"]["head"]["kernel"] = jax.random.normal(
        jax.random.key(1), variables["params"]["head"]["kernel"].shape
    )
    write_safetensors(tmp_path / "x.safetensors", convert.to_timm(name, variables), {})
    theirs = build(name, 7, 224)
    theirs.load_state_dict(load_file(tmp_path / "x.safetensors"), strict=True)
    expected, _ = run(theirs, (np.asarray(images) - network.mean) / network.std, (1, 2, 3, 4))
    logits = jax.jit(network.apply)(variables, images).logits
    assert np.linalg.norm(logits - expected) < 1e-5 * np.linalg.norm(expected)


def test_cases_cover_every_family():
    assert set(ONE_OF_EACH_FAMILY) <= set(NAMES)
    assert {type(models.create(name, 1)) for name in ONE_OF_EACH_FAMILY} == {type(models.create(n, 1)) for n in NAMES}


def test_from_timm_reads_compiled_models():
    state = state_of("resnet18")
    compiled = {f"_orig_mod.module.{name}": value for name, value in state.items()}
    jax.tree.map(
        np.testing.assert_array_equal, convert.from_timm("resnet18", compiled), convert.from_timm("resnet18", state)
    )


def test_from_timm_names_positions_that_are_not_square_and_checkpoints_of_other_networks():
    state = state_of("deit_tiny_patch16_224")
    for tokens in (196, 198):
        wrong = state | {"pos_embed": np.zeros((1, tokens, 192), np.float32)}
        with pytest.raises(UserError, match=rf"pos_embed has shape \[1, {tokens}, 192\], expected \[1, 197, 192\]"):
            convert.from_timm("deit_tiny", wrong)
    with pytest.raises(UserError, match="no tensor name matches; expected names like .* from another network"):
        convert.from_timm("resnet18", state)
    with pytest.raises(UserError, match="num_classes must be an integer between 0 and 10000000, got -1"):
        convert.from_timm("deit_tiny", state, head="new", num_classes=-1)
