"""Tables and plots of the runs of `experiments.compare`. As a command, redraws them from `results.json` alone.

    python -m experiments.compare.report experiments/results/study_12_epochs.json

writes `study_12_epochs.md` and `study_12_epochs.png` next to the file. LFCC is compared with every other method by pair
and seed.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import scipy.stats

from experiments.compare import pictures as drawing
from lfcc_jax.errors import UserError
from lfcc_jax.training import pictures
from lfcc_jax.training.report import read_metrics, table

# Labels of methods in plots, where they differ from the name.
_NAMES = {
    "scratch": "alone",
    "kd": "KD",
    "kd_standardized": "KD, standardized",
    "dkd": "DKD",
    "dist": "DIST",
    "ofa": "OFA",
    "ttm": "TTM",
    "wttm": "WTTM",
    "fitnet": "FitNet",
    "fitnet_kd": "FitNet + KD",
    "fitnet_dist": "FitNet + DIST",
    "at": "AT",
    "sp": "SP",
    "cc": "CC",
    "rkd": "RKD",
    "pkt": "PKT",
    "nst": "NST",
    "vid": "VID",
    "hcl": "HCL",
    "crd": "CRD",
    "crd_kd": "CRD + KD",
    "crd_bank": "CRD with a bank",
    "srrl_kd": "SRRL + KD",
    "rld": "RLD",
    "rsd": "RSD",
    "rsd_kd": "RSD + KD",
    "queue_kd": "queue + KD",
    "dual_view_kd": "two views + KD",
    "dual_view_frequency": "frequency view + KD",
    "dual_view_spatial": "spatial view + KD",
    "regression": "regression",
    "lfcc": "LFCC + KD",
    "lfcc_dist": "LFCC + DIST",
    "dist_rsd": "DIST + RSD",
    "lfcc_rsd": "LFCC + KD + RSD",
    "lfcc_dist_rsd": "LFCC + DIST + RSD",
    "lfcc_dist_3": "LFCC + DIST, weight 3",
    "lfcc_alone": "LFCC, no KD",
    "lfcc_raw": "codes not standardized",
    "lfcc_none": "no filter",
    "lfcc_gaussian": "Gaussian filter",
    "lfcc_ideal": "ideal filter",
    "lfcc_dct": "DCT filter",
    "lfcc_learned": "learned filter",
    "lfcc_grid1": "1 x 1 grid only",
    "lfcc_grid2": "2 x 2 grid only",
    "lfcc_grid4": "4 x 4 grid only",
    "lfcc_stage4": "stage 4 only",
    "lfcc_stage34": "stages 3 and 4",
    "lfcc_stage12": "stages 1 and 2",
    "lfcc_cool": "temperature 0.05",
    "lfcc_warm": "temperature 0.2",
    "lfcc_both": "negatives of both networks",
    "lfcc_symmetric": "symmetric contrast",
    "lfcc_student": "projector of the student only",
    "lfcc_mlp": "MLP projectors",
}

# What each method is without LFCC.
_WITHOUT_LFCC = {"lfcc": "kd", "lfcc_dist": "dist", "lfcc_rsd": "rsd_kd", "lfcc_dist_rsd": "dist_rsd"}

Rows = Sequence[Mapping[str, Any]]
Pair = tuple[str, str] | None


def markdown(
    rows: Rows, teachers: Mapping[str, Mapping[str, Any]], methods: Sequence[str], pairs: Sequence[Pair]
) -> str:
    """Returns Markdown: for several pairs, the tables of `of_all_pairs` and `what_lfcc_adds`; then one table per pair.

    Args:
      rows: The summary of each run, with its `method` and, for several pairs, its `pair`.
      teachers: The summary of each teacher, by its name in `pairs`; "" for the teacher of the pair None.
      methods: Names of the methods, in the order of the rows.
      pairs: Names of teacher and student; [None] for the pair of the config.
    """
    parts = [of_all_pairs(rows, methods, pairs), what_lfcc_adds(rows, pairs)] if len(pairs) > 1 else []
    parts += [_of_one_pair(rows_of(rows, pair), teachers[pair[0] if pair else ""], methods) for pair in pairs]
    return "\n\n".join(filter(None, parts))


def rows_of(rows: Rows, pair: Pair, method: str | None = None) -> Rows:
    """Returns the rows of a pair, or of one method of it."""
    rows = [row for row in rows if pair is None or row["pair"] == f"{pair[0]} -> {pair[1]}"]
    return [row for row in rows if method is None or row["method"] == method]


def draw(
    workdir: Path,
    rows: Rows,
    teachers: Mapping[str, Mapping[str, Any]],
    methods: Sequence[str],
    seeds: Sequence[int],
    pairs: Sequence[Pair],
) -> list[str]:
    """Plots accuracies and spectra of each pair in its directory, and for several pairs a plot of all.

    Args:
      workdir: Work directory of the comparison.
      rows: As in `markdown`.
      teachers: As in `markdown`.
      methods: As in `markdown`.
      seeds: Seeds of the runs.
      pairs: As in `markdown`.

    Returns:
      The names of the plots.
    """
    for pair in pairs:
        directory = workdir / f"{pair[0]}_{pair[1]}" if pair else workdir
        teacher = teachers[pair[0] if pair else ""]
        curves = {_NAMES.get(m, m): [read_metrics(directory / f"{m}_{seed}") for seed in seeds] for m in methods}
        first = rows_of(rows, pair)[0]
        title = f"{first['student']} taught by {teacher['student']}, {first['dataset']}"
        drawing.comparison(directory / "comparison.png", curves, teacher["top1_last"], title)
        networks = {}
        for method in (
            methods if len(methods) <= 4 else (methods[0], _references(methods)[0])
        ):  # more lines are illegible
            spectra = json.loads((directory / f"{method}_{seeds[0]}" / "spectra.json").read_text())
            name = _NAMES.get(method, method)
            networks |= {f"{n}, {name}" if n.startswith("student") else n: s for n, s in spectra.items()}
        pictures.spectra(directory / "spectra.png", networks)
    if len(pairs) == 1:
        return ["comparison.png", "spectra.png"]
    draw_pairs(workdir / "pairs.png", rows, methods, pairs)
    return ["pairs.png", "for each pair comparison.png", "spectra.png"]


def _of_one_pair(rows: Rows, teacher: Mapping[str, Any], methods: Sequence[str]) -> str:
    references = _references(methods)
    lines = []
    for method in methods:
        runs = [row for row in rows if row["method"] == method]
        lines.append([
            method,
            spread([100 * row["top1_last"] for row in runs]),
            spread([100 * row["top1_best"] for row in runs]),
            spread([100 * row["agreement"] for row in runs if row["agreement"] is not None]),
            *("" if method == name else mean_error(_ahead(rows, name, method)) for name in references),
            f"{runs[0]['head_parameters']:,}",
            spread([1000 * row["seconds_per_step"] for row in runs]),
        ])  # fmt: skip
    first, seeds = rows[0], len({row["seed"] for row in rows})
    header = ["method", "top-1 last, %", "top-1 best, %", "agreement, %"]
    header += [*(f"{name} is ahead by" for name in references), "head parameters", "ms a step"]
    text = (
        f"{first['student']} ({first['parameters']:,} parameters) on {first['dataset']}, taught by "
        f"{teacher['student']} ({teacher['parameters']:,} parameters, top-1 {100 * teacher['top1_last']:.2f} %). "
        f"Mean ± standard deviation over {seeds} seed{'s' if seeds > 1 else ''}; {first['epochs']:g} epochs, "
        f"{first['hardware']}, jax {first['jax']}, {first['date'][:10]}.\n\n" + table(header, lines)
    )
    verdicts = [_verdict(name, rival, _ahead(rows, name, rival)) for name in references for rival in methods]
    verdicts = [f"* {verdict}" for verdict in verdicts if verdict]
    if not verdicts:
        return text
    about = "The same seed means the same initial student and the same batches, so methods are compared seed by seed:"
    return "\n\n".join([text, about, "\n".join(verdicts)])


def _verdict(method: str, rival: str, ahead: Sequence[float]) -> str | None:
    """Returns a sentence about the differences between two methods, or None if there are fewer than three."""
    if method == rival or len(ahead) < 3:
        return None
    mean, wins = statistics.mean(ahead), sum(points > 0 for points in ahead)
    margin = scipy.stats.t.ppf(0.975, len(ahead) - 1) * _error(ahead)
    shown = "a difference that these seeds do not settle" if abs(mean) <= margin else "a clear difference"
    return (
        f"{method} - {rival}: {mean_error(ahead)} points (mean ± standard error), higher with {wins} of {len(ahead)} "
        f"seeds; 95 % interval {mean - margin:.2f} to {mean + margin:.2f}: {shown}"
    )


def _references(methods: Sequence[str]) -> list[str]:
    """Returns the methods to compare the others with: LFCC with KD, DIST and RSD if present, else the last."""
    names = ("lfcc", "lfcc_dist", "lfcc_dist_rsd")
    return [name for name in names if name in methods] or list(methods[-1:])


def draw_pairs(path: Path, rows: Rows, methods: Sequence[str], pairs: Sequence[Pair]) -> bool:
    """Plots the gain of each method over KD, or over the first method; see `experiments.compare.pictures.pairs`.

    Gains are over equal seeds; methods without one for each pair are left out. Returns whether there is one to plot.
    """
    methods = [method for method in methods if all(rows_of(rows, pair, method) for pair in pairs)]
    base, *others = sorted(methods, key=lambda method: method != "kd") or [""]
    gains: dict[str, dict[str, float]] = {}
    for method in others:
        by_pair = _by_pair(_differences(rows, method, base))
        if len(by_pair) == len(pairs):
            for pair, points in by_pair.items():
                gains.setdefault(pair.replace("->", "→"), {})[_NAMES.get(method, method)] = statistics.mean(points)
    if not gains:
        return False
    base = _NAMES.get(base, base)
    drawing.pairs(
        path, gains, base, f"{rows[0]['dataset']}, {rows[0]['epochs']:g} epochs: gain over {base}, equal seeds"
    )
    return True


def of_all_pairs(rows: Rows, methods: Sequence[str], pairs: Sequence[Pair]) -> str:
    """Returns a Markdown table with a row per method: its mean and rank over the pairs, and the lead of LFCC over it.

    A rank is the mean over the pairs, 1 is the best, and methods that lack a pair have none. There is a column for each
    of LFCC with KD, with DIST, and with DIST and RSD among the methods; without any of them, one for the last method.

    Args:
      rows: As in `markdown`.
      methods: As in `markdown`.
      pairs: Names of teacher and student; [None] for the pair of the config.
    """
    references = _references(methods)
    accuracies = {
        method: [[100 * row["top1_last"] for row in rows_of(rows, pair, method)] for pair in pairs]
        for method in methods
    }
    means = {method: list(map(statistics.mean, by_pair)) for method, by_pair in accuracies.items() if all(by_pair)}
    ranks = dict(zip(means, scipy.stats.rankdata([[-x for x in m] for m in means.values()], axis=0), strict=True))
    lines = []
    for method, by_pair in accuracies.items():
        line = [method, *map(spread, by_pair)]
        if pairs != [None]:
            complete = method in means
            line += [f"{statistics.mean(means[method]):.2f}", f"{ranks[method].mean():.1f}"] if complete else ["-", "-"]
        ahead = ["" if method == reference else mean_error(_ahead(rows, reference, method)) for reference in references]
        lines.append([*line, *ahead])
    names = (
        ["mean"] if pairs == [None] else [*(f"{teacher} -> {student}" for teacher, student in pairs), "mean", "rank"]
    )
    ahead = [f"{reference} is ahead by" for reference in references]
    return table(["top-1 at the end, %", *names, *ahead], lines)


def what_lfcc_adds(rows: Rows, pairs: Sequence[Pair]) -> str:
    """Returns a Markdown table of the gain over the same losses without LFCC, by pair; "" if there are no such runs.

    A gain is that of equal seeds. Its standard errors are those over pairs and, where there are several, over seeds.

    Args:
      rows: As in `markdown`.
      pairs: Names of teacher and student.
    """
    lines = []
    for method, without in _WITHOUT_LFCC.items():
        gains = _differences(rows, method, without)
        by_pair = [[gain for (p, _), gain in gains.items() if p == f"{pair[0]} -> {pair[1]}"] for pair in pairs]
        if not all(by_pair):
            continue
        seeds = sorted({seed for _, seed in gains})
        of_seeds = [[gain for (_, s), gain in gains.items() if s == seed] for seed in seeds]
        complete = [statistics.mean(points) for points in of_seeds if len(points) == len(pairs)]
        error = f"{_error(complete):.2f}" if len(complete) > 1 else "-"
        wins = sum(gain > 0 for gain in gains.values())
        means = list(map(statistics.mean, by_pair))
        lines.append([
            f"{method} - {without}", *(f"{mean:.2f}" for mean in means), mean_error(means), error,
            f"{wins} of {len(gains)}",
        ])  # fmt: skip
    names = [f"{teacher} -> {student}" for teacher, student in pairs]
    header = ["LFCC adds, points", *names, "mean ± error over pairs", "error over seeds", "higher in"]
    return table(header, lines) if lines else ""


def _differences(rows: Rows, method: str, rival: str) -> dict[tuple[str | None, int], float]:
    """Returns the lead of a method over a rival in points, by pair and seed."""
    accuracies = {(row["method"], row.get("pair"), row["seed"]): 100 * row["top1_last"] for row in rows}
    return {
        (pair, seed): accuracy - accuracies[rival, pair, seed]
        for (name, pair, seed), accuracy in accuracies.items()
        if name == method and (rival, pair, seed) in accuracies
    }


def _ahead(rows: Rows, method: str, rival: str) -> list[float]:
    """Returns the lead of a method over a rival in points: of each seed for one pair, else of each pair on average."""
    by_pair = _by_pair(_differences(rows, method, rival))
    if len(by_pair) == 1:
        return next(iter(by_pair.values()))
    return [statistics.mean(points) for points in by_pair.values()]


def _by_pair(differences: Mapping[tuple[str | None, int], float]) -> dict[str | None, list[float]]:
    by_pair: dict[str | None, list[float]] = {}
    for (pair, _), points in differences.items():
        by_pair.setdefault(pair, []).append(points)
    return by_pair


def mean_error(values: Sequence[float]) -> str:
    """Returns mean ± standard error; a dash if there are no values."""
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else "-"
    return f"{statistics.mean(values):.2f} ± {_error(values):.2f}"


def _error(values: Sequence[float]) -> float:
    """Returns the standard error of the mean of two or more values."""
    return statistics.stdev(values) / len(values) ** 0.5


def spread(values: Sequence[float]) -> str:
    """Returns mean ± standard deviation; a dash if there are no values."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def make(path: Path) -> list[Path]:
    """Writes Markdown, and for several pairs a plot, next to a file of results; returns their paths.

    Raises:
      UserError: if the file is not a `results.json` or is empty.
    """
    try:
        rows = json.loads(path.read_text())
        methods = list(dict.fromkeys(row["method"] for row in rows))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} must be a results.json of experiments.compare: {error}") from error
    if not rows:
        raise UserError(f"{path} contains no results")
    pairs = list(dict.fromkeys(tuple(row["pair"].split(" -> ")) if "pair" in row else None for row in rows))
    text = [_about(rows)]
    if pairs == [None]:
        text += [of_all_pairs(rows, methods, pairs), _measures(rows, methods)]
    else:
        text += [of_all_pairs(rows, methods, pairs), what_lfcc_adds(rows, pairs)]
        text += [_teachers(rows, pairs), _measures(rows, methods)]
    plotted = len(pairs) > 1 and draw_pairs(path.with_suffix(".png"), rows, methods, pairs)
    path.with_suffix(".md").write_text("\n\n".join(filter(None, text)) + "\n")
    return [path.with_suffix(".md")] + ([path.with_suffix(".png")] if plotted else [])


