"""Data sets of Hugging Face's `datasets`: on disk, or from the Hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lfcc_jax import storage
from lfcc_jax.data.source import Source
from lfcc_jax.data.splits import Table, classes_of, select
from lfcc_jax.errors import UserError


class _Rows(Sequence):
    """Random access to rows of a data set, with images as their bytes."""

    def __init__(self, dataset: Any, image: str, rows: np.ndarray, labels: np.ndarray | None):
        self._dataset, self._image, self._rows, self._labels = dataset, image, rows, labels

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._dataset[int(self._rows[index])][self._image]
        if image is None:
            raise UserError("the image is missing")
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        return {"image": content} | ({} if self._labels is None else {"label": self._labels[index]})


def open_hugging_face(name: str, wanted: Sequence[str], labels: bool, skip_unreadable: bool) -> list[Source]:
    """Returns some splits of a data set with a column of images.

    Args:
      name: Directory written by `save_to_disk`, or whatever `datasets.load_dataset` takes: a name on the Hub, or a
        directory of Parquet files; `NAME:CONFIG` for one of several configs.
      wanted: The splits; each as in `splits.select`.
      labels: Whether to use the labels, the column `label` or the only `ClassLabel`.
      skip_unreadable: As in `Source`.

    Raises:
      UserError: if `datasets` is not installed, the data set cannot be loaded, it has no column or several columns of
        images, or its labels are invalid.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError('data sets of Hugging Face need `datasets`: pip install ".[hf]"') from error
    where = f"data set 'hf:{name}'"
    path = Path(name).expanduser()
    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            loaded = datasets.load_from_disk(str(path))
        else:
            repository, _, config = name.partition(":")
            loaded = datasets.load_dataset(str(path) if path.exists() else repository, config or None)
    except Exception as error:  # it raises errors of many libraries
        raise UserError(f"{where} cannot be loaded: {type(error).__name__}: {storage.one_line(error)}") from error
    loaded = loaded if isinstance(loaded, dict) else {"all": loaded}
    features = next(iter(loaded.values())).features
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images or ("image" not in images and len(images) > 1):
        several = f"several columns of images, {', '.join(images)}; rename one to `image`"
        none = f"no column of images; columns: {', '.join(features)}"
        raise UserError(f"{where} has {several if images else none}")
    image = "image" if "image" in images else images[0]
    rows = datasets.concatenate_datasets([part.select_columns(list(features)) for part in loaded.values()])
    numbers, count, names = None, 0, ()
    classes = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    label = "label" if "label" in features else classes[0] if len(classes) == 1 else None
    if labels and label:
        values = rows[label][:]
        if label in classes:
            count, names = features[label].num_classes, tuple(features[label].names)
            numbers = np.array([-1 if value is None else value for value in values], np.int32)
        else:
            numbers, count, names = classes_of(values, f"{where}, column '{label}'")
        if count < 2:
            raise UserError(f"{where}: there is only one class; set config.data.labels=False to train without labels")
    lengths = [len(part) for part in loaded.values()]
    table = Table(
        [str(i) for length in lengths for i in range(length)],
        numbers,
        list(loaded),
        np.repeat(range(len(loaded)), lengths),
    )
    rows = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    sources = []
    for split in wanted:
        chosen = select(split, table, where)
        values = None if numbers is None else numbers[chosen]
        if values is not None and (values < 0).any():
            raise UserError(f"{where}: image {int(chosen[values.argmin()])} of split '{split}' has no label")
        about = {"upright": True, "skip_unreadable": skip_unreadable}
        sources.append(Source(_Rows(rows, image, chosen, values), count, 0, 3, f"hf:{name}", split, names, **about))
    return sources
