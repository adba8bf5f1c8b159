"""Makes the tables and pictures of a comparison again, from its `results.json` alone.

    python -m experiments.tables experiments/results/study_runlocal.json

writes `study_runlocal.md` and `study_runlocal.png` beside it. LFCC is compared with each other method pair by pair,
with the same seeds.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from experiments import comparison
from lfcc_jax.errors import UserError
from lfcc_jax.training.report import table


def main() -> None:
    """Reads the command line, and makes each file's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="files that experiments.compare wrote")
    for path in parser.parse_args().results:
        made = make(path)
        print(f"{path}: made {' and '.join(name.name for name in made)} beside it")


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
        text += [comparison.of_all_pairs(rows, methods, pairs), _teachers(rows, pairs), _measures(rows, methods)]
    if len(pairs) > 1:
        comparison.draw_pairs(path.with_suffix(".png"), rows, methods, pairs)
    path.with_suffix(".md").write_text("\n\n".join(text) + "\n")
    return [path.with_suffix(".md")] + ([path.with_suffix(".png")] if len(pairs) > 1 else [])


def _about(rows: comparison.Rows) -> str:
    def all_of(values: Iterable[str]) -> str:
        return ", ".join(sorted(set(values)))

    seeds, days = len({row["seed"] for row in rows}), sorted(row["date"][:10] for row in rows)
    return (
        f"{len(rows)} runs on {all_of(row['dataset'] for row in rows)}, {seeds} seed{'s' if seeds > 1 else ''}, "
        f"{all_of(format(row['epochs'], 'g') for row in rows)} epochs. Accuracies at the last epoch, mean ± standard "
        "deviation over seeds; differences, with the same seeds, with their standard error over pairs. "
        f"{all_of(row['hardware'] for row in rows)}, jax {all_of(row['jax'] for row in rows)}, {days[0]} to {days[-1]}."
    )


def _teachers(rows: comparison.Rows, pairs: list[tuple[str, str]]) -> str:
    taught = {}
    for teacher, _ in pairs:
        mine = [row for row in rows if row["pair"].startswith(f"{teacher} -> ")]
        # A teacher that was trained again has several accuracies.
        found = {f"{100 * row['teacher_top1']:.2f}" for row in mine if row["teacher_top1"] is not None}
        taught[teacher] = ", ".join(sorted(found))
    return table(["teacher", "top-1, %"], [[name, top1] for name, top1 in taught.items() if top1])


def _measures(rows: comparison.Rows, methods: list[str]) -> str:
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


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
