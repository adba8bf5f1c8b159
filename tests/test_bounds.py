"""Every number in a config has bounds."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest

from lfcc_jax import data, methods
from lfcc_jax.arguments import Bound, Positive, check_value, signature
from lfcc_jax.data import augmentation
from lfcc_jax.data.augmentation.policy import Policy
from lfcc_jax.models.registry import VARIANTS
from lfcc_jax.training import optimizer, schedules
from lfcc_jax.training.config import RunConfig
from lfcc_jax.training.sharding import create_mesh

READERS = {
    "config": RunConfig,
    "config.mesh": create_mesh,
    "config.data": data.open_inputs,
    "config.data.augmentation": augmentation.create,
    "config.data.augmentation.randaugment": Policy,
    "config.optimizer": optimizer.create,
    **{f"config.optimizer ({name})": function for name, function in optimizer.OPTIMIZERS.items()},
    "a schedule": schedules.create,
    **{f"schedule {name}": function for name, function in schedules.SCHEDULES.items()},
    **{f"config.losses.{name}": method for name, method in methods.METHODS.items()},
    **{f"network {variant.network.__name__}": variant.network for variant in VARIANTS.values()},
}
# Computed by the run, not config values.
SET_BY_RUN = {"steps_per_epoch", "total_steps"}


def unbounded(annotation: Any, bounded: bool = False) -> bool:
    """Returns whether an annotation admits a number without bounds."""
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if kind is Annotated:
        # A bound on a tuple does not bound its elements.
        of_number = (get_origin(parts[0]) or parts[0]) is not tuple
        return unbounded(parts[0], of_number and any(isinstance(part, Bound) for part in parts[1:]))
    if kind in (Union, UnionType, tuple):
        return any(unbounded(part, bounded) for part in parts if part is not ...) or (kind is tuple and not parts)
    return kind in (int, float, Any, inspect.Parameter.empty) and not bounded


def parameters(function: Callable) -> Iterator[tuple[str, Any]]:
    for name, parameter in signature(function).items():
        if name not in SET_BY_RUN:
            yield name, parameter.annotation


@pytest.mark.parametrize("place", READERS)
def test_every_number_of_a_config_block_has_bounds(place):
    assert [name for name, annotation in parameters(READERS[place]) if unbounded(annotation)] == []


def test_control_unbounded_finds_numbers_without_bounds():
    @dataclasses.dataclass
    class Block:
        a: int
        b: float | None
        c: tuple[int, ...]
        d: tuple
        e: Any
        f: Annotated[tuple[float, ...], Positive]
        g: Annotated[int, Positive]
        h: Annotated[tuple[Annotated[int, Positive], ...], Positive]
        i: str
        j: bool

    assert [name for name, annotation in parameters(Block) if unbounded(annotation)] == ["a", "b", "c", "d", "e", "f"]


def test_control_readers_include_networks_methods_and_schedules():
    assert {"network ResNet", "network ViT", "config.losses.lfcc", "schedule cosine"} <= READERS.keys()


@pytest.mark.parametrize("place", [place for place in READERS if place.startswith(("config.losses", "network"))])
def test_defaults_of_methods_and_networks_are_within_their_own_bounds(place):
    for name, parameter in signature(READERS[place]).items():
        if parameter.default is not parameter.empty:
            check_value(parameter.default, parameter.annotation, f"{place}.{name}")
