"""Plots the spectra of feature maps of trained networks, and their similarity between networks.

    python -m experiments.plot.features --data=cifar100 runs/study/teacher_swin_pico_32 runs/study/teacher_resnet18_32

Each argument is the work directory of a run. Writes to `--out`, with all numbers in `features.json`:

- `spectra.png`: mean power of each spatial frequency, by stage;
- `energy.png`: fraction of the variance between images that each grid of a low-pass filter keeps;
- `cka.png`: unbiased linear CKA between all pairs of stages of all pairs of networks, of the unfiltered maps ("as they
  are") and of one frequency band at a time. A band is named by its half waves across the map, the maximum over both
  axes: 0 is the mean, 0 and 1 fit on a grid of 2, 0 to 3 on a grid of 4;
- `bands.png`: mean CKA of equal stages by band, over the stages whose maps have every band.
"""

import argparse
import itertools
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from lfcc_jax import compact, data, low_pass, models
from lfcc_jax.cka import linear_cka
from lfcc_jax.data.device_crop import central_crop
from lfcc_jax.errors import UserError
from lfcc_jax.spectrum import radial_spectrum
from lfcc_jax.training import pictures
from lfcc_jax.training.report import table

Maps = dict[str, jax.Array]
GRIDS = (1, 2, 4)
BANDS = ("0", "1", "2 to 3", "4 to 7")
_EDGES = ((0, 1), (1, 2), (2, 4), (4, 8))


