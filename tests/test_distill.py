"""`lfcc_jax.distill`: from a teacher and a folder of images to a student."""

import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lfcc_jax import models
from lfcc_jax.config_files import load_config
from lfcc_jax.distill import choose, distill, main
from lfcc_jax.errors import UserError
from lfcc_jax.training.config import as_dict

CODE = """
import flax.linen as nn
import jax
import jax.numpy as jnp


class Net(nn.Module):
    num_classes: int
    width: int

    @nn.compact
    def __call__(self, x, train=False):
        features = {}
        for i in range(1, 5):
            x = nn.relu(nn.Conv(self.width, (3, 3), 2 if i == 2 else 1)(x))
            features[f"stage{i}"] = x
        features["pooled"] = x.mean((1, 2))
        return nn.Dense(self.num_classes)(features["pooled"]), features


def student(num_classes):
    return Net(num_classes, 4)


def teacher(classes=3):
    network = Net(classes, 6)
    return network, network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
"""
ARGUMENTS = {
    "test_data": "",
    "labels": True,
    "method": "",
    "epochs": None,
    "batch_size": None,
    "image_size": None,
    "workers": 0,
    "skip_unreadable": False,
    "dtype": "float32",
    "seed": 0,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with networks in nets.py and 3 class folders of 30 images of 8 x 8 pixels."""
    root = tmp_path_factory.mktemp("distill")
    (root / "nets.py").write_text(CODE)
    rng = np.random.default_rng(0)
    for i in range(90):
        path = root / "photos" / f"kind {i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((rng.integers(0, 128, (8, 8, 3)) + 60 * (i % 3)).astype(np.uint8)).save(path)
    return root


def chosen(place, teacher="teacher", **changes):
    config, _, lines = choose(
        f"{place}/nets.py:{teacher}", f"{place}/nets.py:student", f"{place}/photos", **ARGUMENTS | changes
    )
    return config.to_dict(), "\n".join(lines)


def test_losses_depend_on_labels_and_on_what_the_teacher_has(place):
    config, about = chosen(place)
    assert list(config["losses"]) == ["cross_entropy", "kd", "lfcc"]
    assert "81 images to train and 9 to test, 3 classes (kind 0, kind 1, kind 2; if they are not" in about
    assert "with the classes of the data" in about
    config, about = chosen(place, labels=False)
    assert list(config["losses"]) == ["kd", "lfcc"]
    assert "no labels" in about
    assert "whose 3 classes the student will have" in about
    config, _ = chosen(place, method="dist")
    assert list(config["losses"]) == ["cross_entropy", "dist"]


def test_a_teacher_with_other_classes_teaches_by_its_features(place):
    (place / "other.py").write_text(CODE.replace("classes=3", "classes=5"))
    config, _, lines = choose(f"{place}/other.py:teacher", f"{place}/nets.py:student", f"{place}/photos", **ARGUMENTS)
    assert list(config["losses"]) == ["crd", "cross_entropy", "lfcc"]  # a ConfigDict is sorted
    assert config["teacher"]["logits"] is False
    assert "whose 5 classes are not those of the data" in "\n".join(lines)


def test_sizes_and_length_follow_from_the_data_and_the_batch(place):
    config, _ = chosen(place)
    assert config["data"]["augmentation"] == {"flip": True, "padding": 1}
    assert "image_size" not in config["data"]  # the images' own
    assert (config["epochs"], config["batch_size"]) == (300.0, 8)
    peak = config["optimizer"]["learning_rate"]["peak"]
    np.testing.assert_allclose(peak, 1e-3 * (8 / 256) ** 0.5)
    config, _ = chosen(place, image_size=16, epochs=2, batch_size=40)
    assert config["data"]["image_size"] == 16
    assert (config["epochs"], config["batch_size"]) == (2.0, 40)


def test_distill_trains_a_student_and_its_config_is_the_run(place, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = [f"--teacher={place}/nets.py:teacher", f"--student={place}/nets.py:student", f"--data={place}/photos"]
    main([*arguments, f"--out={out}", "--epochs=1", "--batch-size=40"])
    printed = capsys.readouterr().out
    assert f"data: folder:{place}/photos, 81 images to train" in printed
    assert f"results written to {out}" in printed
    student, _ = models.load(out)
    assert student.num_classes == 3
    assert models.describe(out)["class_names"] == ["kind 0", "kind 1", "kind 2"]
    # The command again, and its config, are the same run.
    main([*arguments, f"--out={out}", "--epochs=1", "--batch-size=40"])
    assert "this run has already finished" in capsys.readouterr().out
    assert as_dict(load_config(f"{out}/config.py")) == as_dict(
        choose(*(a.partition("=")[2] for a in arguments), **ARGUMENTS | {"epochs": 1.0, "batch_size": 40})[0]
    )


def test_distill_takes_networks_from_python(place, tmp_path):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Conv(4, (3, 3))(x)
            return nn.Dense(3)(x.mean((1, 2))), {"stage4": x, "pooled": x.mean((1, 2))}

    teacher = Net().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    summary = distill(
        (Net(), teacher), Net(), f"{place}/photos", str(tmp_path / "run"), method="kd", epochs=1, batch_size=40
    )
    assert summary["losses"] == "cross_entropy + kd"
    assert not os.path.exists(tmp_path / "run" / "config.py")  # no config can name these networks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "resnet18"}, "got 'resnet18'; resnet18 is a network without weights"),
        ({"teacher": "x.safetensors"}, "convert it first: python -m lfcc_jax.convert --model=NAME --checkpoint=x"),
        ({"teacher": "nowhere"}, "--teacher must be the directory of a trained network, or FILE.py:FUNCTION, got"),
        ({"student": "vit_nan"}, "unknown network 'vit_nan'; did you mean 'vit_nano'?"),
        ({"data": "/nowhere/photos"}, "folder '/nowhere/photos' does not exist"),
        ({"method": "dsit"}, "unknown method 'dsit'; did you mean 'dist'?"),
        ({"epochs": -1.0}, "--epochs must be a positive number, got -1.0"),
        ({"epochs": float("nan")}, "--epochs must be a positive number, got nan"),
        ({"batch_size": 0}, "--batch-size must be positive, got 0"),
        ({"teacher": "gs://bucket/teacher"}, "gs://bucket/teacher"),
        ({"method": "ofa", "labels": False}, "config.losses.ofa needs labels, but the images have none"),
        ({"batch_size": 1000}, "config.batch_size must be"),
    ],
)
def test_distill_rejects_invalid_arguments_and_writes_nothing(place, tmp_path, changes, message):
    arguments = {
        "teacher": f"{place}/nets.py:teacher",
        "student": f"{place}/nets.py:student",
        "data": f"{place}/photos",
        "out": str(tmp_path / "run"),
    }
    with pytest.raises(UserError, match=message):
        distill(**arguments | changes)
    assert not (tmp_path / "run" / "config.json").exists()
