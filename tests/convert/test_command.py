import argparse
import errno
import json
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from test_timm import state_of

from lfcc_jax import convert, models
from lfcc_jax.convert.__main__ import main
from lfcc_jax.convert.files import read_state_dict, sha256
from lfcc_jax.errors import UserError
from lfcc_jax.export import main as export


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("timm") / "resnet18.safetensors"
    safetensors.numpy.save_file(state_of("resnet18"), path)
    return path


def test_command_converts_a_timm_file_to_a_teacher_and_back(checkpoint, tmp_path, capsys):
    main(["--model", "resnet18", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "teacher")])
    assert "resnet18, 11,180,103 parameters, 7 classes" in capsys.readouterr().out
    about = models.describe(tmp_path / "teacher")
    assert (about["name"], about["num_classes"], about["image_size"]) == ("resnet18", 7, 224)
    origin = about["made_by"]
    assert origin["source"] == "resnet18.safetensors"
    assert origin["sha256"] == sha256(checkpoint)
    assert origin["mean"] == [0.485, 0.456, 0.406]
    assert origin["crop_fraction"] == 0.875
    assert origin["interpolation"] == "bilinear"

    variables = models.load_variables(tmp_path / "teacher", models.create("resnet18", 7))
    state = read_state_dict(checkpoint)
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], state["fc.weight"].T)

    out = tmp_path / "student.safetensors"
    export([str(tmp_path / "teacher"), "--format=timm", f"--out={out}"])
    assert f'timm.create_model("resnet18", num_classes=7, checkpoint_path="{out}")' in capsys.readouterr().out
    back = read_state_dict(out)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value)
    with safetensors.safe_open(out, "numpy") as file:
        assert json.loads(file.metadata()["mean"]) == [0.485, 0.456, 0.406]
        assert file.metadata()["model"] == "resnet18"


def test_command_sets_a_new_head_and_constants(checkpoint, tmp_path):
    out = tmp_path / "teacher"
    arguments = ["--head", "new", "--num-classes", "100", "--image-size", "64", "--mean", "0.5", "--std", "0.25"]
    arguments += ["--crop-fraction", "0.95", "--interpolation", "bicubic"]
    main(["--model", "resnet18", "--checkpoint", str(checkpoint), "--out", str(out), *arguments])
    about = models.describe(out)
    network = models.create(about["name"], about["num_classes"], about["image_size"], **about["overrides"])
    assert (network.num_classes, network.image_size, network.mean, network.std) == (100, 64, (0.5,), (0.25,))
    assert (network.crop_fraction, network.interpolation) == (0.95, "bicubic")
    variables = models.load_variables(out, network)
    assert network.apply(variables, jax.numpy.ones((1, 64, 64, 3))).logits.shape == (1, 100)


def write_raw_safetensors(path, name, dtype, shape, data):
    """Writes a file with one tensor of any dtype."""
    header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def test_command_accepts_relative_paths(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["--model", "resnet18", "--checkpoint", str(checkpoint), "--out", "runs/teacher"])
    export(["runs/teacher", "--format=timm", "--out=runs/student.safetensors"])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["student.safetensors", "teacher"]


def test_command_leaves_no_files_after_a_failure_and_can_be_repeated(checkpoint, tmp_path, monkeypatch):
    save, out = models.save, tmp_path / "teacher"

    def save_to_a_full_disk(directory, variables, description):
        save(directory, variables, description)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(models, "save", save_to_a_full_disk)
    command = ["--model", "resnet18", "--checkpoint", str(checkpoint), "--out", str(out)]
    with pytest.raises(SystemExit, match="cannot write .*No space left on device"):
        main(command)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    main(command)
    assert models.load(out)[0].num_classes == 7


def test_export_to_timm_reports_an_unwritable_path_in_one_line(checkpoint, tmp_path):
    main(["--model", "resnet18", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "teacher")])
    (tmp_path / "file").write_text("precious")
    for out in ("/proc/x.safetensors", str(tmp_path / "file" / "x.safetensors")):
        with pytest.raises(SystemExit, match="error: (cannot write /proc/x|`--out` .*/file is a file)"):
            export([str(tmp_path / "teacher"), "--format=timm", f"--out={out}"])


