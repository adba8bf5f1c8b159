import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from experiments.compare import __main__ as command_line
from experiments.compare import report
from lfcc_jax.errors import UserError


def compare(workdir, data_dir, *arguments, method="lfcc"):
    command = [
        sys.executable,
        "-m",
        "experiments.compare",
        f"--config=configs/digits.py:runlocal,method={method}",
        f"--workdir={workdir}",
    ]
    command += [f"--config.data.data_dir={data_dir}", "--methods=scratch,lfcc", "--seeds=0,1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


OVERRIDES = (
    "--config.losses.lfcc.weight=0.5",
    "--config.seed=7",
    "--config.data.test_split=test[:100]",
)  # the teacher's seed


@pytest.fixture(scope="module")
def demo(tmp_path_factory, data_dir):
    """The work directory of a finished comparison, and its output."""
    workdir = tmp_path_factory.mktemp("demo")
    done = compare(workdir, data_dir, *OVERRIDES)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_compare_of_the_demo_reports_all_seeds_and_skips_finished_runs(demo, data_dir):
    workdir, output = demo
    rows = json.loads((workdir / "results.json").read_text())
    assert sorted((row["method"], row["seed"]) for row in rows) == [
        ("lfcc", 0),
        ("lfcc", 1),
        ("scratch", 0),
        ("scratch", 1),
    ]
    expected = "dataset teacher student method seed epochs top1_last top1_best teacher_top1 agreement seconds_per_step "
    assert set((expected + "hardware command date").split()) <= set(rows[0])
    assert [row["head_parameters"] > 0 for row in rows] == [False, True, False, True]
    table = (workdir / "results.md").read_text()
    assert table.strip() in output
    assert "over 2 seeds" in table
    for name in ("comparison.png", "spectra.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    assert "step" in (workdir / "lfcc_0" / "log.txt").read_text()
    assert "teacher: compiling" in output  # progress is shown without a terminal too
    assert "lfcc_1: compiling" in output

    again = compare(workdir, data_dir, *OVERRIDES)
    assert again.returncode == 0, again.stderr
    assert json.loads((workdir / "results.json").read_text())[0]["date"] == rows[0]["date"]


def test_compare_rejects_a_different_config_in_the_same_workdir(demo, data_dir):
    rejected = compare(demo[0], data_dir, *OVERRIDES, "--config.batch_size=16")
    assert rejected.returncode == 1
    assert "error: " in rejected.stderr
    assert "config.batch_size was 32, now 16" in rejected.stderr


def test_compare_rejects_an_unknown_method_and_a_dangling_teacher_before_training(tmp_path, data_dir):
    misspelled = compare(tmp_path, data_dir, "--methods=scratch,fitnett")
    assert misspelled.returncode == 1
    assert "did you mean 'fitnet'?" in misspelled.stderr
    (tmp_path / "teacher").symlink_to("nowhere")
    dangling = compare(tmp_path, data_dir)
    assert dangling.returncode == 1
    assert "must link to the work directory of a finished teacher" in dangling.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


@pytest.mark.exhaustive
def test_compare_rejects_an_override_that_no_method_has(tmp_path, data_dir):
    unused = compare(tmp_path, data_dir, "--config.losses.fitnet.weight=0.5")
    assert unused.returncode == 1
    assert "--config.losses.fitnet.weight: none of --methods=scratch,lfcc has that loss" in unused.stderr


def test_compare_applies_overrides_to_losses_and_the_teachers_seed(demo):
    configs = {
        name: json.loads((demo[0] / name / "config.json").read_text())
        for name in ("teacher", "lfcc_0", "lfcc_1", "scratch_0")
    }
    assert {name: config["seed"] for name, config in configs.items()} == {
        "teacher": 7,
        "lfcc_0": 0,
        "lfcc_1": 1,
        "scratch_0": 0,
    }
    assert configs["lfcc_0"]["losses"]["lfcc"]["weight"] == 0.5
    assert "lfcc" not in configs["scratch_0"]["losses"]


def test_compare_stops_after_the_given_minutes_and_reports_what_has_finished(demo, data_dir):
    workdir, _ = demo
    done = compare(workdir, data_dir, *OVERRIDES, "--seeds=2,0,1", "--minutes=1e-6")
    assert done.returncode == 0, done.stderr
    assert "1e-06 minutes are over; the same command resumes" in done.stdout
    assert f"4 of 6 students have finished; {workdir}/results.md" in done.stdout
    assert not (workdir / "scratch_2").exists()
    assert "4 runs on digits" in (workdir / "results.md").read_text()


def test_compare_stops_the_run_in_progress_when_the_minutes_are_over(tmp_path, data_dir, teacher_dir):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "teacher").symlink_to(teacher_dir)
    config = os.path.abspath("configs/digits.py")
    command = [sys.executable, "-m", "experiments.compare", f"--config={config}:runlocal"]
    command += ["--workdir=runs", f"--config.data.data_dir={data_dir}", "--methods=scratch", "--seeds=0,1"]
    # Far more than the time allows, which includes the start and compilation.
    command += ["--config.epochs=100000.0", "--config.eval_every_epochs=50000.0", "--minutes=0.4"]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("0.4 minutes are over; the same command resumes\n")
    assert [path.name for path in (tmp_path / "runs").glob("scratch_*")] == ["scratch_0"]
    # A relative directory can be moved.
    written = json.loads((tmp_path / "runs" / "scratch_0" / "config.json").read_text())
    assert written["teacher"]["checkpoint"] == "runs/teacher"
    assert os.listdir(tmp_path / "runs" / "scratch_0" / "checkpoints")


def test_students_are_trained_seed_by_seed_and_some_methods_first():
    order = command_line._in_order(["kd", "lfcc", "dist"], [0, 1], ["a", "b"], first=("lfcc", "rsd"))
    assert order[:6] == [("lfcc", 0, "a"), ("lfcc", 0, "b")] + [(m, 0, p) for p in "ab" for m in ("kd", "dist")]
    assert [(m, p) for m, seed, p in order if seed == 1] == [(m, p) for m, seed, p in order if seed == 0]


@pytest.mark.parametrize(
    ("flag", "value", "function", "message"),
    [
        ("_SEEDS", ["0", "a"], "_seeds", "--seeds must be integers such as 0,1,2, got '0,a'"),
        ("_SEEDS", [], "_seeds", "--seeds must not be empty"),
        ("_METHODS", [], "_methods", "--methods must not be empty"),
        ("_PAIRS", ["vit_pico"], "_pairs", "--pairs must be teacher:student separated by commas, got 'vit_pico'"),
        ("_PAIRS", ["vit_pico:resnet_pcio"], "_pairs", "unknown network 'resnet_pcio'; did you mean 'resnet_pico'?"),
    ],
)
def test_flags_are_checked(monkeypatch, flag, value, function, message):
    monkeypatch.setattr(command_line, flag, SimpleNamespace(value=value))
    arguments = {"_seeds": (), "_methods": (None,), "_pairs": (None, "")}[function]
    with pytest.raises(UserError, match=re.escape(message)):
        getattr(command_line, function)(*arguments)


def test_sigterm_to_compare_stops_all_runs_after_they_save(tmp_path, data_dir, teacher_dir):
    (tmp_path / "teacher").symlink_to(teacher_dir)
    command = [sys.executable, "-m", "experiments.compare", "--config=configs/digits.py:runlocal", "--parallel=2"]
    command += [f"--workdir={tmp_path}", f"--config.data.data_dir={data_dir}", "--methods=scratch", "--seeds=0,1"]
    command += ["--config.epochs=10000.0", "--config.eval_every_epochs=5000.0", "--config.log_every_steps=2"]
    runs = [tmp_path / "scratch_0", tmp_path / "scratch_1"]
    deadline = time.monotonic() + 300
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not all(
            (run / "metrics.jsonl").exists() and '"step": 4' in (run / "metrics.jsonl").read_text() for run in runs
        ):
            if process.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert errors.count("\n") == 1
    assert "the same command resumes them" in errors
    for run in runs:  # each ended by itself, before the comparison did
        assert "stopped at step" in (run / "log.txt").read_text().splitlines()[-1]
        assert os.listdir(run / "checkpoints")


def test_report_of_unfinished_pairs_leaves_gaps(tmp_path):
    common = {"student": "s", "dataset": "d", "epochs": 1, "hardware": "h", "jax": "0", "date": "2026-01-02", "seed": 0}
    finished = {"a -> s": {"kd": 50, "lfcc": 52, "dist": 51}, "b -> s": {"kd": 40, "lfcc": 43}}
    rows = [
        common | {"pair": pair, "method": method, "top1_last": top1 / 100, "teacher_top1": 0.9}
        for pair, values in finished.items()
        for method, top1 in values.items()
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    assert [path.name for path in report.make(tmp_path / "results.json")] == ["results.md", "results.png"]
    cells = [line.split() for line in (tmp_path / "results.md").read_text().splitlines()]
    assert ["|", "dist", "|", "51.00", "|", "-", "|", "-", "|", "-", "|", "1.00", "|"] in cells
    assert ["|", "kd", "|", "50.00", "|", "40.00", "|", "45.00", "|", "2.0", "|", "2.50", "±", "0.50", "|"] in cells


def test_report_compares_seed_by_seed_with_a_confidence_interval():
    def rows(method, accuracies):
        common = {"student": "s", "dataset": "d", "epochs": 1, "hardware": "h", "jax": "0", "date": "2026-01-02"}
        common |= {"parameters": 1, "head_parameters": 0, "seconds_per_step": 0.1, "agreement": None, "method": method}
        return [
            common | {"seed": seed, "top1_last": top1 / 100, "top1_best": top1 / 100}
            for seed, top1 in enumerate(accuracies)
        ]

    # Seeds differ by far more than methods do.
    results = rows("kd", [50, 60, 70, 80, 90]) + rows("dkd", [52, 59, 76, 80, 95]) + rows("lfcc", [51, 62, 73, 84, 95])
    teacher = {"student": "t", "parameters": 1, "top1_last": 0.99}
    text = report.markdown(results, {"": teacher}, ["kd", "dkd", "lfcc"], [None])
    # Differences of 1 to 5 points: standard error sqrt(2.5 / 5), and Student's t with 4 degrees of freedom is 2.776.
    margin = 2.776445 * 0.5**0.5
    assert f"lfcc - kd: 3.00 ± {0.5**0.5:.2f} points (mean ± standard error), higher with 5 of 5 seeds" in text
    assert f"95 % interval {3 - margin:.2f} to {3 + margin:.2f}: a clear difference" in text
    assert "lfcc - dkd: 0.60 ± " in text
    assert text.count("a difference that these seeds do not settle") == 1


@pytest.mark.exhaustive
def test_compare_of_several_pairs_in_parallel(tmp_path, data_dir):
    command = [
        sys.executable,
        "-m",
        "experiments.compare",
        "--config=configs/study.py:runlocal",
        f"--workdir={tmp_path}",
    ]
    command += [
        "--config.data.name=digits",
        f"--config.data.data_dir={data_dir}",
        "--config.epochs=1.0",
        "--config.optimizer.learning_rate.warmup_epochs=0.5",
        "--config.log_every_steps=1",
        "--config.data.train_split=train[:10%]",
        "--config.data.test_split=test[:40]",
        "--methods=scratch,kd",
        "--seeds=0",
        "--parallel=2",
    ]
    pairs = ["vit_pico:resnet_pico", "mixer_pico:resnet_pico"]
    done = subprocess.run([*command, f"--pairs={','.join(pairs)}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())
    expected = {(pair.replace(":", " -> "), method) for pair in pairs for method in ("scratch", "kd")}
    assert {(row["pair"], row["method"]) for row in rows} == expected
    assert {row["teacher"] for row in rows} == {"vit_pico", "mixer_pico"}
    table = (tmp_path / "results.md").read_text()
    assert "| vit_pico -> resnet_pico | mixer_pico -> resnet_pico | " in table
    assert table.count("taught by") == 2
    assert "kd is ahead by" in table
    for name in ("pairs.png", "mixer_pico_resnet_pico/comparison.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    run = tmp_path / "vit_pico_resnet_pico" / "kd_0"
    assert json.loads((run / "config.json").read_text())["teacher"]["checkpoint"] == str(tmp_path / "teacher_vit_pico")

    # A different config is rejected even if the run is finished.
    longer = [*command, "--config.epochs=2.0", "--methods=scratch", "--pairs=vit_pico:resnet_pico"]
    rejected = subprocess.run(longer, capture_output=True, text=True, check=False)
    assert rejected.returncode == 1
    assert "config.epochs was 1.0, now 2.0" in rejected.stderr