def _about(rows: Rows) -> str:
    def all_of(values: Iterable[str]) -> str:
        return ", ".join(sorted(set(values)))

    seeds, days = len({row["seed"] for row in rows}), sorted({row["date"][:10] for row in rows})
    days = days if len(days) == 1 else [days[0], days[-1]]
    errors = "seeds" if len({row.get("pair") for row in rows}) == 1 else "pairs"
    return (
        f"{len(rows)} runs on {all_of(row['dataset'] for row in rows)}, {seeds} seed{'s' if seeds > 1 else ''}, "
        f"{all_of(format(row['epochs'], 'g') for row in rows)} epochs. Accuracies at the last epoch, mean ± standard "
        f"deviation over seeds; differences, with the same seeds, with their standard error over {errors}. "
        f"{all_of(row['hardware'] for row in rows)}, jax {all_of(row['jax'] for row in rows)}, {' to '.join(days)}."
    )


def _teachers(rows: Rows, pairs: list[tuple[str, str]]) -> str:
    accuracies = {}
    for teacher, _ in pairs:
        runs = [row for row in rows if row["pair"].startswith(f"{teacher} -> ")]
        # A teacher that was retrained has several accuracies.
        distinct = {f"{100 * row['teacher_top1']:.2f}" for row in runs if row["teacher_top1"] is not None}
        accuracies[teacher] = ", ".join(sorted(distinct))
    return table(["teacher", "top-1, %"], [[name, top1] for name, top1 in accuracies.items() if top1])


