"""The study's config: all runs build, and variants change only the listed settings."""

import jax
import pytest

from configs import study
from lfcc_jax import models
from lfcc_jax.data import Images
from lfcc_jax.errors import UserError
from lfcc_jax.training.config import as_dict, read_config
from lfcc_jax.training.distillation import build

MODES = ["", "runlocal"]


def run_of(*argument):
    return read_config(study.get_config(",".join(filter(None, argument))))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["teacher", *study.METHODS, *study.ABLATION])
def test_config_of_every_method_builds(mode, method):
    run = run_of(f"method={method}", mode)
    assert build(run, Images(100, 16 if mode else 32, 3, 9000)).losses


@pytest.mark.parametrize("mode", MODES)
def test_pairs_of_the_study_cover_each_direction_between_families(mode):
    pairs = study.get_pairs(mode)
    assert len({(models.family(teacher), models.family(student)) for teacher, student in pairs}) == 6
    assert all(models.family(teacher) != models.family(student) for teacher, student in pairs)
    for teacher, student in pairs:
        run = run_of(f"teacher={teacher},student={student}", mode)
        assert (run.teacher["name"], run.student["name"]) == (teacher, student)
        distillation = build(run, Images(100, 16 if mode else 32, 3, 9000))
        sizes = [
            sum(x.size for x in jax.tree.leaves(network.variable_shapes()["params"]))
            for network in (distillation.teachers.get(""), distillation.student)
        ]
        assert sizes[0] > 1.5 * sizes[1]


def test_variants_of_lfcc_change_only_the_listed_settings():
    base = as_dict(study.get_config("method=lfcc"))
    for name, changed in study._VARIANTS.items():
        variant = as_dict(study.get_config(f"method={name}"))
        differ = {
            loss: {k: v for k, v in block.items() if v != base["losses"].get(loss, {}).get(k)}
            for loss, block in variant["losses"].items()
        }
        assert {loss: block for loss, block in differ.items() if block} == changed, name
        assert {k: v for k, v in variant.items() if k != "losses"} == {k: v for k, v in base.items() if k != "losses"}


def test_study_config_suggests_the_nearest_method():
    with pytest.raises(UserError, match="did you mean 'lfcc_gaussian'"):
        study.get_config("method=lfcc_gausian")
