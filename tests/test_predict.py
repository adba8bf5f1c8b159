"""Predictions for image files: the same images as in evaluation, by a saved network and by its ONNX file."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from lfcc_jax import export, models, predict
from lfcc_jax.data import host_crops
from tests.models.test_models import SMALL
from tests.test_export import save


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A directory with a network (`run`) with class names, its ONNX file, and a network without classifier."""
    directory = tmp_path_factory.mktemp("predict")
    settings = SMALL["resnet_pico"] | {"crop_fraction": 0.8, "interpolation": "bilinear"}
    save(directory / "run", "resnet_pico", 6, **settings)
    save(directory / "headless", "resnet_pico", 0, **settings)
    export.main([str(directory / "run"), "--format=onnx", f"--out={directory / 'x.onnx'}"])
    return directory


@pytest.fixture
def photos(tmp_path):
    """Four images of several sizes, formats and modes, two of them below another directory."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name, shape in {
        "a.png": (20, 13),
        "b.JPG": (9, 30, 3),
        "more/c.png": (8, 8, 4),
        "more/d.bmp": (5, 5, 3),
    }.items():
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    return tmp_path / "photos"


def predictions(capsys, arguments):
    capsys.readouterr()
    predict.main([*map(str, arguments), "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_predictions_are_the_networks_on_images_cropped_as_in_evaluation(runs, photos, tmp_path, capsys):
    rows = predictions(capsys, [runs / "run", photos, f"--features={tmp_path / 'f.npz'}"])
    names = ["a.png", "b.JPG", "more/c.png", "more/d.bmp"]
    assert [row["path"] for row in rows] == [str(photos / name) for name in names]
    pictures = [host_crops.decode((photos / name).read_bytes(), 1) for name in names]
    images = np.stack([host_crops.central_crop(picture, 8, 0.8, "bilinear") for picture in pictures]) / np.float32(255)
    network, variables = models.load(runs / "run")
    logits, features = jax.jit(network.apply)(variables, images)
    probabilities = np.asarray(jax.nn.softmax(logits))
    for row, expected in zip(rows, probabilities, strict=True):
        order = np.argsort(-expected)[:5]
        assert [p["index"] for p in row["predictions"]] == order.tolist()
        assert [p["name"] for p in row["predictions"]] == [f"kind {i}" for i in order]
        np.testing.assert_allclose([p["probability"] for p in row["predictions"]], expected[order], rtol=1e-4)
    with np.load(tmp_path / "f.npz") as saved:
        np.testing.assert_allclose(saved["pooled"], features["pooled"], rtol=1e-4, atol=1e-6)
        assert saved["paths"].tolist() == [row["path"] for row in rows]


def test_onnx_file_predicts_what_the_network_predicts(runs, photos, capsys):
    rows, converted = (predictions(capsys, [runs / name, photos]) for name in ("run", "x.onnx"))
    assert len(converted) == 4
    for row, other in zip(rows, converted, strict=True):
        assert [p["name"] for p in row["predictions"]] == [p["name"] for p in other["predictions"]]
        probabilities = [[p["probability"] for p in r["predictions"]] for r in (row, other)]
        np.testing.assert_allclose(*probabilities, rtol=1e-4)


def test_batches_do_not_change_predictions(runs, photos, capsys, monkeypatch):
    rows = predictions(capsys, [runs / "x.onnx", photos])
    monkeypatch.setattr(predict, "_BATCH", 3)
    batched = predictions(capsys, [runs / "x.onnx", photos])
    assert [row["path"] for row in rows] == [row["path"] for row in batched]
    for row, other in zip(rows, batched, strict=True):
        assert row["predictions"][0]["probability"] == pytest.approx(other["predictions"][0]["probability"], rel=1e-5)


def test_exif_orientation_is_applied(runs, tmp_path, capsys):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    picture.save(tmp_path / "as_stored.png")
    rows = predictions(capsys, [runs / "x.onnx", *(tmp_path / f"{n}.png" for n in ("turned", "upright", "as_stored"))])
    assert rows[0]["predictions"] == rows[1]["predictions"]
    assert rows[0]["predictions"] != rows[2]["predictions"]


def test_text_output_has_probabilities_and_names(runs, photos, capsys):
    predict.main([str(runs / "x.onnx"), str(photos / "a.png")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(photos / "a.png")
    assert len(lines) == 6
    assert "%  kind " in lines[1]


def test_unreadable_images_are_named_and_the_others_predicted(runs, photos, capsys):
    (photos / "b.JPG").write_bytes(b"damaged")
    with pytest.raises(SystemExit) as stopped:
        predict.main([str(runs / "x.onnx"), str(photos), str(photos / "missing.png")])
    assert stopped.value.code == 1
    out, err = capsys.readouterr()
    assert sum(line.startswith(str(photos)) for line in out.splitlines()) == 3
    errors = err.splitlines()
    assert errors[0].startswith(f"error: {photos / 'b.JPG'} cannot be read: the image must be one of JPEG")
    assert errors[1] == f"error: {photos / 'missing.png'} cannot be read: No such file or directory"


def test_network_without_classifier_writes_features_only(runs, photos, tmp_path, capsys):
    predict.main([str(runs / "headless"), str(photos / "a.png"), f"--features={tmp_path / 'f.npz'}"])
    assert np.load(tmp_path / "f.npz")["pooled"].shape == (1, 8)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "photos"], "no finished network in"),
        (["nothing.onnx", "photos"], "nothing.onnx does not exist"),
        (["damaged.onnx", "photos"], "cannot read damaged.onnx: "),
        (["{runs}/run", "empty"], "empty contains no images"),
        (["{runs}/run", "photos", "--features=x.npy"], "--features must end in .npz, got 'x.npy'"),
        (["{runs}/headless", "photos"], "the network has no classifier; --features=FILE.npz writes its vectors"),
    ],
)
def test_predict_reports_invalid_input_in_one_line(arguments, message, runs, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.onnx").write_text("damaged")
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        predict.main([argument.format(runs=runs) for argument in arguments])
