import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lfcc_jax import models
from lfcc_jax.errors import UserError

OVERRIDES = {"image_channels": 1, "widths": (4, 4, 8, 8)}
DESCRIPTION = {"name": "resnet_pico", "num_classes": 10, "image_size": 8, "overrides": OVERRIDES}


@pytest.fixture
def network():
    return models.create("resnet_pico", 10, 8, **OVERRIDES)


def variables_of(network):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda shape: rng.normal(size=shape.shape).astype(np.float32), network.variable_shapes())


def edit(directory, **changes):
    """Edits `network.json` and removes its digest. The value `...` removes a key."""
    made = json.loads((directory / "network.json").read_text()) | changes
    del made["sha256"]
    text = json.dumps({key: value for key, value in made.items() if value is not ...})
    (directory / "network.json").write_text(text)


def damaged(directory, network):
    """Returns the error raised by loading a network, without the path of the directory."""
    errors = []
    for load in (models.load, lambda path: models.load_variables(path, network)):
        with pytest.raises(UserError) as error:
            load(directory)
        errors.append(str(error.value).replace(str(directory), "DIRECTORY"))
        assert "\n" not in errors[-1]
    assert errors[0] == errors[1]
    return errors[0]


def test_load_variables_takes_the_directory_or_the_work_directory_of_the_run(tmp_path, network):
    variables = variables_of(network)
    models.save(tmp_path / "student", variables, DESCRIPTION)
    for path in (tmp_path / "student", tmp_path, str(tmp_path)):
        jax.tree.map(np.testing.assert_array_equal, models.load_variables(path, network), variables)
    assert models.describe(tmp_path).items() >= DESCRIPTION.items()


def test_load_rejects_a_directory_without_a_network(tmp_path, network):
    assert damaged(tmp_path / "nowhere", network).startswith("no finished network in DIRECTORY")


def test_load_variables_names_arrays_that_do_not_fit(tmp_path, network):
    models.save(tmp_path, variables_of(network), DESCRIPTION)
    with pytest.raises(UserError, match="holds a resnet_pico with 10 classes, not this ResNet with 7") as error:
        models.load_variables(tmp_path, network.clone(num_classes=7))
    assert "params/head/bias has shape (10,), expected (7,); params/head/kernel has shape" in str(error.value)
    assert str(error.value).count("expected") == 2

    vit = models.create("vit_pico", 10, 8, image_channels=1)
    with pytest.raises(
        UserError, match=r"not this ViT with 10: params/\w+/\w+.* is missing; .*; and \d+ more"
    ) as error:
        models.load_variables(tmp_path, vit)
    assert str(error.value).count(" is missing") == 5
    models.save(
        tmp_path / "vit", variables_of(vit), DESCRIPTION | {"name": "vit_pico", "overrides": {"image_channels": 1}}
    )
    with pytest.raises(UserError, match="batch_stats/stage1_block0/norm1/mean is missing"):
        models.load_variables(tmp_path / "vit", network)


def test_load_variables_rejects_other_fields_even_if_all_shapes_match(tmp_path):
    overrides = {"image_channels": 1, "width": 12}
    made = models.create("vit_pico", 10, 8, **overrides)
    models.save(tmp_path, variables_of(made), DESCRIPTION | {"name": "vit_pico", "overrides": overrides})
    models.load_variables(tmp_path, made.clone(dropout=0.5))
    with pytest.raises(UserError, match=r"holds another vit_pico: mean is \(0.5,\), expected \(0.0,\); heads is 3"):
        models.load_variables(tmp_path, made.clone(heads=6, mean=(0.0,)))


def test_load_accepts_a_network_without_digests(tmp_path, network):
    variables = variables_of(network)
    models.save(tmp_path, variables, DESCRIPTION)
    edit(tmp_path, digests=...)
    jax.tree.map(np.testing.assert_array_equal, models.load(tmp_path)[1], variables)


def test_load_variables_verifies_digests_before_casting_to_float32(tmp_path, network):
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables_of(network))
    models.save(tmp_path, halves, DESCRIPTION)
    loaded = models.load_variables(tmp_path, network)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(np.float32)), loaded, halves)


def test_load_detects_a_flipped_bit_and_names_the_array(tmp_path, network):
    models.save(tmp_path, variables_of(network), DESCRIPTION)
    file = max((tmp_path / "variables").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = file.read_bytes()
    messages = []
    for part in range(1, 10):
        position = part * len(content) // 10
        file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            _, loaded = models.load(tmp_path)
        except UserError:
            messages.append(damaged(tmp_path, network))
        else:  # some bytes are never read
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), variables_of(network))
    assert messages
    for message in messages:
        assert message.startswith("DIRECTORY/variables is damaged: ")
    assert any(re.search(r": params/\w+/\w+/kernel differs from what was saved$", message) for message in messages)


def test_describe_translates_fields_of_networks_saved_under_earlier_names(tmp_path, network):
    models.save(tmp_path, variables_of(network), DESCRIPTION | {"overrides": OVERRIDES | {"crop": 0.9}})
    assert models.load(tmp_path)[0].crop_fraction == 0.9


