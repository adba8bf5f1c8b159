import json
import statistics
import subprocess
import sys

import pytest

from experiments.compare import report
from lfcc_jax.errors import UserError

ROW = {
    "dataset": "toy",
    "epochs": 3.0,
    "top5_last": 0.9,
    "calibration_error": 0.1,
    "hardware": "1 x cpu",
    "jax": "0",
    "date": "2026-01-02T00:00:00",
    "seconds_per_step": 0.1,
}


def row(method, pair, seed, top1):
    agreement = (
        {"agreement": None, "kl_to_teacher": None} if method == "scratch" else {"agreement": 0.5, "kl_to_teacher": 1}
    )
    accuracies = {"top1_last": top1 / 100, "top1_best": top1 / 100, "teacher_top1": 0.8}
    return ROW | agreement | accuracies | {"method": method, "pair": pair, "seed": seed}


def test_report_compares_equal_pairs_and_seeds(tmp_path):
    # Pairs and seeds differ by far more than methods do; LFCC leads by 1 and 2, then 3 and 2 points.
    top1s = {("a -> b", 0): (50, 51), ("a -> b", 1): (60, 62), ("c -> d", 0): (10, 13), ("c -> d", 1): (20, 22)}
    rows = [
        row(m, pair, seed, top1)
        for (pair, seed), both in top1s.items()
        for m, top1 in zip(("scratch", "lfcc"), both, strict=True)
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows[::-1]))
    written = report.make(path)
    text = written[0].read_text()
    error = statistics.stdev([1.5, 2.5]) / 2**0.5
    assert "lfcc is ahead by" in text
    line = next(line for line in text.splitlines() if line.startswith("| scratch"))
    assert [cell.strip() for cell in line.split("|")[2:-1]] == [
        "15.00 ± 7.07",
        "55.00 ± 7.07",
        "35.00",
        "2.0",
        f"2.00 ± {error:.2f}",
    ]
    assert "8 runs on toy, 2 seeds, 3 epochs" in text
    assert written[1].read_bytes().startswith(b"\x89PNG")


def test_report_compares_methods_over_their_common_seeds(tmp_path):
    top1s = {("lfcc", 0): 50, ("lfcc", 1): 90, ("lfcc_dist", 0): 52, ("lfcc_dist", 1): 93, ("kd", 0): 49}
    rows = [row(m, pair, seed, top1) for (m, seed), top1 in top1s.items() for pair in ("a -> b", "c -> d")]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    lines = report.make(path)[0].read_text().partition("| LFCC adds")[0].splitlines()
    ahead = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[-3:-1]]
        for line in lines
        if "±" in line and line.startswith("| ")
    }
    assert ahead == {
        "lfcc": ["", "2.50 ± 0.00"],
        "lfcc_dist": ["-2.50 ± 0.00", ""],
        "kd": ["1.00 ± 0.00", "3.00 ± 0.00"],
    }


def test_report_shows_what_lfcc_adds_by_pair_and_seed(tmp_path):
    # Gains of 1 and 3 points for one pair, -1 and 1 for the other: by pair 2 and 0, by seed 0 and 2.
    gains = {("a -> b", 0): 1, ("a -> b", 1): 3, ("c -> d", 0): -1, ("c -> d", 1): 1}
    rows = [row("rsd_kd", pair, seed, 50) for pair, seed in gains]
    rows += [row("lfcc_rsd", pair, seed, 50 + gain) for (pair, seed), gain in gains.items()]
    rows += [row("lfcc", "a -> b", 0, 50), row("kd", "a -> b", 0, 40)]  # one pair only: left out
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    lines = [line for line in report.make(path)[0].read_text().splitlines() if line.startswith("| lfcc_rsd - ")]
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines] == [
        ["lfcc_rsd - rsd_kd", "2.00", "0.00", "1.00 ± 1.00", "1.00", "3 of 4"]
    ]
    assert "lfcc - kd" not in path.with_suffix(".md").read_text()


def test_report_rejects_files_without_results(tmp_path):
    wrong = tmp_path / "wrong.json"
    for text in ("{", "[1]", "[]"):
        wrong.write_text(text)
        with pytest.raises(UserError, match="wrong.json"):
            report.make(wrong)
    command = [sys.executable, "-m", "experiments.compare.report", str(wrong)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: {wrong} contains no results\n")
