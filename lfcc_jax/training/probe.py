"""How good features are without training the network further: k nearest neighbors, and a linear classifier."""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lfcc_jax import data
from lfcc_jax.arguments import Between
from lfcc_jax.data import Inputs
from lfcc_jax.errors import UserError
from lfcc_jax.models import Adapter, Network
from lfcc_jax.training.config import at
from lfcc_jax.training.sharding import replicated, to_global

# As in the evaluation of DINO (Caron et al., 2021).
_TEMPERATURE = 0.07
# Inverse strengths of the penalty, of which the best on held-out training images is used.
_STRENGTHS = (0.001, 0.01, 0.1, 1.0)
_HELD_OUT = 5  # every fifth image, if there are so many


class ProbeImages(NamedTuple):
    """What the `probe` block of a config describes; see `open_probe`."""

    inputs: Inputs
    neighbors: int
    every_evaluation: bool


def open_probe(
    name: str = "",
    train_split: str = "train",
    test_split: str = "test",
    test_name: str = "",
    data_dir: str = "",
    neighbors: Annotated[int, Between(1, 1000)] = 20,
    every_evaluation: bool = False,
    *,
    inputs: Inputs,
) -> ProbeImages | None:
    """Returns the labeled images of a probe, of the same size as those of the run, or None without a name.

    Args:
      name: As in `data.open_inputs`.
      train_split: Split with the images that the neighbors and the classifier come from.
      test_split: Split that they are tested on.
      test_name: As in `data.open_inputs`.
      data_dir: As in `data.open_inputs`.
      neighbors: Number of nearest neighbors that vote.
      every_evaluation: Whether to probe at every evaluation, not only at the last one.
      inputs: Images of the run.

    Raises:
      UserError: as in `data.open_inputs`; if the images have no labels, or not the size or channels of the run's.
    """
    if not name:
        return None
    size = 0 if inputs.train.image_size == inputs.image_size and not inputs.resized else inputs.image_size
    opened = data.open_inputs(name, train_split, test_split, test_name, data_dir, image_size=size)
    if not opened.train.num_classes:
        raise UserError(f"config.probe.name must be a data set with labels, got '{name}'")
    if (opened.image_size, opened.train.image_channels) != (inputs.image_size, inputs.train.image_channels):
        raise UserError(
            f"config.probe.name must have images of {inputs.image_size} pixels and {inputs.train.image_channels} "
            f"channels, as config.data.name, got {opened.image_size} and {opened.train.image_channels}"
        )
    return ProbeImages(opened._replace(workers=inputs.workers), neighbors, every_evaluation)


class Probe:
    """Classifies labeled images by the pooled features of each network: one labeled set trains, another tests.

    ============ ====================================================================================================
    `knn`        accuracy of a vote of the nearest training images by cosine similarity, weighted by exp(similarity /
                 0.07)
    `linear`     accuracy of logistic regression on standardized features; its penalty is chosen on every fifth
                 training image
    ============ ====================================================================================================

    Those of the teachers, `teacher_knn` and `teacher_linear`, are computed once.

    Args:
      images: The labeled images.
      student: Network to judge.
      teachers: Networks to compare it with, by name; a single one is called "".
      teacher_variables: The variables of each of them.
      batch_size: Global batch size.
      mesh: Devices that batches are split over.
    """

    def __init__(
        self,
        images: ProbeImages,
        student: Network | Adapter,
        teachers: Mapping[str, Network | Adapter],
        teacher_variables: Mapping[str, Any],
        batch_size: int,
        mesh: Mesh,
    ):
        view = {"crop_fraction": student.crop_fraction, "interpolation": student.interpolation}
        inputs, self._neighbors, self._mesh = images.inputs, images.neighbors, mesh
        self._train = inputs._replace(test=inputs.train).test_batches(batch_size, **view)
        self._test = inputs.test_batches(batch_size, **view)
        self._prepare = inputs.prepare_test(**view)
        self._student = self._pooled(student)
        self._teachers, self._teacher_variables = teachers, teacher_variables
        self._of_teachers: dict[str, float] | None = None

    def __call__(self, variables: Any) -> dict[str, float]:
        """Returns the accuracies of the student with these variables, and those of the teachers."""
        if self._of_teachers is None:
            self._of_teachers = {
                at(f"teacher_{key}", name): value
                for name, teacher in self._teachers.items()
                for key, value in self._judge(self._pooled(teacher), self._teacher_variables[name]).items()
            }
        return self._judge(self._student, variables) | self._of_teachers

    def _pooled(self, network: Network | Adapter) -> Callable[[Any, jax.Array], jax.Array]:
        def pooled(variables: Any, images: jax.Array) -> jax.Array:
            return network.apply(variables, self._prepare(images), train=False).features["pooled"].astype("float32")

        return jax.jit(pooled, out_shardings=replicated(self._mesh))

    def _judge(self, pooled: Callable[[Any, jax.Array], jax.Array], variables: Any) -> dict[str, float]:
        (x, y), (test_x, test_y) = (self._read(batches, pooled, variables) for batches in (self._train, self._test))
        return {
            "knn": float(np.mean(nearest_neighbors(x, y, test_x, self._neighbors) == test_y)),
            "linear": float(np.mean(linear(x, y, test_x) == test_y)),
        }

    def _read(
        self, batches: Callable[[], Iterable[Any]], pooled: Callable[[Any, jax.Array], jax.Array], variables: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        features, labels = [], []
        for batch in batches():
            on_devices = to_global(batch, self._mesh)
            known = {key: jax.device_put(on_devices[key], replicated(self._mesh)) for key in ("label", "mask")}
            mask = np.asarray(known["mask"])
            features.append(np.asarray(pooled(variables, on_devices["image"]))[mask])
            labels.append(np.asarray(known["label"])[mask])
        return np.concatenate(features), np.concatenate(labels)


def nearest_neighbors(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, neighbors: int) -> np.ndarray:
    """Returns the classes that the nearest images vote for; see `Probe`.

    Args:
      x: Features of the training images, `[train, channels]`.
      y: Their labels, `[train]`.
      test_x: Features of the test images, `[test, channels]`.
      neighbors: Number of images that vote; all if there are fewer.

    Returns:
      `[test]`.
    """
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(
        min(neighbors, len(x)),
        metric="cosine",
        algorithm="brute",
        weights=lambda distances: np.exp(-distances / _TEMPERATURE),
    )
    return model.fit(x, y).predict(test_x)


def linear(x: np.ndarray, y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """Returns the classes that logistic regression predicts; see `Probe`.

    Args:
      x: Features of the training images, `[train, channels]`.
      y: Their labels, `[train]`.
      test_x: Features of the test images, `[test, channels]`.

    Returns:
      `[test]`.
    """
    from sklearn.linear_model import LogisticRegression

    if len(set(y.tolist())) == 1:
        return np.full(len(test_x), y[0])
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, test_x = (x - mean) / std, (test_x - mean) / std

    def fit(strength: float, rows: np.ndarray | slice) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(x[rows], y[rows])

    held_out = np.arange(len(x)) % _HELD_OUT == _HELD_OUT - 1
    best = _STRENGTHS[-1]
    if len(set(y[~held_out].tolist())) > 1 and held_out.any():
        best = max(_STRENGTHS, key=lambda strength: fit(strength, ~held_out).score(x[held_out], y[held_out]))
    return fit(best, slice(None)).predict(test_x)