def test_a_description_needs_no_overrides(tmp_path):
    network = models.create("vit_pico", 10, 8)
    about = {key: value for key, value in DESCRIPTION.items() if key != "overrides"} | {"name": "vit_pico"}
    models.save(tmp_path / "network", variables_of(network), about)
    assert models.load(tmp_path / "network")[0] == network


def test_load_detects_a_changed_description(tmp_path, network):
    models.save(tmp_path, variables_of(network), DESCRIPTION | {"overrides": OVERRIDES | {"std": (0.5,)}})
    file = tmp_path / "network.json"
    text = file.read_text()
    assert text.count("0.5") == 1
    file.write_text(text.replace("0.5", "0.7"))
    assert damaged(tmp_path, network) == "DIRECTORY/network.json is damaged: it was changed after it was written"


def test_load_detects_variables_of_another_network_by_their_digests(tmp_path, network):
    models.save(tmp_path / "one", variables_of(network), DESCRIPTION)
    models.save(tmp_path / "two", jax.tree.map(lambda x: x + 1, variables_of(network)), DESCRIPTION)
    (tmp_path / "two" / "network.json").write_text((tmp_path / "one" / "network.json").read_text())
    assert "variables is damaged: batch_stats" in damaged(tmp_path / "two", network)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_save_and_load_reject_variables_with_nan(tmp_path, network, value):
    variables = variables_of(network)
    variables["batch_stats"]["stem_norm"]["mean"] *= value
    with pytest.raises(UserError, match="cannot be saved to .*: batch_stats/stem_norm/mean contains NaN or infinity"):
        models.save(tmp_path / "a", variables, DESCRIPTION)
    assert not (tmp_path / "a").exists()
    # A network saved before that check existed.
    models.save(tmp_path, variables_of(network), DESCRIPTION)
    edit(tmp_path, digests=...)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "variables", variables, force=True)
    said = damaged(tmp_path, network)
    assert said == "DIRECTORY/variables cannot be used: batch_stats/stem_norm/mean contains NaN or infinity"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", "is damaged: it is not JSON"),
        (b"", "is damaged: it is not JSON"),
        (b"\xff\xfe{", "is damaged: it is not JSON"),
        (b"[1]", "is damaged: it must be an object, got list"),
        (b"[" * 100000, "is damaged: it is not JSON"),
        (b'{"name": "resnet_pico"}', "is damaged: it lacks num_classes, image_size"),
    ],
)
def test_load_rejects_a_file_that_is_not_a_description(tmp_path, network, content, message):
    models.save(tmp_path, variables_of(network), DESCRIPTION)
    (tmp_path / "network.json").write_bytes(content)
    assert damaged(tmp_path, network).startswith(f"DIRECTORY/network.json {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 5}, "is damaged: `name` must be of type str, got 5"),
        ({"name": []}, "is damaged: `name` must be of type str, got []"),
        ({"name": "resnet_pcio"}, "unknown network 'resnet_pcio'; did you mean 'resnet_pico'"),
        ({"num_classes": "a"}, "is damaged: `num_classes` must be of type int, got 'a'"),
        ({"image_size": None}, "is damaged: `image_size` must be of type int, got None"),
        ({"overrides": None}, "is damaged: `overrides` must be of type dict, got None"),
        ({"overrides": [1]}, "is damaged: `overrides` must be of type dict, got [1]"),
        ({"overrides": OVERRIDES | {"depht": 3}}, "unknown key 'depht'"),
        ({"overrides": OVERRIDES | {"name": "vit_pico"}}, "`overrides` must not contain name"),
        ({"overrides": OVERRIDES | {"mean": [float("nan")]}}, "is damaged: Out of range float values"),
        ({"overrides": OVERRIDES | {"dtype": "float99"}}, "dtype"),
        ({"overrides": OVERRIDES | {"dtype": [1]}}, "dtype"),
        ({"image_size": -1}, "image_size"),
    ],
)
def test_load_rejects_an_invalid_description(tmp_path, network, changes, message):
    models.save(tmp_path, variables_of(network), DESCRIPTION)
    edit(tmp_path, **changes)
    said = damaged(tmp_path, network)
    assert said.startswith("DIRECTORY/network.json")
    assert message in said


def test_load_rejects_a_description_that_is_a_directory(tmp_path, network):
    models.save(tmp_path, variables_of(network), DESCRIPTION)
    (tmp_path / "network.json").unlink()
    (tmp_path / "network.json").mkdir()
    assert damaged(tmp_path, network) == "cannot read DIRECTORY/network.json: Is a directory"


@pytest.mark.parametrize("name", [".", "_METADATA", "manifest.ocdbt", "d"])
def test_load_reports_missing_files_as_damage(tmp_path, network, name):
    models.save(tmp_path, variables_of(network), DESCRIPTION)
    path = tmp_path / "variables" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "DIRECTORY/variables is damaged: " in damaged(tmp_path, network)
