"""Tables and pictures of the runs that `experiments.compare` made; as a command, again from `results.json` alone.

    python -m experiments.compare.report experiments/results/study_runlocal.json

writes `study_runlocal.md` and `study_runlocal.png` next to it. LFCC is compared with every other method pair by pair,
over equal seeds.
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

# What pictures call the methods; the others by their own name.
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
    "lfcc": "LFCC + KD",
    "lfcc_dist": "LFCC + DIST",
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

Rows = Sequence[Mapping[str, Any]]
Pair = tuple[str, str] | None


def markdown(
    rows: Rows, teachers: Mapping[str, Mapping[str, Any]], methods: Sequence[str], pairs: Sequence[Pair]
) -> str:
    """Returns Markdown: for several pairs a table of all (see `of_all_pairs`), then one table for each pair.

    Args:
      rows: a summary for each run, with its `method`.
      teachers: the summary of each teacher's own run, by its name as the pairs have it; "" if that is not given.
      methods: in the order in which they are shown.
      pairs: names of teacher and student; [None] for one pair.
    """
    parts = [of_all_pairs(rows, methods, pairs)] if len(pairs) > 1 else []
    for pair in pairs:
        mine = rows_of(rows, pair)
        parts.append(_of_one_pair(mine, teachers[pair[0] if pair else ""], methods))
    return "\n\n".join(parts)


def rows_of(rows: Rows, pair: Pair, method: str | None = None) -> Rows:
    """Returns the rows of a pair, and of one method if it is given."""
    mine = [row for row in rows if pair is None or row["pair"] == f"{pair[0]} -> {pair[1]}"]
    return [row for row in mine if method is None or row["method"] == method]


def draw(
    workdir: Path,
    rows: Rows,
    teachers: Mapping[str, Mapping[str, Any]],
    methods: Sequence[str],
    seeds: Sequence[int],
    pairs: Sequence[Pair],
) -> list[str]:
    """Draws accuracies and spectra, for each pair into its directory, and for several pairs all in one.

    Args:
      workdir: of the comparison.
      rows: as in `markdown`.
      teachers: as in `markdown`.
      methods: as in `markdown`.
      seeds: of the runs.
      pairs: as in `markdown`.

    Returns:
      The names of the pictures.
    """
    for pair in pairs:
        where = workdir / f"{pair[0]}_{pair[1]}" if pair else workdir
        teacher = teachers[pair[0] if pair else ""]
        curves = {_NAMES.get(m, m): [read_metrics(where / f"{m}_{seed}") for seed in seeds] for m in methods}
        first = rows_of(rows, pair)[0]
        title = f"{first['student']} taught by {teacher['student']}, {first['dataset']}"
        drawing.comparison(where / "comparison.png", curves, teacher["top1_last"], title)
        networks = {}
        for method in methods if len(methods) <= 4 else (methods[0], methods[-1]):  # more lines are not told apart
            spectra = json.loads((where / f"{method}_{seeds[0]}" / "spectra.json").read_text())
            name = _NAMES.get(method, method)
            networks |= {f"{n}, {name}" if n.startswith("student") else n: s for n, s in spectra.items()}
        pictures.spectra(where / "spectra.png", networks)
    if len(pairs) == 1:
        return ["comparison.png", "spectra.png"]
    draw_pairs(workdir / "pairs.png", rows, methods, pairs)
    return ["pairs.png", "for each pair comparison.png", "spectra.png"]


def _of_one_pair(rows: Rows, teacher: Mapping[str, Any], methods: Sequence[str]) -> str:
    references = _references(methods)
    lines = []
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        lines.append([
            method,
            spread([100 * row["top1_last"] for row in mine]),
            spread([100 * row["top1_best"] for row in mine]),
            spread([100 * row["agreement"] for row in mine if row["agreement"] is not None]),
            *("" if method == name else mean_error(_ahead(rows, name, method)) for name in references),
            f"{mine[0]['head_parameters']:,}",
            spread([1000 * row["seconds_per_step"] for row in mine]),
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
    """Returns in words what the differences between two methods show, if there are enough of them."""
    if method == rival or len(ahead) < 3:
        return None
    mean, wins = statistics.mean(ahead), sum(points > 0 for points in ahead)
    margin = scipy.stats.t.ppf(0.975, len(ahead) - 1) * statistics.stdev(ahead) / len(ahead) ** 0.5
    shown = "a difference that these seeds do not settle" if abs(mean) <= margin else "a clear difference"
    return (
        f"{method} - {rival}: {mean_error(ahead)} points (mean ± standard error), higher with {wins} of {len(ahead)} "
        f"seeds; 95 % interval {mean - margin:.2f} to {mean + margin:.2f}: {shown}"
    )


def _references(methods: Sequence[str]) -> list[str]:
    """Returns the methods that the others are compared with: those of LFCC that were run, else the last one."""
    return [name for name in ("lfcc", "lfcc_dist", "lfcc_dist_3") if name in methods] or list(methods[-1:])


def draw_pairs(path: Path, rows: Rows, methods: Sequence[str], pairs: Sequence[Pair]) -> None:
    """Draws the gain of each method over KD, or over the first method; see `experiments.compare.pictures.pairs`."""
    methods = sorted(methods, key=lambda method: method != "kd")
    accuracies = {
        f"{pair[0]} → {pair[1]}": {
            _NAMES.get(method, method): [100 * row["top1_last"] for row in rows_of(rows, pair, method)]
            for method in methods
        }
        for pair in pairs
    }
    first = rows[0]
    title = f"{first['dataset']}, {first['epochs']:g} epochs: gain over {_NAMES.get(methods[0], methods[0])}"
    drawing.pairs(path, accuracies, title)


def of_all_pairs(rows: Rows, methods: Sequence[str], pairs: Sequence[Pair]) -> str:
    """Returns Markdown: a row for each method, with its mean over the pairs, and by how much LFCC is ahead of it.

    LFCC stands there beside KD, and beside DIST with either weight where those were run; without any of them, the last
    method is in its place.

    Args:
      rows: as in `markdown`.
      methods: as in `markdown`.
      pairs: names of teacher and student.
    """
    references = _references(methods)
    lines = []
    for method in methods:
        by_pair = [[100 * row["top1_last"] for row in rows_of(rows, pair, method)] for pair in pairs]
        mean = statistics.mean(map(statistics.mean, by_pair))
        ahead = ["" if method == reference else mean_error(_ahead(rows, reference, method)) for reference in references]
        lines.append([method, *map(spread, by_pair), f"{mean:.2f}", *ahead])
    names = [f"{teacher} -> {student}" for teacher, student in pairs]
    ahead = [f"{reference} is ahead by" for reference in references]
    return table(["top-1 at the end, %", *names, "mean", *ahead], lines)


def _ahead(rows: Rows, method: str, rival: str) -> list[float]:
    """Returns by how many points a method ends above a rival, seed by seed: of each pair the mean, of one each seed."""
    found = {(row["method"], row.get("pair"), row["seed"]): 100 * row["top1_last"] for row in rows}
    by_pair: dict[str | None, list[float]] = {}
    for (name, *where), accuracy in found.items():
        if name == method and (rival, *where) in found:
            by_pair.setdefault(where[0], []).append(accuracy - found[rival, *where])
    if len(by_pair) == 1:
        return next(iter(by_pair.values()))
    return [statistics.mean(points) for points in by_pair.values()]


def mean_error(values: Sequence[float]) -> str:
    """Returns mean ± standard error of it; a dash of no values."""
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else "-"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def spread(values: Sequence[float]) -> str:
    """Returns mean ± standard deviation; a dash of no values."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def make(path: Path) -> list[Path]:
    """Writes Markdown, and for several pairs a picture, beside a file of results; returns their names.

    Raises:
      UserError: if the file holds no results.
    """
    try:
        rows = json.loads(path.read_text())
        methods = list(dict.fromkeys(row["method"] for row in rows))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no results.json of experiments.compare: {error}") from error
    if not rows:
        raise UserError(f"{path} holds no results")
    pairs = list(dict.fromkeys(tuple(row["pair"].split(" -> ")) if "pair" in row else None for row in rows))
    text = [_about(rows)]
    if pairs == [None]:
        text.append(_measures(rows, methods))
    else:
        text += [of_all_pairs(rows, methods, pairs), _teachers(rows, pairs), _measures(rows, methods)]
    if len(pairs) > 1:
        draw_pairs(path.with_suffix(".png"), rows, methods, pairs)
    path.with_suffix(".md").write_text("\n\n".join(text) + "\n")
    return [path.with_suffix(".md")] + ([path.with_suffix(".png")] if len(pairs) > 1 else [])


