"""Exported networks equal the networks, at any batch size, and a damaged export is not written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import export as jax_export

import lfcc_jax.convert.onnx as converter
from lfcc_jax import export, models
from lfcc_jax.errors import UserError
from tests.models.test_models import SMALL

FAMILIES = SMALL | {
    "efficientnet_b0": {"multiplier": 0.1},
    "mobilenetv3_large_100": {"multiplier": 0.1},
    "vit_small_patch14_reg4_dinov2": {"patch": 2, "width": 12, "heads": 3, "depth": 4, "taps": (1, 2, 3, 4)},
    "vit_base_patch16_siglip_224": {"patch": 2, "width": 12, "heads": 3, "depth": 4, "taps": (1, 2, 3, 4)},
}
FURTHER = ("convnextv2_atto", "mobilenetv3_large_100", "vit_base_patch16_siglip_224")


def random_variables(network):
    """Returns random variables of the scale of trained ones, without compiling `init`."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        values = rng.normal(size=leaf.shape)
        if name in ("scale", "var"):
            return jnp.float32(1 + 0.1 * np.abs(values))
        fan_in = np.prod(leaf.shape[-4:-1]) if name == "kernel" else 25
        return jnp.float32(values / np.sqrt(max(fan_in, 1)))

    return jax.tree_util.tree_map_with_path(draw, network.variable_shapes())


def small(name, num_classes=5, **settings):
    overrides = {"image_channels": 1, "mean": (0.4,), "std": (0.3,)} | settings
    network = models.create(name, num_classes, 8, **overrides)
    return network, random_variables(network)


def save(directory, name, num_classes=5, **settings):
    network, variables = small(name, num_classes, **settings)
    overrides = {"image_channels": 1, "mean": (0.4,), "std": (0.3,)} | settings
    about = {"name": name, "num_classes": num_classes, "image_size": 8, "overrides": overrides}
    models.save(directory, variables, about | {"class_names": [f"kind {i}" for i in range(num_classes)]})
    return network, variables


def images(batch):
    return np.random.default_rng(1).random((batch, 8, 8, 1), np.float32)


def expected(network, variables):
    logits, features = jax.jit(network.apply)(variables, images(7))
    return {"logits": logits, "pooled": features["pooled"]}


def assert_equal(outputs, reference, batch):
    for name, value in outputs.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, reference[name][:batch], rtol=0, atol=1e-4 * np.abs(reference[name]).max())


def assert_session_equals(session, reference):
    for batch in (1, 7):
        values = session.run(["logits", "pooled"], {"images": images(batch)})
        assert_equal(dict(zip(("logits", "pooled"), values, strict=True)), reference, batch)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.exhaustive if n in FURTHER else ()) for n in FAMILIES if n != "vit_pico"]
)
def test_onnx_model_has_the_outputs_of_the_network(name):
    network, variables = small(name, **FAMILIES[name])

    def function(x):
        logits, features = network.apply(variables, x)
        return {"logits": logits, "pooled": features["pooled"]}

    session = onnxruntime.InferenceSession(converter.to_onnx(function, (8, 8, 1), {}))
    assert_session_equals(session, jax.jit(function)(images(7)))


def test_command_writes_onnx_and_stablehlo(tmp_path, capsys):
    name = "vit_pico"
    network, variables = save(tmp_path / "run", name, **SMALL[name])
    reference = expected(network, variables)
    for kind in ("onnx", "stablehlo"):
        export.main([str(tmp_path / "run"), f"--format={kind}", f"--out={tmp_path / 'out' / kind}"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["onnx", "stablehlo"]  # no partial files
    session = onnxruntime.InferenceSession(tmp_path / "out" / "onnx")
    assert_session_equals(session, reference)
    about = session.get_modelmeta().custom_metadata_map
    assert (about["model"], about["image_size"], about["interpolation"]) == (name, "8", "bicubic")
    assert json.loads(about["class_names"])[4] == "kind 4"
    assert float(about["crop_fraction"]) == network.crop_fraction

    loaded = jax_export.deserialize(bytearray((tmp_path / "out" / "stablehlo").read_bytes()))
    assert loaded.platforms == ("cpu", "cuda", "tpu")
    for batch in (1, 7):
        assert_equal(jax.jit(loaded.call)(images(batch)), reference, batch)

    # The lines that the command prints load the file.
    for text in capsys.readouterr().out.split("to use it:\n")[1:]:
        code = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
        namespace = {}
        exec(code, namespace)
        assert namespace["logits"].shape == (1, 5)


def test_network_without_a_classifier_exports_its_pooled_vectors(tmp_path):
    save(tmp_path / "run", "resnet_pico", 0, **SMALL["resnet_pico"])
    export.main([str(tmp_path / "run"), "--format=onnx", f"--out={tmp_path / 'x.onnx'}"])
    (output,) = onnxruntime.InferenceSession(tmp_path / "x.onnx").get_outputs()
    assert (output.name, output.shape) == ("pooled", ["batch", 8])


def test_bfloat16_network_is_written_to_onnx_in_float32(tmp_path):
    save(tmp_path / "run", "resnet_pico", dtype="bfloat16", **SMALL["resnet_pico"])
    export.main([str(tmp_path / "run"), "--format=onnx", f"--out={tmp_path / 'x.onnx'}"])
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "x.onnx").graph.initializer}
    assert onnx.TensorProto.BFLOAT16 not in kinds


