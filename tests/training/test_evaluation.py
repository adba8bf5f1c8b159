"""Evaluation: metrics against NumPy in float64, cached teacher predictions, and collectives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax import models
from lfcc_jax.cka import cka_from_terms, hsic_terms
from lfcc_jax.training import evaluation
from lfcc_jax.training.evaluation import Evaluator, make_comparison_step, make_eval_step
from lfcc_jax.training.parts import Parts
from lfcc_jax.training.sharding import batch_sharding, create_mesh

SMALL = {"mixer_pico": {"width": 12}, "vit_pico": {"width": 12}}


def network(name, **overrides):
    return models.create(name, 10, 8, image_channels=1, **(SMALL[name] | overrides))


def batch(seed=0, size=16, used=None):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, 8, 8, 1), np.uint8)
    labels = rng.integers(0, 10, size, np.int32)
    return {"image": images, "label": labels, "mask": np.arange(size) < (size if used is None else used)}


@pytest.fixture(scope="module")
def pair():
    """A student and a teacher, and their variables."""
    networks = [network("mixer_pico"), network("vit_pico")]
    variables = [jax.jit(m.init)(jax.random.key(i), jnp.zeros((1, 8, 8, 1))) for i, m in enumerate(networks)]
    # A mixer's classifier starts at zero.
    kernel = variables[0]["params"]["head"]["kernel"]
    variables[0]["params"]["head"]["kernel"] = jax.random.normal(jax.random.key(2), kernel.shape)
    return networks, variables


def evaluator(pair, parts):
    (student, teacher), (_, teacher_variables) = pair
    return Evaluator(student, {"": teacher}, {"": teacher_variables}, lambda: parts, create_mesh())


def outputs(pair, parts):
    """Returns both networks' outputs for all unmasked examples."""
    images = np.concatenate([part["image"][part["mask"]] for part in parts]) / np.float32(255)
    return [jax.jit(m.apply)(v, images) for m, v in zip(*pair, strict=True)]


def test_evaluation_in_parts_gives_the_same(pair, monkeypatch):
    monkeypatch.setattr(evaluation, "_CKA_IMAGES", 16)  # the later batches are evaluated without the teacher
    sizes = []
    monkeypatch.setattr(evaluation, "Parts", lambda mesh, size: sizes.append(size) or Parts(mesh, size))
    batches = [batch(seed) for seed in range(3)]
    (student, teacher), (variables, of_teacher) = pair

    def evaluated(size):
        given = {"": teacher}, {"": of_teacher}, lambda: batches, create_mesh(2)
        return Evaluator(student, *given, images_at_once=size)(variables)

    whole, in_parts = evaluated(0), evaluated(4)
    assert sizes == [0, 4]
    assert in_parts.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(in_parts[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_evaluation_steps_pass_a_part_through_both_networks(pair):
    mesh = create_mesh(2)
    given = {name: jnp.asarray(x) for name, x in batch().items()}
    (student, teacher), (variables, of_teacher) = pair

    def loops(step, *arguments):
        return jax.jit(step).lower(*arguments, given).as_text().count("stablehlo.while")

    def alone(size):
        return loops(make_eval_step(student, parts=Parts(mesh, size)), variables)

    def both(size):
        step = make_comparison_step(student, {"": teacher}, mesh, parts=Parts(mesh, size))
        return loops(step, variables, {"": of_teacher})

    assert alone(4) == alone(0) + 1
    assert both(4) == both(0) + 2


def test_evaluation_matches_its_definitions_over_all_examples(pair):
    parts = [batch(seed, used=used) for seed, used in enumerate((16, 16, 8))]
    got = evaluator(pair, parts)(pair[1][0])

    labels = np.concatenate([part["label"][part["mask"]] for part in parts])
    ours, theirs = outputs(pair, parts)
    log_p, log_q = (np.asarray(jax.nn.log_softmax(output.logits), np.float64) for output in (ours, theirs))
    hit = log_p.argmax(1) == labels
    confidence = np.exp(log_p).max(1)
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        error += abs(hit[inside].sum() - confidence[inside].sum()) / len(labels)
    expected = {
        "accuracy": hit.mean(),
        "top5": np.mean([label in row.argsort()[-5:] for row, label in zip(log_p, labels, strict=True)]),
        "loss": -log_p[np.arange(len(labels)), labels].mean(),
        "calibration_error": error,
        "teacher_accuracy": np.mean(log_q.argmax(1) == labels),
        "agreement": np.mean(log_p.argmax(1) == log_q.argmax(1)),
        "kl": np.mean(np.sum(np.exp(log_q) * (log_q - log_p), axis=1)),
    }
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        maps = [[output.features[stage][a:b] for output in (ours, theirs)] for a, b in ((0, 16), (16, 32), (32, 40))]
        expected[f"cka/{stage}"] = cka_from_terms(sum(hsic_terms(*pair) for pair in maps))
    assert set(got) == set(expected)
    assert expected["calibration_error"] > 0.05
    assert expected["accuracy"] < expected["top5"] < 1
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_cka_of_large_batches_averages_over_groups_within_a_device(pair):
    # 128 examples, 16 on each of 8 devices; 40 are padding.
    parts = [batch(size=128, used=88)]
    got = evaluator(pair, parts)(pair[1][0])
    ours, theirs = outputs(pair, parts)
    for stage in ("stage1", "stage4"):
        groups = [slice(i, min(i + 16, 88)) for i in range(0, 88, 16)]
        terms = [hsic_terms(ours.features[stage][g], theirs.features[stage][g]) for g in groups]
        np.testing.assert_allclose(got[f"cka/{stage}"], cka_from_terms(sum(terms)), rtol=1e-3)


def comparison_text(pair, mesh, size):
    """Returns the compiled comparison step for 8 devices, as text."""
    (student, teacher), (variables, teacher_variables) = pair
    step = make_comparison_step(student, {"": teacher}, mesh)
    split = batch_sharding(mesh)
    shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split) for n, x in batch(size=size).items()}
    return jax.jit(step).lower(variables, {"": teacher_variables}, shapes).compile().as_text()


