"""The benchmark of training steps, with small networks on a CPU."""

import importlib.util
import json

import pytest

from experiments.bench import steps

TINY = ["--pairs=vit_pico:resnet_pico", "--batch-size=8", "--image-size=8", "--dtype=float32"]


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    """Hides PyTorch, which would start a process per row."""
    find = importlib.util.find_spec
    monkeypatch.setattr(steps.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))


def test_bench_steps_times_a_step_and_writes_the_report(tmp_path, capsys):
    path = tmp_path / "steps.json"
    steps.main([*TINY, "--methods=kd", "--minutes=2", f"--out={path}"])
    report = json.loads(path.read_text())
    (row,) = report["rows"]
    assert report["skipped"] == {"torch": "torch and timm are not installed"}
    assert row["milliseconds"] == pytest.approx(1e3 * min(row["seconds"]))
    assert row["images_per_second"] == pytest.approx(8 / min(row["seconds"]))
    assert row["relative_to_kd"] == 1
    assert row["spread"] >= 0
    # Forward and backward pass of the student: 8 images of about 0.1 GFLOP over 8 devices.
    assert 1e5 < row["flops"] < 1e9
    assert row["bytes_accessed"] > 0
    assert row["temporary_bytes"] > 0
    assert 0 < row["matmul_fraction"] < 1
    printed = capsys.readouterr().out
    assert f"| vit_pico -> resnet_pico |     kd | lfcc_jax | {row['milliseconds']:.2f} |" in printed
    assert "float32, augmentation: recipe; best of" in printed


def test_bench_steps_lists_programs_that_exceed_the_budget(capsys):
    report = steps.main([*TINY, "--methods=kd", "--minutes=0"])
    assert report["rows"] == []
    assert report["skipped"]["vit_pico:resnet_pico kd, lfcc_jax"] == "not lowered in time"
    assert "* vit_pico:resnet_pico kd, lfcc_jax: not lowered in time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs=vit_pico"], "--pairs: must be teacher:student separated by commas, got 'vit_pico'"),
        (["--pairs=vit_pico:resnet_pic", "--image-size=8"], "unknown network 'resnet_pic'; did you mean 'resnet_pico'"),
        ([*TINY, "--methods=kdd"], "did you mean 'kd'"),
    ],
)
def test_bench_steps_rejects_invalid_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        steps.main(["--batch-size=8", *arguments])
    assert message in f"{ended.value} {capsys.readouterr().err}"
