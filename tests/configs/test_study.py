"""The study's config: every run of it is one that assembles, and what varies is what its name says."""

import pytest

from configs import study
from lfcc_jax.data import Images
from lfcc_jax.errors import UserError
from lfcc_jax.training.config import as_dict, read_config
from lfcc_jax.training.distillation import build

MODES = ["", "runlocal"]


def run_of(*argument):
    return read_config(study.get_config(",".join(filter(None, argument))))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["teacher", *study.METHODS, *study.ABLATION])
def test_every_method_is_a_config(mode, method):
    run = run_of(f"method={method}", mode)
    assert build(run, Images(100, 16 if mode else 32, 3, 9000)).losses


@pytest.mark.parametrize("mode", MODES)
def test_there_is_a_pair_for_each_way_between_the_kinds_of_network(mode):
    kinds = {"resnet": "CNN", "mobilenet": "CNN", "vit": "Transformer", "swin": "Transformer"}

    def kind(name):
        return next((k for start, k in kinds.items() if name.startswith(start)), "MLP")

    pairs = study.get_pairs(mode)
    assert len({(kind(teacher), kind(student)) for teacher, student in pairs}) == 6
    assert all(kind(teacher) != kind(student) for teacher, student in pairs)
    for teacher, student in pairs:
        run = run_of(f"teacher={teacher},student={student}", mode)
        assert (run.teacher["name"], run.student["name"]) == (teacher, student)
        distillation = build(run, Images(100, 16 if mode else 32, 3, 9000))
        sizes = [sum(x.size for x in _leaves(network)) for network in (distillation.teacher, distillation.student)]
        assert sizes[0] > 1.5 * sizes[1]


def _leaves(network):
    import jax

    return jax.tree.leaves(network.variable_shapes()["params"])


def test_a_variant_changes_what_it_says_and_nothing_else():
    base = as_dict(study.get_config("method=lfcc"))
    for name, changed in study._VARIANTS.items():
        variant = as_dict(study.get_config(f"method={name}"))
        differ = {
            loss: {k: v for k, v in block.items() if v != base["losses"].get(loss, {}).get(k)}
            for loss, block in variant["losses"].items()
        }
        assert {loss: block for loss, block in differ.items() if block} == changed, name
        assert {k: v for k, v in variant.items() if k != "losses"} == {k: v for k, v in base.items() if k != "losses"}


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'lfcc_gaussian'"):
        study.get_config("method=lfcc_gausian")