def test_command_converts_a_grayscale_network(tmp_path):
    settings = {"image_channels": 1, "mean": (0.5,), "std": (0.25,)}
    safetensors.numpy.save_file(state_of("resnet18", **settings), tmp_path / "gray.safetensors")
    arguments = ["--image-channels", "1", "--mean", "0.5", "--std", "0.25"]
    out = tmp_path / "teacher"
    main(["--model", "resnet18", "--checkpoint", str(tmp_path / "gray.safetensors"), "--out", str(out), *arguments])
    network, variables = models.load(out)
    assert network.image_channels == 1
    assert variables["params"]["stem_conv"]["kernel"].shape == (7, 7, 1, 64)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bn1.running_mean", np.nan, "bn1.running_mean has 1 of 64 numbers that are NaN or infinite"),
        ("layer1.0.bn1.running_var", np.inf, "layer1.0.bn1.running_var has 1 of 64 numbers that are NaN or infinite"),
        ("layer1.0.bn1.running_var", -1.0, "layer1.0.bn1.running_var has negative variances"),
        ("fc.bias", np.float64(1e200), "fc.bias has 1 of 7 numbers that are NaN or infinite in float32"),
        ("conv1.weight", np.int8(1), "conv1.weight must be floating-point, got int8"),
    ],
)
def test_from_timm_names_tensors_with_unusable_values(name, value, message):
    state = state_of("resnet18")
    state[name] = state[name].astype(np.asarray(value).dtype)
    state[name].flat[0] = value
    with pytest.raises(UserError, match=message):
        convert.from_timm("resnet18", state)


def test_to_timm_rejects_nan():
    variables = convert.from_timm("resnet18", state_of("resnet18"))
    variables["batch_stats"]["stem_norm"]["mean"][3] = np.nan
    with pytest.raises(UserError, match="bn1.running_mean has 1 of 64 numbers"):
        convert.to_timm("resnet18", variables)


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("F16", np.float16), ("BF16", jax.numpy.bfloat16)])
def test_read_state_dict_reads_half_precision_safetensors(tmp_path, dtype, numpy_dtype):
    values = np.array([1.0, -0.333, 256.0], numpy_dtype)
    write_raw_safetensors(tmp_path / "x.safetensors", "a", dtype, [3], values.tobytes())
    read = read_state_dict(tmp_path / "x.safetensors")["a"]
    assert read.dtype == numpy_dtype
    np.testing.assert_array_equal(read.astype(np.float32), values.astype(np.float32))


def test_from_timm_reads_checkpoints_of_timms_trainer(tmp_path):
    torch = pytest.importorskip("torch")
    state = {key: torch.tensor(value) for key, value in state_of("resnet18").items()}
    arguments = argparse.Namespace(model="resnet18", lr=0.1)
    torch.save({"epoch": 3, "arch": "resnet18", "state_dict": state, "args": arguments}, tmp_path / "last.pth.tar")
    variables = convert.from_timm("resnet18", read_state_dict(tmp_path / "last.pth.tar"))
    np.testing.assert_array_equal(variables["params"]["head"]["bias"], state["fc.bias"].numpy())


def test_read_state_dict_reads_numpy_and_torch_files(checkpoint, tmp_path):
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
        ([], "--model is required"),
        (["--model", "resnet18", "--checkpoint", "nowhere.safetensors"], "no checkpoint file at nowhere.safetensors"),
        (["--model", "resnet18", "--checkpoint", "x.onnx"], "unknown kind of checkpoint file '.onnx'"),
        (["--model", "resnet18", "--checkpoint", "text.safetensors"], "is not a .safetensors checkpoint"),
        (["--model", "resnet18", "--checkpoint", "text.npz"], "is not a .npz checkpoint"),
        (["--model", "resnet34"], "layer1.2.bn1.bias is missing"),
        (["--model", "resnet18", "--num-classes", "0"], "--num-classes must be positive, got 0"),
        (["--model", "resnet18", "--num-classes", "10"], "has 7 classes, not 10"),
        (["--model", "resnet18", "--out", "full"], "full already exists"),
        (["--model", "resnet18", "--out", "text.npz/teacher"], "cannot write"),
        (["--model", "resnet18", "--out", "/proc/teacher"], "cannot write /proc/teacher"),
        (["--model", "resnet18", "--out", "gs://bucket/teacher"], "--out must be a local path"),
        (
            ["--model", "resnet18", "--image-channels", "1", "--mean", "0.5", "--std", "0.5"],
            "conv1.weight has shape [64, 3, 7, 7], expected [64, 1, 7, 7]",
        ),
        (["--model", "resnet18", "--image-channels", "1"], "mean and std must have one number or one per channel"),
        (["--model", "resnet18", "--checkpoint", "array.npz"], "array.npz is an .npy file of one array"),
        (["--model", "resnet18", "--checkpoint", "huge.npz"], "huge.npz does not fit into memory"),
        (
            ["--model", "resnet18", "--checkpoint", "float8.safetensors"],
            "float8.safetensors has tensors of dtype F8_E4M3",
        ),
        (["--model", "resnet18", "--checkpoint", "newline.safetensors"], "got names like 'new\\nline'"),
    ],
)
def test_command_reports_invalid_input_in_one_line(arguments, message, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "text.npz").write_text("no arrays")
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117) + "\n"
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    write_raw_safetensors(tmp_path / "float8.safetensors", "conv1.weight", "F8_E4M3", [4], bytes(4))
    write_raw_safetensors(tmp_path / "newline.safetensors", "new\nline", "F32", [1], bytes(4))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("precious")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(["--checkpoint", str(checkpoint), "--out", "out", *arguments])
    assert str(stopped.value).startswith("error: ")
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
