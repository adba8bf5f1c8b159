"""Prepared TFDS data sets, written without TFDS's own writers, which need TensorFlow to encode images."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2


def _feature(value):
    feature = tf_example_pb2.Example().features.feature["value"]
    if isinstance(value, bytes):
        feature.bytes_list.value.append(value)
    else:
        values = np.asarray(value)
        kind = feature.float_list if values.dtype.kind == "f" else feature.int64_list
        kind.value.extend(values.ravel().tolist())
    return feature


@pytest.fixture
def make_data_set(tmp_path):
    """Writes a data set with the given examples in both `train` and `test`, and returns its directory."""

    def make(examples, image=None, label=None, **others):
        directory = tmp_path / "toy" / "1.0.0"
        directory.mkdir(parents=True)
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)) if image is None else image,
            "label": tfds.features.ClassLabel(num_classes=10) if label is None else label,
        }
        features = {name: feature for name, feature in (features | others).items() if feature}
        tfds.features.FeaturesDict(features).save_config(str(directory))
        for split in ("train", "test"):
            writer = ArrayRecordWriter(str(directory / f"toy-{split}.array_record-00000-of-00001"), "group_size:1")
            for example in examples:
                record = tf_example_pb2.Example()
                for name, value in example.items():
                    record.features.feature[name].CopyFrom(_feature(value))
                writer.write(record.SerializeToString())
            writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits = [
            {"filepathTemplate": template, "name": split, "numBytes": "1", "shardLengths": [str(len(examples))]}
            for split in ("train", "test")
        ]
        info = {"fileFormat": "array_record", "name": "toy", "version": "1.0.0", "splits": splits}
        (directory / "dataset_info.json").write_text(json.dumps(info))
        return directory

    return make
