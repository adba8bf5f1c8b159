"""Evaluation of a saved network: the numbers of the run that trained it, and a table of its classes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image
from PIL import Image

from lfcc_jax import data, evaluate, models, storage
from lfcc_jax.training.evaluation import Evaluator
from lfcc_jax.training.sharding import create_mesh
from tests.models.test_models import SMALL
from tests.test_export import save


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    save(directory, "resnet_pico", 10, **SMALL["resnet_pico"])
    return directory


@pytest.fixture(scope="module")
def evaluated(run, data_dir):
    evaluate.main([str(run), "--data=digits", "--split=test[:20]", f"--data-dir={data_dir}", "--batch-size=8"])
    return run / "evaluation_test__20"


def test_evaluation_has_the_numbers_that_a_run_computes(evaluated, run, data_dir):
    network, variables = models.load(run)
    source, mesh = data.open_source("digits", "test[:20]", data_dir), create_mesh(1)
    expected = Evaluator(network, {}, {}, lambda: data.eval_batches(source, 16), mesh)(variables)
    result = json.loads((evaluated / "evaluation.json").read_text())
    assert expected.keys() == {"accuracy", "top5", "loss", "calibration_error"}
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-5, abs=1e-7)
    assert (result["count"], result["data"], result["split"]) == (20, "digits", "test[:20]")


def test_class_table_counts_every_image_once(evaluated, run, data_dir):
    result = json.loads((evaluated / "evaluation.json").read_text())
    images, labels = [], []
    source = data.open_source("digits", "test[:20]", data_dir)
    for index in range(20):
        example = data.read(source, index)
        images.append(example["image"])
        labels.append(example["label"])
    network, variables = models.load(run)
    pixels = jnp.asarray(np.stack(images) / np.float32(255))
    predicted = np.argmax(jax.jit(network.apply)(variables, pixels).logits, -1)
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, predicted), 1)
    assert result["confusion"] == confusion.tolist()
    for i, row in enumerate(result["classes"]):
        assert row["count"] == confusion[i].sum()
        assert row["accuracy"] == (confusion[i, i] / row["count"] if row["count"] else None)
        wrong = np.where(np.arange(10) == i, 0, confusion[i])
        assert row["confused"] == wrong.max()
        assert row["confused_with"] == (f"kind {wrong.argmax()}" if wrong.any() else None)


def test_confusion_is_drawn(evaluated):
    assert image.imread(evaluated / "confusion.png").ndim == 3


@pytest.mark.parametrize("num_classes", [2, 51, 1000])
def test_confusion_of_few_and_of_many_classes_is_drawn(num_classes, tmp_path):
    confusion = np.eye(num_classes, dtype=int)
    confusion[0, 1] = 3
    names = [f"a rather ${i} long name of a $ class" for i in range(num_classes)]
    evaluate._draw(storage.resolve(tmp_path / "x.png"), confusion, names, "title")
    assert image.imread(tmp_path / "x.png").shape[0] > 500


def test_images_of_another_size_are_resized_and_class_names_are_the_networks(tmp_path, capsys):
    overrides = SMALL["resnet_pico"] | {"image_channels": 3}
    save(tmp_path / "run", "resnet_pico", 5, **overrides)
    evaluate.main([str(tmp_path / "run"), "--data=noise_5x12"])
    result = json.loads((tmp_path / "run" / "evaluation_test" / "evaluation.json").read_text())
    assert result["count"] == 256
    assert [row["class"] for row in result["classes"]] == [f"kind {i}" for i in range(5)]
    assert "kind 4" in capsys.readouterr().out


def test_as_many_classes_of_other_names_are_refused(tmp_path):
    save(tmp_path / "run", "resnet_pico", 5, **SMALL["resnet_pico"] | {"image_channels": 3})
    for name in "abcde":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / f"{i}.png")
    with pytest.raises(SystemExit, match=r"must have the network's classes, \['kind 0', .*, got \['a', 'b'"):
        evaluate.main([str(tmp_path / "run"), f"--data={tmp_path / 'photos'}", "--split=all"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--data=noise_5x8"], "no finished network in"),
        (["run", "--data=noise_7x8"], "data set 'noise_7x8' must have the network's 5 classes, got 7"),
        (["run", "--data=noise_5x8"], "must have images with the network's 1 channels, got 3"),
        (["run", "--data=noise_5x8", "--split=tset"], "unknown split 'tset'; did you mean 'test'"),
        (["run", "--data=noise_5x8", "--batch-size=0"], "--batch-size must be positive, got 0"),
        (["run", "--data=noise_5x8", "--out=file"], "`--out` must be a directory, but .*file is a file"),
        (["headless", "--data=noise_5x8"], "headless has no classifier"),
    ],
)
def test_evaluate_reports_invalid_input_in_one_line(arguments, message, networks, monkeypatch):
    monkeypatch.chdir(networks)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        evaluate.main(arguments)
    assert sorted(path.name for path in networks.iterdir()) == ["file", "headless", "run"]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("networks")
    save(directory / "run", "resnet_pico", **SMALL["resnet_pico"])
    save(directory / "headless", "resnet_pico", 0, **SMALL["resnet_pico"])
    (directory / "file").write_text("precious")
    return directory
