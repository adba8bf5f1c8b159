import json

import pytest
from etils import epath

from lfcc_jax.training import report


def test_metrics_writer_drops_rows_after_the_resumed_step(tmp_path):
    workdir = epath.Path(tmp_path)
    writer = report.MetricsWriter(workdir, 0)
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": step / 2})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')  # killed while writing
    report.MetricsWriter(workdir, 2).close()
    assert report.read_metrics(workdir) == [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": 1.0}]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_read_metrics_skips_and_reports_damaged_lines(tmp_path, capsys):
    good = [{"step": step, "test/accuracy": step / 8} for step in range(4)]
    damaged = [
        "",
        "{",
        "null",
        "[1]",
        '{"epoch": 1}',
        '{"step": "3"}',
        '{"step": true}',
        "[" * 100000,
        '{"step": 1, "\xff": 2}',
    ]
    lines = [json.dumps(good[0]), *damaged, *map(json.dumps, good[1:])]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    assert report.read_metrics(epath.Path(tmp_path)) == good
    assert "metrics.jsonl: skipped damaged lines 2, 3, 4, 5, 6, 7, 8, 9, 10\n" in capsys.readouterr().out


def test_metrics_writer_writes_nan_as_valid_json(tmp_path):
    writer = report.MetricsWriter(epath.Path(tmp_path), 0)
    writer.write(1, {"train/loss": float("nan"), "train/accuracy": float("inf"), "test/loss": 0.5})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "train/loss": null, "train/accuracy": null, "test/loss": 0.5}\n'
    )


def test_metrics_writer_writes_tensorboard_files_with_tensorflow(tmp_path):
    tensorflow = pytest.importorskip("tensorflow")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = report.MetricsWriter(epath.Path(tmp_path), 0)
    writer.write(7, {"train/loss": 0.25})
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    (event,) = events.Tensors("train/loss")
    assert (event.step, tensorflow.make_ndarray(event.tensor_proto)) == (7, 0.25)


def test_progress_line_shows_step_speed_and_time_left(monkeypatch):
    clock = iter([0.0, 0.0, 4.0, 5.0])
    monkeypatch.setattr(report.time, "monotonic", lambda: next(clock))
    progress = report.Progress(total_steps=30, steps_per_epoch=10, batch_size=32, step=10)
    progress.pause(20)
    line = progress.line(20, {"loss": 1.25, "accuracy": 0.5})
    # 10 steps of 32 images in 4 s of training; 5 s for all of them, and 10 more to go.
    assert line == "step 20/30  epoch 2.0  loss 1.2500  accuracy 0.5000  80 images/s  0:00:05 left"


def test_progress_line_shows_the_loss_of_each_method():
    progress = report.Progress(total_steps=30, steps_per_epoch=10, batch_size=32, step=0)
    metrics = {"kd": 2.0, "lfcc": 0.25, "loss": 2.25, "accuracy": 0.5, "grad_norm": 3.0, "learning_rate": 0.1}
    assert "loss 2.2500 (kd 2.000, lfcc 0.250)  accuracy" in progress.line(10, metrics)


def test_progress_lines_are_seconds_apart_except_the_last(monkeypatch):
    now = 0.0
    monkeypatch.setattr(report.time, "monotonic", lambda: now)
    progress = report.Progress(total_steps=100, steps_per_epoch=10, batch_size=32, step=0)
    lines = {}
    for step in range(1, 101):  # a step takes a quarter of a second
        now += 0.25
        lines[step] = progress.line(step, {"loss": 1.0, "accuracy": 0.5})
    assert [step for step, line in lines.items() if line] == [*range(1, 100, 12), 100]


def test_table_is_aligned_markdown():
    expected = "| name | value |\n|:-----|------:|\n| a    |     1 |\n| bcde |    22 |"
    assert report.table(["name", "value"], [["a", 1], ["bcde", 22]]) == expected
