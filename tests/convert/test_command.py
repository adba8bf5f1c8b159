import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from test_timm import state_of

from lfcc_jax import models
from lfcc_jax.convert.__main__ import main
from lfcc_jax.convert.files import read_state_dict, sha256


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("timm") / "resnet18.safetensors"
    safetensors.numpy.save_file(state_of("resnet18"), path)
    return path


def test_a_timm_file_becomes_a_teacher_and_comes_back(checkpoint, tmp_path, capsys):
    main(["--model", "resnet18", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "teacher")])
    assert "resnet18, 11,180,103 parameters, 7 classes" in capsys.readouterr().out
    about = models.describe(tmp_path / "teacher")
    assert (about["name"], about["num_classes"], about["image_size"]) == ("resnet18", 7, 224)
    origin = about["made_by"]
    assert origin["source"] == "resnet18.safetensors"
    assert origin["sha256"] == sha256(checkpoint)
    assert origin["mean"] == [0.485, 0.456, 0.406]
    assert origin["crop"] == 0.875
    assert origin["interpolation"] == "bilinear"

    variables = models.load_variables(tmp_path / "teacher", models.create("resnet18", 7))
    state = read_state_dict(checkpoint)
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], state["fc.weight"].T)

    out = tmp_path / "student.safetensors"
    main(["--to-timm", "--checkpoint", str(tmp_path / "teacher"), "--out", str(out)])
    assert f'timm.create_model("resnet18", num_classes=7, checkpoint_path="{out}")' in capsys.readouterr().out
    back = read_state_dict(out)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value)
    with safetensors.safe_open(out, "numpy") as file:
        assert json.loads(file.metadata()["mean"]) == [0.485, 0.456, 0.406]
        assert file.metadata()["model"] == "resnet18"


def test_a_teacher_gets_a_new_head_and_its_own_constants(checkpoint, tmp_path):
    out = tmp_path / "teacher"
    arguments = ["--head", "new", "--num-classes", "100", "--image-size", "64", "--mean", "0.5", "--std", "0.25"]
    arguments += ["--crop", "0.95", "--interpolation", "bicubic"]
    main(["--model", "resnet18", "--checkpoint", str(checkpoint), "--out", str(out), *arguments])
    about = models.describe(out)
    network = models.create(about["name"], about["num_classes"], about["image_size"], **about["overrides"])
    assert (network.num_classes, network.image_size, network.mean, network.std) == (100, 64, (0.5,), (0.25,))
    assert (network.crop, network.interpolation) == (0.95, "bicubic")
    variables = models.load_variables(out, network)
    assert network.apply(variables, jax.numpy.ones((1, 64, 64, 3))).logits.shape == (1, 100)


def test_numpy_and_torch_files_are_read(checkpoint, tmp_path):
    state = read_state_dict(checkpoint)
    np.savez(tmp_path / "x.npz", **state)
    assert all(np.array_equal(read_state_dict(tmp_path / "x.npz")[key], value) for key, value in state.items())
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {key: torch.tensor(value) for key, value in state.items()}}, tmp_path / "x.pth")
    read = read_state_dict(tmp_path / "x.pth")["state_dict"]
    assert all(np.array_equal(read[key].numpy(), value) for key, value in state.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet81"], "unknown network 'resnet81'; did you mean 'resnet18'"),
        ([], "--model: missing"),
        (["--model", "resnet18", "--checkpoint", "nowhere.safetensors"], "no checkpoint file at nowhere.safetensors"),
        (["--model", "resnet18", "--checkpoint", "x.onnx"], "unknown kind of checkpoint file '.onnx'"),
        (["--model", "resnet18", "--checkpoint", "text.safetensors"], "is no .safetensors checkpoint"),
        (["--model", "resnet18", "--checkpoint", "text.npz"], "is no .npz checkpoint"),
        (["--model", "resnet34"], "layer1.2.conv1.weight is missing"),
        (["--model", "resnet18", "--num-classes", "0"], "--num-classes: 0 will not do"),
        (["--to-timm", "--mean", "0.5", "--model", "resnet18"], "--model, --mean: the run says that itself"),
        (["--model", "resnet18", "--num-classes", "10"], "has 7 classes, not 10"),
        (["--model", "resnet18", "--out", "full"], "full is there already"),
        (["--to-timm", "--checkpoint", "full"], "no finished network in"),
    ],
)
def test_what_cannot_be_converted_ends_with_one_line(arguments, message, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "text.npz").write_text("no arrays")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("precious")
    with pytest.raises(SystemExit) as stopped:
        main(["--checkpoint", str(checkpoint), "--out", "out", *arguments])
    assert str(stopped.value).startswith("error: ")
    assert message in str(stopped.value)
    assert not (tmp_path / "out").exists()