def _about(rows: Rows) -> str:
    def all_of(values: Iterable[str]) -> str:
        return ", ".join(sorted(set(values)))

    seeds, days = len({row["seed"] for row in rows}), sorted(row["date"][:10] for row in rows)
    return (
        f"{len(rows)} runs on {all_of(row['dataset'] for row in rows)}, {seeds} seed{'s' if seeds > 1 else ''}, "
        f"{all_of(format(row['epochs'], 'g') for row in rows)} epochs. Accuracies at the last epoch, mean ± standard "
        "deviation over seeds; differences, with the same seeds, with their standard error over pairs. "
        f"{all_of(row['hardware'] for row in rows)}, jax {all_of(row['jax'] for row in rows)}, {days[0]} to {days[-1]}."
    )


def _teachers(rows: Rows, pairs: list[tuple[str, str]]) -> str:
    taught = {}
    for teacher, _ in pairs:
        mine = [row for row in rows if row["pair"].startswith(f"{teacher} -> ")]
        # A teacher that was trained again has several accuracies.
        found = {f"{100 * row['teacher_top1']:.2f}" for row in mine if row["teacher_top1"] is not None}
        taught[teacher] = ", ".join(sorted(found))
    return table(["teacher", "top-1, %"], [[name, top1] for name, top1 in taught.items() if top1])


def _measures(rows: Rows, methods: list[str]) -> str:
    """Returns a table of what else was measured, means over all pairs and seeds."""
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
        mine = [row for row in rows if row["method"] == method]
        line = [method]
        for key, scale, digits in measures.values():
            values = [row[key] for row in mine if row.get(key) is not None]
            line.append(format(scale * statistics.mean(values), digits) if values else "-")
        lines.append(line)
    return table(["mean over all runs", *measures], lines)


def main() -> None:
    """Reads the command line, and makes each file's tables and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="files that experiments.compare wrote")
    for path in parser.parse_args().results:
        made = make(path)
        print(f"{path}: wrote {' and '.join(name.name for name in made)} next to it")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