def _measures(rows: Rows, methods: list[str]) -> str:
    """Returns a table of all measures, averaged over pairs and seeds, of the methods that lack no pair."""
    pairs = {row.get("pair") for row in rows}
    methods = [m for m in methods if {row.get("pair") for row in rows if row["method"] == m} == pairs]
    measures = {
        "top-1 last, %": ("top1_last", 100, ".2f"),
        "top-1 best, %": ("top1_best", 100, ".2f"),
        "top-5, %": ("top5_last", 100, ".2f"),
        "agreement, %": ("agreement", 100, ".2f"),
        "KL to the teacher, nats": ("kl_to_teacher", 1, ".3f"),
        "calibration error, %": ("calibration_error", 100, ".2f"),
        "CKA stage 4": ("cka_stage4", 1, ".2f"),
        "ms a step": ("seconds_per_step", 1000, ".0f"),
    }
    lines = []
    for method in methods:
        runs = [row for row in rows if row["method"] == method]
        line = [method]
        for key, scale, digits in measures.values():
            values = [row[key] for row in runs if row.get(key) is not None]
            line.append(format(scale * statistics.mean(values), digits) if values else "-")
        lines.append(line)
    return table(["mean over all runs", *measures], lines)


def main() -> None:
    """Writes tables and a plot for each file on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="results.json files of experiments.compare")
    for path in parser.parse_args().results:
        written = make(path)
        print(f"{path}: wrote {' and '.join(file.name for file in written)} next to it")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
