"""Prepared data sets that are damaged or do not contain images with classes."""

import json
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_sets import encode

from lfcc_jax import data
from lfcc_jax.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
EXAMPLES = [{"image": encode(PIXELS), "label": 1}] * 4
F = tfds.features


def assert_rejected(path, message, split="train"):
    with pytest.raises(UserError, match=message) as caught:
        data.open_source(str(path), split)
    assert str(caught.value).startswith(f"data set '{path}'")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_read_decodes_images_of_one_size(make_data_set):
    source = data.open_source(str(make_data_set(EXAMPLES, F.Image(shape=(8, 8, 3)))), "test[1:]")
    assert (len(source.examples), source.num_classes, source.image_size) == (3, 10, 8)
    assert (source.name, source.split) == ("toy", "test[1:]")
    np.testing.assert_array_equal(data.read(source, 0)["image"], PIXELS)


def test_open_source_accepts_the_directory_above_the_versions(make_data_set, tmp_path):
    made = make_data_set(EXAMPLES, F.Image(shape=(8, 8, 3)))
    above = tmp_path / "above"
    for version in ("1.2.0", "1.10.0", "notes"):
        (above / version).mkdir(parents=True)
        (above / version / "dataset_info.json").write_text("damaged")
    shutil.rmtree(above / "1.10.0")
    shutil.copytree(made, above / "1.10.0")  # the newest
    assert len(data.open_source(str(above), "test").examples) == 4
    assert data.full_name(str(above)) == str(above)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"image": F.Tensor(shape=(8, 8, 1), dtype=np.float32)}, "images must be uint8, got Tensor of float32"),
        ({"image": F.Tensor(shape=(8, 8, 1), dtype=np.int32)}, "images must be uint8, got Tensor of int32"),
        ({"image": F.Image(shape=(8, 8, 1), dtype=np.uint16)}, "images must be uint8, got Image of uint16"),
        ({"image": F.Text()}, "images must be uint8, got Text"),
        ({"image": F.Tensor(shape=(8, 8, 2), dtype=np.uint8)}, r"must have shape \(height, width, 1 or 3\), got"),
        ({"image": F.Tensor(shape=(8, 8), dtype=np.uint8)}, r"must have shape \(height, width, 1 or 3\), got \(8, 8\)"),
        ({"image": False}, "there is no feature 'image'; features: label"),
        ({"label": False}, "there is no feature 'label'; features: image"),
        ({"label": F.Scalar(np.int64)}, "labels must be a ClassLabel with num_classes, got Scalar"),
        ({"label": F.Text()}, "labels must be a ClassLabel with num_classes, got Text"),
        ({"label": F.Sequence(F.ClassLabel(num_classes=3))}, "labels must be a ClassLabel with num_classes, got Seq"),
        ({"label": F.ClassLabel()}, "labels must be a ClassLabel with num_classes, got ClassLabel"),
    ],
)  # fmt: skip
def test_open_source_rejects_unsupported_features(make_data_set, features, message):
    assert_rejected(make_data_set([], **features), message)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "\x00\xff", '{"name": 5}', '{"name": "x", "splits": 3}'])
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_open_source_rejects_damaged_descriptions(make_data_set, file, content):
    path = make_data_set(EXAMPLES)
    (path / file).write_text(content)
    assert_rejected(path, ".")


def test_open_source_names_a_missing_features_file(make_data_set):
    path = make_data_set(EXAMPLES)
    (path / "features.json").unlink()
    assert_rejected(path, "features.json")