def test_comparison_step_reduces_sums_and_gathers_no_feature_maps(pair, monkeypatch):
    mesh = create_mesh()
    assert set(
        re.findall(r"all-gather|all-to-all|collective-permute|all-reduce", comparison_text(pair, mesh, 128))
    ) == {"all-reduce"}

    def whole_batch(x, y, mask, mesh):
        return hsic_terms(x, y, mask)

    monkeypatch.setattr(evaluation, "_grouped_hsic", whole_batch)
    assert "all-gather" in comparison_text(pair, mesh, 128)  # negative control: the Gram matrix of the global batch


def test_teacher_predictions_are_computed_once(pair, monkeypatch):
    monkeypatch.setattr(evaluation, "_CKA_IMAGES", 16)
    parts = [batch(seed, used=used) for seed, used in enumerate((16, 16, 8))]
    evaluate = evaluator(pair, parts)
    first = evaluate(pair[1][0])
    calls = []
    compare = evaluate._compare
    evaluate._compare = lambda *args: calls.append(1) or compare(*args)
    again = evaluate(pair[1][0])
    assert len(calls) == 1  # the batch for CKA
    assert again == first

    other = jax.tree.map(lambda x: x * 0.5, pair[1][0])
    fresh = evaluator(pair, parts)(other)
    assert evaluate(other) == fresh != first


def test_top5_breaks_ties_as_a_stable_sort_does():
    logits = jnp.asarray(np.random.default_rng(0).integers(0, 4, (64, 10)), jnp.float32)
    labels = jnp.asarray(np.random.default_rng(1).integers(0, 10, 64))
    sums = evaluation._sums(logits, {}, {"label": labels, "mask": jnp.ones(64, bool)})
    order = np.argsort(-np.asarray(logits), axis=1, kind="stable")[:, :5]
    assert float(sums["top5"]) == np.sum(order == np.asarray(labels)[:, None])


def test_evaluation_ignores_masked_examples(pair):
    few = evaluator(pair, [{name: x[:8] for name, x in batch().items()}])(pair[1][0])
    masked = evaluator(pair, [batch(used=8)])(pair[1][0])
    assert set(masked) == set(few)
    for name, value in few.items():
        np.testing.assert_allclose(masked[name], value, rtol=1e-3 if "cka" in name else 1e-5, atol=1e-6, err_msg=name)


def test_network_agrees_with_itself_in_all_metrics():
    model = network("vit_pico")
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    got = Evaluator(model, {"": model}, {"": variables}, lambda: [batch()], create_mesh())(variables)
    assert (got["agreement"], got["kl"]) == (1.0, 0.0)
    np.testing.assert_allclose([got[f"cka/stage{s}"] for s in (1, 2, 3, 4)], 1, rtol=1e-5)


def test_evaluation_without_a_teacher_returns_only_the_students_metrics(pair):
    alone = Evaluator(pair[0][0], {}, {}, lambda: [batch()], create_mesh())(pair[1][0])
    both = evaluator(pair, [batch()])(pair[1][0])
    assert set(alone) == {"accuracy", "top5", "loss", "calibration_error"}
    for name, value in alone.items():
        np.testing.assert_allclose(value, both[name], rtol=1e-5)