OWN = """
import jax.numpy as jnp
from flax import nnx


class Net(nnx.Module):
    def __init__(self, num_classes, channels, rngs):
        self.conv = nnx.Conv(channels, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(8, num_classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.silu(self.norm(self.conv(x)))
        average = nnx.avg_pool(x, (2, 2), (2, 2))
        x = jnp.concatenate([nnx.max_pool(x, (3, 3), (2, 2), "SAME"), average], -1)
        pooled = nnx.elu(x.mean((1, 2))) + nnx.softplus(x[:, 0, -1]) * nnx.tanh(x.max((1, 2)))
        return self.head(pooled), {"stage1": x, "pooled": pooled}


def make(num_classes, channels, rngs):
    return Net(num_classes, channels, rngs)
"""


def test_users_own_network_is_exported(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    about = {"name": f"{tmp_path / 'own.py'}:make", "num_classes": 5, "image_size": 8, "overrides": {}}
    network = models.create(about["name"], 5, 8, image_channels=1)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    models.save(tmp_path / "run", variables, about | {"overrides": {"image_channels": 1}})
    export.main([str(tmp_path / "run"), "--format=onnx", f"--out={tmp_path / 'x.onnx'}"])
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    values = session.run(["logits", "pooled"], {"images": images(3)})
    assert_equal(dict(zip(("logits", "pooled"), values, strict=True)), expected(network, variables), 3)


def test_damaged_conversion_is_refused(tmp_path, monkeypatch):
    """Negative control: max with 0 becomes the absolute value."""
    save(tmp_path / "run", "resnet_pico", **SMALL["resnet_pico"])
    wrong = lambda graph, equation, inputs, shapes: graph("Abs", inputs[0])  # noqa: E731
    monkeypatch.setitem(converter._CONVERTERS, "max", wrong)
    with pytest.raises(SystemExit, match="error: the exported `logits` must be within 0.0001 of the network's"):
        export.main([str(tmp_path / "run"), "--format=onnx", f"--out={tmp_path / 'x.onnx'}"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x, axis=1), "no conversion for the operation 'sort'; --format=stablehlo has them all"),
        (lambda x: x.astype(jnp.bfloat16).sum(1).astype(jnp.float32), "must be float32, got bfloat16"),
        (lambda x: x.reshape(int(x.shape[0]), -1), "cannot be traced with a batch of unknown size: "),
        (lambda x: x - x.reshape(-1)[jnp.argmax(x[0, :, 0, 0])], "at a position that depends on the image"),
        (lambda x: x[: x.shape[0] // 2], "sizes must be multiples of the batch size|slices of the batch"),
    ],
)
def test_to_onnx_names_what_it_cannot_convert(function, message):
    with pytest.raises(UserError, match=message):
        converter.to_onnx(lambda x: {"out": function(x)}, (4, 4, 1), {})


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.lax.scan(lambda c, r: (c + r, c * r), x[:, 0], jnp.moveaxis(x, 1, 0), reverse=True)[1][1],
        lambda x: jnp.take(x, jnp.array([[2, 0], [1, 1]]), axis=1).sum((2, 3, 4)),
        lambda x: jnp.einsum("bhwc,bwhd->bhd", x, x) @ jnp.ones((1, 3)),
        lambda x: jnp.flip(x, (1, 2)).cumsum(1) ** 3 + jnp.roll(x, 1, axis=2),
        lambda x: jnp.where(x > 0.5, jnp.log1p(x), jnp.clip(x, 0.1, 0.2)) / jnp.linalg.norm(x, axis=1, keepdims=True),
        lambda x: jax.nn.one_hot(x.mean((2, 3)).argmax(1), 4) * jax.nn.softmax(x[:, :, 0, 0]),
        lambda x: jax.lax.cond(True, jnp.exp2, jnp.expm1, x) + jnp.tile(x[:1, 1:2, 3:], (x.shape[0], 4, 4, 1)),
        lambda x: jax.image.resize(x, (x.shape[0], 6, 6, 1), "linear"),
        lambda x: jnp.stack([x[:, 0], jnp.exp(x[:, 1])], axis=2),
    ],
    ids=["scan", "take", "einsum", "flip", "where", "argmax", "cond", "resize", "stack"],
)
def test_to_onnx_converts_operations_of_users_networks(function):
    content = converter.to_onnx(lambda x: {"out": function(x)}, (4, 4, 1), {})
    session = onnxruntime.InferenceSession(content)
    x = images(3)[:, :4, :4]
    np.testing.assert_allclose(session.run(["out"], {"images": x})[0], function(jnp.asarray(x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--format=onnx", "--out=x.onnx"], "no finished network in"),
        (["run", "--format=onnx", "--out=old"], "old already exists; name another file, or remove it"),
        (["run", "--format=onnx", "--out=gs://bucket/x.onnx"], "--out must be on a local disk"),
        (["run", "--format=stablehlo", "--out=old/x"], "`--out` must be a directory, but .*old is a file"),
        (["run", "--format=timm", "--out=x.onnx"], "the name of the file must end in .safetensors"),
    ],
)
def test_export_reports_invalid_input_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "run", "resnet_pico", **SMALL["resnet_pico"])
    (tmp_path / "old").write_text("precious")
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        export.main(arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "run"]


def test_export_names_the_extra_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(SystemExit, match=r'pip install "\.\[export\]"'):
        export.main([str(tmp_path), "--format=onnx", f"--out={tmp_path / 'x.onnx'}"])
