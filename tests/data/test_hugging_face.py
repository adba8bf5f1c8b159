"""Data sets of Hugging Face, on disk."""

import numpy as np
import pytest

from lfcc_jax import data
from lfcc_jax.errors import UserError

datasets = pytest.importorskip("datasets")

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)


def make(path, labels, feature, image="image"):
    features = datasets.Features({image: datasets.Image(), "label": feature})
    rows = {image: list(PIXELS), "label": labels}
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(path))
    return f"hf:{path}"


def test_images_and_classes_are_those_of_the_data_set(tmp_path):
    name = make(tmp_path / "a", [i % 2 for i in range(20)], datasets.ClassLabel(names=["cat", "dog"]), "photo")
    train, test = (data.open_source(name, split) for split in ("train", "test"))
    assert (len(train.examples), len(test.examples), train.class_names) == (18, 2, ("cat", "dog"))
    for i in range(18):
        example = data.read(train, i)
        (row,) = [row for row in range(20) if (PIXELS[row] == np.asarray(example["image"])).all()]
        assert example["label"] == row % 2
    batch = next(data.open_inputs(name, image_size=8).train_batches(4, seed=0))
    assert batch["image"].shape == (4, 8, 8, 3)
    assert data.open_source(name, "train", labels=False).num_classes == 0


def test_labels_may_be_names_and_splits_may_be_there(tmp_path):
    rows = {"image": list(PIXELS[:4]), "label": ["cat", "dog", "cat", "dog"]}
    part = datasets.Dataset.from_dict(
        rows, datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    )
    datasets.DatasetDict({"train": part, "validation": part}).save_to_disk(str(tmp_path / "b"))
    test = data.open_source(f"hf:{tmp_path / 'b'}", "test")
    assert (len(test.examples), test.num_classes, test.class_names) == (4, 2, ("cat", "dog"))


def test_open_source_rejects_unusable_data_sets(tmp_path):
    with pytest.raises(UserError, match="data set 'hf:/nowhere/x' cannot be loaded"):
        data.open_source("hf:/nowhere/x", "train")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(UserError, match="has no column of images; columns: text"):
        data.open_source(f"hf:{tmp_path / 'text'}", "train")
    name = make(tmp_path / "one", [0] * 20, datasets.Value("int64"))
    with pytest.raises(UserError, match="there is only one class"):
        data.open_source(name, "train")
    name = make(tmp_path / "none", [0] * 19 + [None], datasets.ClassLabel(names=["cat", "dog"]))
    with pytest.raises(UserError, match="image 19 of split 'all' has no label"):
        data.open_source(name, "all")