@pytest.mark.parametrize("nested", [False, True])
def test_open_source_imports_no_module_named_in_features(make_data_set, monkeypatch, tmp_path, nested):
    path = make_data_set(EXAMPLES)
    (tmp_path / "evil_module.py").write_text("import pathlib\npathlib.Path(__file__).with_name('touched').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)
    features = json.loads((path / "features.json").read_text())
    if nested:
        legacy = {"image": {"type": "evil_module.Feature", "content": {}}}
        features = {"pythonClassName": features["pythonClassName"], "jsonFeature": {"json": json.dumps(legacy)}}
    else:
        features["featuresDict"]["features"]["image"]["pythonClassName"] = "evil_module.Feature"
    (path / "features.json").write_text(json.dumps(features))
    assert_rejected(path, "features.json must name features of TFDS only, got 'evil_module.Feature'")
    assert not (tmp_path / "touched").exists()
    # Negative control: TFDS alone imports it.
    with pytest.raises(ValueError, match="Unrecognized FeatureConnector"):
        tfds.builder_from_directory(path)
    assert (tmp_path / "touched").exists()


def rewrite(path, **changes):
    info = json.loads((path / "dataset_info.json").read_text())
    info["splits"][0] |= changes
    (path / "dataset_info.json").write_text(json.dumps(info))


@pytest.mark.parametrize("template", ["../{SPLIT}-{SHARD_X_OF_Y}", "/etc/{SPLIT}", "a/../../{SPLIT}-{SHARD_X_OF_Y}"])
def test_open_source_rejects_files_outside_of_the_directory(make_data_set, template):
    path = make_data_set(EXAMPLES)
    rewrite(path, filepathTemplate=template)
    assert_rejected(path, "its files must be in its directory")


@pytest.mark.parametrize("length", ["3", "5", "1000000000000"])
def test_open_source_rejects_wrong_shard_lengths(make_data_set, length):
    path = make_data_set(EXAMPLES)
    rewrite(path, shardLengths=[length])
    assert_rejected(path, rf"has 4 examples, but dataset_info.json says {length}")


@pytest.mark.parametrize("damage", ["missing", "empty", "cut in half", "7 bytes short", "noise"])
def test_open_source_rejects_damaged_shards(make_data_set, damage):
    path = make_data_set(EXAMPLES)
    (shard,) = path.glob("toy-train*")
    content = shard.read_bytes()
    shard.unlink()
    if damage != "missing":
        changed = {
            "empty": b"",
            "cut in half": content[: len(content) // 2],
            "7 bytes short": content[:-7],
            "noise": np.random.default_rng(0).bytes(len(content)),
        }
        shard.write_bytes(changed[damage])
    assert_rejected(path, f"split 'train' cannot be read: .*{shard.name} is missing or damaged: ")
    assert len(data.open_source(str(path), "test").examples) == 4  # the other split is intact


def test_read_detects_a_flipped_bit(make_data_set):
    path = make_data_set(EXAMPLES)
    (shard,) = path.glob("toy-train*")
    content = bytearray(shard.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    shard.write_bytes(content)
    source = data.open_source(str(path), "train")
    with pytest.raises(UserError, match="^data set 'toy', split 'train', example 0: cannot be read: .*hash mismatch"):
        data.read(source, 0)


def test_open_source_rejects_tfrecord(make_data_set):
    path = make_data_set(EXAMPLES)
    info = json.loads((path / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord"}
    (path / "dataset_info.json").write_text(json.dumps(info))
    assert_rejected(path, "must be in array_record, got tfrecord; see python -m lfcc_jax.data.prepare --help")


def test_open_source_rejects_a_data_dir_that_is_a_file_or_not_writable(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for name in ("digits", "cifar100"):
        with pytest.raises(UserError, match=f"config.data.data_dir must be a directory, got the file {file}"):
            data.open_source(name, "train", str(file))
    with pytest.raises(UserError, match="data set 'digits' cannot be prepared in .*; set config.data.data_dir"):
        data.open_source("digits", "train", str(file / "below"))


def test_open_source_rejects_damaged_digits(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "tfds")
    (shard,) = (tmp_path / "tfds").glob("digits/*/digits-train*")
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UserError, match="data set 'digits': split 'train' cannot be read: .* is missing or damaged"):
        data.open_source("digits", "train", str(tmp_path / "tfds"))


@pytest.mark.parametrize("name", ["noise_10x100000", "noise_10x1025", "noise_100001x8"])
def test_open_source_rejects_noise_that_is_too_large(name):
    with pytest.raises(UserError, match=f"data set '{name}': noise has at most 100,000 classes and 1,024 pixels"):
        data.open_source(name, "train")
