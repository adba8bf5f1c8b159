"""Conversion of data sets from TFRecord to ArrayRecord."""

import json
import shutil
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from lfcc_jax import data
from lfcc_jax.data import prepare
from lfcc_jax.data.records import to_array_record
from lfcc_jax.errors import UserError


@pytest.fixture
def tfrecords(tmp_path, data_dir):
    """The digits in TFRecord, with invalid checksums, which are not verified."""
    source, target = f"{data_dir}/digits/1.0.0", tmp_path / "digits" / "1.0.0"
    shutil.copytree(source, target)
    for path in target.glob("*.array_record-*"):
        reader = ArrayRecordReader(str(path))
        with (target / path.name.replace("array_record", "tfrecord")).open("wb") as file:
            for record in reader.read_all():
                file.write(struct.pack("<Q", len(record)) + bytes(4) + record + bytes(4))
        reader.close()
        path.unlink()
    info = json.loads((target / "dataset_info.json").read_text())
    (target / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    return target


def test_to_array_record_keeps_examples_and_order(tfrecords, tmp_path, data_dir):
    lines = []
    converted = to_array_record(tfrecords, tmp_path / "converted", lines.append)
    assert lines[-1].startswith("2/2 shards")
    for split in ("train", "test"):
        ours, theirs = data.open_source(str(converted), split), data.open_source("digits", split, data_dir)
        assert len(ours.examples) == len(theirs.examples)
        for i in range(0, len(ours.examples), 97):
            np.testing.assert_array_equal(ours.examples[i]["image"], theirs.examples[i]["image"])
            assert ours.examples[i]["label"] == theirs.examples[i]["label"]
    assert tfds.builder_from_directory(converted).info.splits["train"].num_examples == 1297


def test_command_prints_the_config_flag(tfrecords, tmp_path, capsys):
    prepare.main([str(tfrecords), f"--out={tmp_path / 'converted'}"])
    assert f"--config.data.name={tmp_path / 'converted'}" in capsys.readouterr().out


def damage(path):
    content = path.read_bytes()
    path.write_bytes(content[:-7])


def test_to_array_record_rejects_invalid_input_and_leaves_no_target(tfrecords, tmp_path, data_dir):
    target = tmp_path / "converted"
    with pytest.raises(UserError, match="is already in array_record"):
        to_array_record(f"{data_dir}/digits/1.0.0", target)
    with pytest.raises(UserError, match="has no dataset_info.json"):
        to_array_record(tmp_path, target)
    (shard,) = tfrecords.glob("*-test.tfrecord-*")
    damage(shard)
    with pytest.raises(UserError, match="ends in the middle of a record"):
        to_array_record(tfrecords, target, lambda _: None)
    shard.write_bytes(b"")
    with pytest.raises(UserError, match="is damaged: expected 500 examples, got 0"):
        to_array_record(tfrecords, target, lambda _: None)
    shard.unlink()
    with pytest.raises(UserError, match="must contain one file"):
        to_array_record(tfrecords, target, lambda _: None)
    assert not target.exists()
    target.mkdir()
    with pytest.raises(UserError, match="already exists"):
        to_array_record(tfrecords, target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar1000"], "unknown data set 'cifar1000'; did you mean 'cifar10"),
        (["."], "--out is required"),
    ],
)
def test_command_rejects_invalid_arguments(arguments, message):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        prepare.main(arguments)


def test_noise_is_deterministic_and_has_the_size_in_its_name():
    source = data.open_source("noise_10x16", "train")
    assert (source.num_classes, source.image_size, source.image_channels) == (10, 16, 3)
    first, again = source.examples[5], source.examples[5]
    np.testing.assert_array_equal(first["image"], again["image"])
    assert first["image"].shape == (16, 16, 3)
    assert {source.examples[i]["label"] for i in range(200)} == set(range(10))
    with pytest.raises(UserError, match="unknown split 'validation'"):
        data.open_source("noise_10x16", "validation")
