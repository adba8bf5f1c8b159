import numpy as np
import pytest

from lfcc_jax.errors import UserError
from lfcc_jax.training import schedules

TIME = {"steps_per_epoch": 10, "total_steps": 100, "where": "config.here"}


def values(spec, *steps):
    schedule = schedules.create(spec, **TIME)
    return [float(schedule(step)) for step in steps]


def test_a_number_stays_what_it_is():
    assert values(0.5, 0, 50, 100) == [0.5, 0.5, 0.5]
    assert values({"name": "constant", "value": 0.5}, 0, 100) == [0.5, 0.5]


def test_cosine_is_timms_with_the_warm_up_laid_over_its_start():
    spec = {"name": "cosine", "peak": 1.0, "final": 0.2, "warmup_epochs": 2, "warmup_start": 0.1}
    t = np.arange(101)
    expected = np.where(t < 20, 0.1 + 0.9 * t / 20, 0.2 + 0.4 * (1 + np.cos(np.pi * t / 100)))
    np.testing.assert_allclose(values(spec, *t), expected, rtol=1e-5)


def test_step_falls_by_its_factor_after_each_stretch():
    spec = {"name": "step", "peak": 1.0, "every_epochs": 3, "factor": 0.1}
    np.testing.assert_allclose(values(spec, 0, 29, 30, 59, 60, 90), [1, 1, 0.1, 0.1, 0.01, 0.001], rtol=1e-5)


def test_linear_goes_from_start_to_end_and_stays():
    spec = {"name": "linear", "start": 0.0, "end": 2.0, "epochs": 5}
    np.testing.assert_allclose(values(spec, 0, 25, 50, 100), [0, 1, 2, 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "cosin", "peak": 1.0}, "config.here: unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"name": "cosine", "peek": 1.0}, "unknown key 'peek'; did you mean 'peak'"),
        ({"name": "cosine"}, "missing peak"),
        ({"peak": 1.0}, "unknown schedule 'None'"),
    ],
)
def test_what_cannot_work_is_said(spec, message):
    with pytest.raises(UserError, match=message):
        schedules.create(spec, **TIME)