def main() -> None:
    """Writes the plots and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", help="work directories of finished runs, at least two")
    parser.add_argument("--data", default="digits", help="name or directory of the data set (default: %(default)s)")
    parser.add_argument("--data-dir", default="", help="directory of prepared data sets (default: that of TFDS)")
    parser.add_argument("--split", default="test", help="split of the data set (default: %(default)s)")
    parser.add_argument(
        "--count", type=int, default=1000, help="number of images, spread over the split (default: %(default)s)"
    )
    parser.add_argument("--kind", default="box", help="kind of the low-pass filter (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/features"), help="output directory (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if len(set(arguments.workdirs)) < 2:
        raise UserError(f"workdirs must name two runs or more, got {' '.join(arguments.workdirs)}")
    source = data.open_source(arguments.data, arguments.split, arguments.data_dir)
    indices = range(0, len(source.examples), max(1, len(source.examples) // arguments.count))
    images = np.stack([source.examples[i]["image"] for i in indices])
    maps = {name: features(workdir, images) for name, workdir in _names(arguments.workdirs).items()}

    arguments.out.mkdir(parents=True, exist_ok=True)
    spectra = {name: {stage: _spectrum(x) for stage, x in stages.items()} for name, stages in maps.items()}
    pictures.spectra(arguments.out / "spectra.png", spectra)
    energy = {
        name: {stage: energy_kept(x, arguments.kind) for stage, x in stages.items()} for name, stages in maps.items()
    }
    _draw_energy(arguments.out / "energy.png", energy)
    cka = alignments(maps)
    _draw_cka(arguments.out / "cka.png", cka, list(next(iter(maps.values()))))
    _draw_bands(arguments.out / "bands.png", cka)
    report = {"images": len(images), "kind": arguments.kind, "energy": energy, "cka": cka}
    (arguments.out / "features.json").write_text(json.dumps(report, indent=2) + "\n")
    means = {pair: means_of_equal_stages(by_band) for pair, by_band in cka.items()}
    columns = [band for band in ("as they are", *BANDS) if any(band in mean for mean in means.values())]
    rows = [[p, *(f"{m[c]:.2f}" if c in m else "-" for c in columns)] for p, m in means.items()]
    print(f"linear CKA of equal stages, mean over the stages with every band; {len(images)} images\n")
    print(table(["networks", *columns], rows))
    print(f"\nspectra.png, energy.png, cka.png, bands.png and features.json written to {arguments.out}")


def _names(workdirs: list[str]) -> dict[str, str]:
    """Returns work directories by network name, or by relative path if two networks have the same name."""
    names = [models.describe(workdir)["name"] for workdir in workdirs]
    if len(set(names)) < len(names):
        paths = [Path(workdir).resolve() for workdir in workdirs]
        names = [str(path.relative_to(os.path.commonpath(paths))) for path in paths]
    return dict(zip(names, workdirs, strict=True))


def features(workdir: str, images: np.ndarray) -> Maps:
    """Returns a trained network's feature maps of `images` `[count, height, width, channels]`, by stage."""
    network, variables = models.load(workdir)

    @jax.jit
    def apply(batch: jax.Array) -> Maps:
        x = batch.astype(jnp.float32) / 255
        if batch.shape[1:3] != (network.image_size,) * 2:
            x = central_crop(batch, network.image_size, crop=network.crop_fraction, interpolation=network.interpolation)
        features = network.apply(variables, x, train=False).features
        return {stage: x for stage, x in features.items() if x.ndim == 4}

    parts = [apply(part) for part in np.array_split(images, max(1, len(images) // 100))]
    return {stage: jnp.concatenate([part[stage] for part in parts]) for stage in parts[0]}


def energy_kept(x: jax.Array, kind: str) -> dict[str, float]:
    """Returns the fraction of the variance between images that each grid keeps, for the grids that fit.

    The mean over images is subtracted first. Each cell of a grid counts as many times as it covers points.
    """
    x = x - x.mean(axis=0, keepdims=True)
    points = x.shape[1] * x.shape[2]
    return {
        str(grid): float(jnp.sum(jnp.square(compact(x, kind, grid))) * (points / grid**2) / jnp.sum(jnp.square(x)))
        for grid in GRIDS
        if grid <= min(x.shape[1:3])
    }


def alignments(maps: dict[str, Maps]) -> dict[str, dict[str, list[list[float | None]]]]:
    """Returns CKA `[stages of the first][stages of the second]` of all pairs of networks, by frequency band.

    None where either map is too small for the band.
    """
    cka = jax.jit(linear_cka)

    def align(x: jax.Array | None, y: jax.Array | None) -> float | None:
        return None if x is None or y is None else float(cka(x, y))

    parts = {name: {stage: _bands(x) for stage, x in stages.items()} for name, stages in maps.items()}
    return {
        f"{first} - {second}": {
            label: [[align(x[label], y[label]) for y in parts[second].values()] for x in parts[first].values()]
            for label in ("as they are", *BANDS)
        }
        for first, second in itertools.combinations(maps, 2)
    }


def _bands(x: jax.Array) -> dict[str, jax.Array | None]:
    """Returns a square map and its frequency bands, all at full size."""
    side = min(x.shape[1:3])
    lower = {g: low_pass(x, "dct", (g - 0.5) / (2 * side)) if g < side else x for g in (1, *(h for _, h in _EDGES))}
    bands = {
        label: None if low >= side else lower[high] - (lower[low] if low else 0)
        for label, (low, high) in zip(BANDS, _EDGES, strict=True)
    }
    return {"as they are": x, **bands}


def means_of_equal_stages(by_band: dict[str, list[list[float | None]]]) -> dict[str, float]:
    """Returns the mean CKA of equal stages by band, over the stages that have every band that any stage has."""
    bands = {band: [row[i] for i, row in enumerate(values)] for band, values in by_band.items()}
    bands = {band: values for band, values in bands.items() if any(value is not None for value in values)}
    complete = [all(value is not None for value in row) for row in zip(*bands.values(), strict=True)]
    return {band: float(np.mean(np.array(values, float)[complete])) for band, values in bands.items()}


def _spectrum(x: jax.Array) -> dict[str, list[float]]:
    frequencies, power = radial_spectrum(x)
    return {"cycles_per_image": (frequencies * min(x.shape[1:3])).tolist(), "power": np.asarray(power).tolist()}


def _draw_energy(path: Path, energy: dict[str, dict[str, dict[str, float]]]) -> None:
    stages = list(next(iter(energy.values())))
    figure = matplotlib.figure.Figure(figsize=(3 * len(stages), 3.4), layout="constrained")
    axes = figure.subplots(1, len(stages), sharey=True)
    for axis, stage in zip(axes, stages, strict=True):
        for (name, stages_kept), color in zip(energy.items(), itertools.cycle(pictures.COLORS), strict=False):
            kept = stages_kept[stage]
            axis.plot(list(kept), [100 * v for v in kept.values()], marker=".", color=color, label=name)
        axis.set(title=stage, xlabel="grid", ylim=(0, 104))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("variance between images kept, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _draw_bands(path: Path, cka: dict[str, dict[str, list[list[float | None]]]]) -> None:
    figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for (pair, by_band), color in zip(cka.items(), itertools.cycle(pictures.COLORS), strict=False):
        means = means_of_equal_stages({band: by_band[band] for band in BANDS})
        axis.plot(list(means), list(means.values()), marker="o", color=color, label=pair)
    axis.set(
        title="How alike two networks are, by frequency",
        xlabel="frequency, half waves across the map",
        ylabel="linear CKA, mean over equal stages",
        ylim=(0, 1),
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def _draw_cka(path: Path, cka: dict[str, dict[str, list[list[float]]]], stages: list[str]) -> None:
    columns = [
        band
        for band in ("as they are", *BANDS)
        if not all(np.isnan(np.array(by_band[band], float)).all() for by_band in cka.values())
    ]
    figure = matplotlib.figure.Figure(figsize=(2.3 * len(columns) + 0.8, 2.3 * len(cka) + 0.4), layout="constrained")
    axes = figure.subplots(len(cka), len(columns), squeeze=False)
    numbers = [stage.removeprefix("stage") for stage in stages]
    for row, (pair, by_label) in zip(axes, cka.items(), strict=True):
        for axis, label in zip(row, columns, strict=True):
            values = by_label[label]
            image = axis.imshow(np.asarray(values, float), vmin=0, vmax=1, cmap="viridis", origin="lower")
            axis.set(xticks=range(len(stages)), yticks=range(len(stages)), xticklabels=numbers, yticklabels=numbers)
            for (i, j), value in np.ndenumerate(np.asarray(values, float)):
                text = "" if np.isnan(value) else f"{value:.2f}"
                axis.text(j, i, text, ha="center", va="center", fontsize=7, color="w" if value < 0.6 else "k")
            if row[0] is axes[0, 0]:
                half_waves = f"{label} half wave{'s' if label != '1' else ''}"
                axis.set_title(label if label not in BANDS else half_waves, fontsize=9)
        first, second = pair.split(" - ")
        row[0].set_ylabel(f"stage of {first}", fontsize=7)
        for axis in row:
            axis.set_xlabel(f"stage of {second}", fontsize=7)
    figure.colorbar(image, ax=axes, shrink=0.6, label="linear CKA")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
