import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfcc_jax.errors import UserError
from lfcc_jax.training import schedules

TIME = {"steps_per_epoch": 10, "total_steps": 100, "where": "config.here"}


def values(spec, *steps):
    schedule = schedules.create(spec, **TIME)
    return [float(schedule(step)) for step in steps]


def compiled(*cases):
    """Returns the values of schedules as in a training step: jitted, with int32 steps.

    Args:
      cases: Spec, steps, steps per epoch and total steps of each schedule.
    """
    steps = [np.asarray(steps, np.int32) for _, steps, _, _ in cases]
    created = [
        schedules.create(spec, steps_per_epoch=size, total_steps=total, where="here") for spec, _, size, total in cases
    ]
    values = jax.jit(lambda steps: [schedule(at) for schedule, at in zip(created, steps, strict=True)])(steps)
    return [np.asarray(value) for value in values]


def test_create_returns_a_constant_schedule_for_a_number():
    assert values(0.5, 0, 50, 100) == [0.5, 0.5, 0.5]
    assert values({"name": "constant", "value": 0.5}, 0, 100) == [0.5, 0.5]


def test_cosine_matches_timm_with_the_warm_up_replacing_its_start():
    spec = {"name": "cosine", "peak": 1.0, "final": 0.2, "warmup_epochs": 2, "warmup_start": 0.1}
    t = np.arange(101)
    expected = np.where(t < 20, 0.1 + 0.9 * t / 20, 0.2 + 0.4 * (1 + np.cos(np.pi * t / 100)))
    np.testing.assert_allclose(values(spec, *t), expected, rtol=1e-5)


# Durations d for which step * (1 / d) in float32 is below the integer at some multiples of d.
SIZES = (330, 975, 1001, 3900, 7800, 30030)


def test_compiled_step_schedules_match_integer_arithmetic():
    cases, expected = [], []
    for size, every, by_epoch in itertools.product((*SIZES, 107, 159), (1, 8, 30), (False, True)):
        spec = {"name": "step", "peak": 1.0, "every_epochs": every, "factor": 0.5, "by_epoch": by_epoch}
        steps = np.unique([k * size + d for k in range(91) for d in (-1, 0, 1)])[1:]
        cases.append((spec, steps, size, 90 * size))
        expected.append(np.exp2(-(steps // size // every).astype(np.float32)))
    jax.tree.map(np.testing.assert_array_equal, compiled(*cases), expected)


def test_control_float32_division_puts_some_steps_into_the_wrong_epoch():
    late = jax.jit(lambda step: jax.numpy.floor(step / 30030.0))
    assert [float(late(np.int32(n * 30030))) for n in range(1, 91)] != list(range(1, 91))


@given(
    size=st.integers(1, 40_000),
    epochs=st.integers(1, 300),
    warmup=st.floats(0, 20),
    by_epoch=st.booleans(),
    part=st.floats(0, 1),
)
@settings(max_examples=10, deadline=None)
def test_compiled_schedules_agree_with_float64(size, epochs, warmup, by_epoch, part):
    total, warmup = size * epochs, min(warmup, epochs)
    length = round(warmup * size)
    steps = np.clip([0, length - 1, length, length + 1, round(part * total), size * (epochs // 2), total], 0, total)
    at = steps // size * size if by_epoch else steps

    def warmed(curve):
        return np.where(at < length, 0.1 + 0.9 * at / max(length, 1), curve)

    shape = {"peak": 1.0, "warmup_epochs": warmup, "warmup_start": 0.1, "by_epoch": by_epoch}
    specs = (
        {"name": "cosine", "final": 0.25, **shape},
        {"name": "step", "every_epochs": 2, "factor": 0.5, **shape},
        {"name": "linear", "start": 1.0, "end": 0.0, "epochs": warmup},
    )
    cosine, step, linear = compiled(*((spec, steps, size, total) for spec in specs))
    np.testing.assert_allclose(cosine, warmed(0.25 + 0.375 * (1 + np.cos(np.pi * at / total))), atol=2e-6)
    np.testing.assert_allclose(step, warmed(0.5 ** np.minimum(at // (2 * size), 126)), atol=1e-6)
    np.testing.assert_allclose(linear, 1 - np.minimum(steps / max(length, 1), 1), atol=1e-6)
    assert (linear[steps >= max(length, 1)] == 0).all()


def test_create_rounds_durations_to_whole_steps():
    spec = {"name": "step", "peak": 1.0, "every_epochs": 0.32, "factor": 0.5, "warmup_epochs": 0.11}
    (result,) = compiled((spec, [2, 3, 9, 10], 30, 300))
    assert result.tolist() == pytest.approx([2 / 3, 1, 1, 0.5])


def test_step_is_multiplied_by_its_factor_after_each_period():
    spec = {"name": "step", "peak": 1.0, "every_epochs": 3, "factor": 0.1}
    np.testing.assert_allclose(values(spec, 0, 29, 30, 59, 60, 90), [1, 1, 0.1, 0.1, 0.01, 0.001], rtol=1e-5)


def test_linear_changes_from_start_to_end_and_stays_there():
    spec = {"name": "linear", "start": 0.0, "end": 2.0, "epochs": 5}
    np.testing.assert_allclose(values(spec, 0, 25, 50, 100), [0, 1, 2, 2], rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "step"])
def test_schedules_never_reach_a_duration_beyond_int32(name):
    spec = {"linear": {"start": 1.0, "end": 0.0, "epochs": 1e6}, "step": {"peak": 1.0, "every_epochs": 1e6}}[name]
    (result,) = compiled(({"name": name, **spec}, [10**6], 30030, 2**31 - 1))
    assert result == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "cosin", "peak": 1.0}, "config.here: unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"name": ["cosine"], "peak": 1.0}, "config.here: unknown schedule"),
        ({"name": "cosine", "peek": 1.0}, "config.here: unknown key 'peek'; did you mean 'peak'"),
        ({"name": "cosine"}, "missing peak"),
        ({"peak": 1.0}, "unknown schedule 'None'"),
        ({"name": "cosine", "peak": 1.0, "steps_per_epoch": 3}, "config.here.steps_per_epoch is set by the run"),
        ({"name": "cosine", "peak": 1.0, "total_steps": 3}, "config.here.total_steps is set by the run"),
        ({"name": "cosine", "peak": -1}, "config.here.peak must be a non-negative number, got -1"),
        (
            {"name": "cosine", "peak": 1.0, "warmup_epochs": 11},
            "warmup_epochs must be at most the .* 10 epochs, got 11",
        ),
        (
            {"name": "step", "peak": 1.0, "every_epochs": 0},
            "every_epochs must be a positive number up to 1000000, got 0",
        ),
        (
            {"name": "step", "peak": 1.0, "every_epochs": 1, "factor": -1},
            r"factor must be a number in \[0, 1\], got -1",
        ),
        (
            {"name": "linear", "start": 0, "end": float("inf"), "epochs": 1},
            "end must be a non-negative number, got inf",
        ),
        (True, "config.here must be a non-negative number or a block of settings, got True"),
        (float("nan"), "got nan"),
        (-1, "config.here must be a non-negative number or a block of settings, got -1"),
    ],
)
def test_schedules_reject_invalid_values(spec, message):
    with pytest.raises(UserError, match=message):
        schedules.create(spec, **TIME)


def test_unknown_key_of_a_schedule_does_not_list_keys_set_by_the_run():
    with pytest.raises(UserError) as error:
        schedules.create({"name": "linear", "begin": 1.0}, **TIME)
    assert str(error.value).endswith("Known: end, epochs, name, start.")
