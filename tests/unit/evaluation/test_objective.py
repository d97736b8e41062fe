"""The search objective: candidates become factors, sums stay apart, weights are shares of the
loss."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.counted_flops import flop_counter
from megatron_longrope.artifacts.evaluations import Candidate, Evaluation
from megatron_longrope.data import PasskeyDocument
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import (
    ObjectivePart,
    PerplexityObjective,
    baseline_methods,
    factors_of,
)
from megatron_longrope.evaluation.objective_parts import part_scales
from megatron_longrope.model import LongRopeModel, score_documents
from megatron_longrope.rope import FactorOrigin, RopeGeometry, Yarn
from megatron_longrope.runtime import Runtime
from megatron_longrope.search.types import Terms
from tests.support.tiny_models import (
    WINDOW,
    our_model,
    random_documents,
    single_runtime,
    tiny_hf_model,
)

runtime = pytest.fixture(single_runtime, scope="module")
GEOMETRY = RopeGeometry(base=10000.0, head_dim=16, original_length=WINDOW)
TARGET = 4 * WINDOW
A = Candidate(tuple(1.0 + 0.3 * i for i in range(8)), 4, 1.05)
B = Candidate(tuple(1.0 + 0.4 * i for i in range(8)), 0, 1.0)


@pytest.fixture(scope="module")
def model(runtime: Runtime) -> LongRopeModel:
    return our_model(tiny_hf_model(), runtime)


def test_candidates_become_factors_of_the_model(model: LongRopeModel) -> None:
    factors = factors_of(A, model.geometry, TARGET, FactorOrigin(method="search", model="base"))
    assert (factors.rescale, factors.start_tokens, factors.attention_factor) == (A.rescale, 4, 1.05)
    assert (factors.original_length, factors.target_length, factors.origin.model) == (
        WINDOW,
        TARGET,
        "base",
    )
    assert factors_of(A, model.geometry, TARGET).origin.method == "search"
    with pytest.raises(InputError, match=r"rescale=3: one factor per rotary pair \(8\)"):
        factors_of(Candidate((1.0,) * 3), model.geometry, TARGET)


def test_evaluations_hold_each_documents_sums_in_the_order_asked(model: LongRopeModel) -> None:
    documents = random_documents(TARGET, 100, 70)
    objective = PerplexityObjective(model, documents, target_length=TARGET)
    evaluations = objective([A, B, A])
    for candidate, evaluation in zip([A, B, A], evaluations, strict=True):
        model.set_factors(factors_of(candidate, model.geometry, TARGET))
        scores = score_documents(model, documents)
        assert evaluation.nll_sums == tuple(
            float(score.nll.sum(dtype=np.float64)) for score in scores
        )
        assert evaluation.token_counts == (TARGET - 1, 99, 69)
        assert evaluation.completed
    assert evaluations[0] == evaluations[2] and evaluations[0].loss != evaluations[1].loss
    assert objective.cost_tokens == TARGET + 170
    assert objective([]) == []


def test_the_model_keeps_the_last_candidates_factors(model: LongRopeModel) -> None:
    objective = PerplexityObjective(model, random_documents(70), target_length=TARGET)
    objective([A, B])
    assert model.factor_set.for_length(70) == factors_of(B, model.geometry, TARGET)


def test_last_fraction_counts_the_end_of_the_context_only(model: LongRopeModel) -> None:
    (document,) = random_documents(100)
    (whole,) = PerplexityObjective(model, [document], target_length=TARGET)([A])
    (score,) = score_documents(model, [document])
    (quarter,) = PerplexityObjective(model, [document], target_length=TARGET, last_fraction=0.25)(
        [A]
    )
    assert (whole.token_counts, quarter.token_counts) == ((99,), (25,))
    assert quarter.nll_sums[0] == pytest.approx(
        float(score.nll[-25:].sum(dtype=np.float64)), rel=1e-12
    )


def test_parts_enter_the_loss_by_their_weights(model: LongRopeModel) -> None:
    text = random_documents(TARGET, 90)
    hidden = [
        PasskeyDocument(tokens, len(tokens) - 5, 5, key="")
        for tokens in random_documents(80, 60, 70, seed=9)
    ]
    parts = [ObjectivePart.last_part(text, weight=3.0), ObjectivePart.answers(hidden, weight=1.0)]
    objective = PerplexityObjective(model, parts, target_length=TARGET)
    (evaluation,) = objective([A])
    assert evaluation.token_counts == (TARGET - 1, 89, 5, 5, 5)
    scores = score_documents(model, [*text, *(document.tokens for document in hidden)])
    text_loss = sum(float(score.nll.sum()) for score in scores[:2]) / (TARGET - 1 + 89)
    answer_loss = sum(float(score.nll[-5:].sum()) for score in scores[2:]) / 15
    assert evaluation.loss == pytest.approx(0.75 * text_loss + 0.25 * answer_loss, rel=1e-6)
    text_part, answers = objective.part_losses(evaluation)
    assert [text_part.loss, answers.loss] == pytest.approx([text_loss, answer_loss], rel=1e-6)
    assert text_part.perplexity == pytest.approx(math.exp(text_loss)) and answers.perplexity is None
    assert not objective.is_perplexity


def test_an_objective_names_every_generated_token_and_mask(model: LongRopeModel) -> None:
    """And nothing it did not name before where texts are all there is: journals go on."""

    def identity(*parts: ObjectivePart) -> dict[str, object]:
        return PerplexityObjective(model, list(parts), target_length=TARGET).identity()

    def needles(seed: int, answer: int = 5) -> ObjectivePart:
        tokens = random_documents(80, 60, seed=seed)
        return ObjectivePart.answers(
            [PasskeyDocument(each, len(each) - answer, answer, key="") for each in tokens]
        )

    text = ObjectivePart.last_part(random_documents(90, 70))
    assert identity(text, needles(1)) == identity(text, needles(1))
    assert identity(text, needles(1)) != identity(text, needles(2))
    same_count = np.zeros(89, dtype=bool)
    masks = [np.roll(same_count, 0) for _ in range(2)]
    masks[0][3:5] = masks[1][4:6] = True
    first, second = (identity(ObjectivePart(random_documents(90)[:1], (mask,))) for mask in masks)
    assert first != second
    keys = ["target_length", "weights", "lengths", "counted", "max_batch_tokens"]
    assert list(identity(text)) == keys
    quarter = ObjectivePart.last_part(random_documents(90, 70), 0.25)
    assert list(identity(text, quarter)) == keys


@given(
    st.lists(
        st.tuples(st.floats(0.01, 100), st.integers(2, 500), st.floats(0, 20)),
        min_size=1,
        max_size=4,
    )
)
def test_scales_make_the_loss_the_weighted_mean_of_the_parts(
    parts: list[tuple[float, int, float]],
) -> None:
    built = [
        ObjectivePart.last_part([np.zeros(length, dtype=np.int64)], weight=w)
        for w, length, _ in parts
    ]
    scales = part_scales(tuple(built))
    counts = [length - 1 for _, length, _ in parts]
    sums = [
        scale * loss * count
        for scale, (_, _, loss), count in zip(scales, parts, counts, strict=True)
    ]
    expected = sum(w * loss for w, _, loss in parts) / sum(w for w, _, _ in parts)
    assert math.fsum(sums) / sum(counts) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert len(parts) > 1 or scales == (1.0,)


def test_samples_are_scored_alone_and_their_gradients_average_to_that_of_all(
    runtime: Runtime,
) -> None:
    model = our_model(tiny_hf_model(), runtime, angle_precision="float64", scaled=False)
    hidden = [
        PasskeyDocument(tokens, len(tokens) - 5, 5, key="")
        for tokens in random_documents(80, 60, seed=9)
    ]
    parts = [
        ObjectivePart.last_part(random_documents(TARGET, 90)),
        ObjectivePart.answers(hidden, weight=0.4),
    ]
    objective = PerplexityObjective(model, parts, target_length=TARGET)
    whole = objective.evaluate(A, Terms(gradient=True))
    samples = [(0,), (1,), (2,), (3,)], [(0, 3), (1, 2)]
    for group in samples:
        one_by_one = [
            objective.evaluate(A, Terms(gradient=True, sample=sample)) for sample in group
        ]
        for sample, evaluation in zip(group, one_by_one, strict=True):
            assert evaluation.nll_sums == pytest.approx(
                [whole.nll_sums[d] for d in sample], rel=1e-6
            )
            assert (evaluation.sample, evaluation.completed, evaluation.usable) == (
                sample,
                False,
                False,
            )
            assert Evaluation.from_json(json.loads(json.dumps(evaluation.to_json()))) == evaluation
        mean = np.mean([e.gradient.rescale for e in one_by_one if e.gradient], axis=0)
        assert whole.gradient is not None
        np.testing.assert_allclose(
            mean, whole.gradient.rescale, rtol=1e-3, atol=1e-4 * np.abs(mean).max()
        )
        by_t = np.mean([e.gradient.attention_factor for e in one_by_one if e.gradient])
        assert by_t == pytest.approx(whole.gradient.attention_factor, rel=1e-4)


def test_the_booked_cost_is_what_torch_counts(runtime: Runtime) -> None:
    model = our_model(
        tiny_hf_model(), runtime, angle_precision="float64", scaled=False, recompute="full"
    )
    documents = random_documents(TARGET, 90, 40)
    objective = PerplexityObjective(
        model,
        documents,
        target_length=TARGET,
        max_batch_tokens=130,
        ladder=[[document[:30] for document in documents], [documents[0][:50]]],
    )

    def booked_and_counted(terms: Terms) -> tuple[Evaluation, float]:
        with flop_counter() as counter:
            (evaluation,) = objective([A], terms)
        booked = evaluation.forward_equivalents
        assert booked is not None and evaluation.cost_tokens == objective.cost.tokens(evaluation)
        counted = counter.get_total_flops()
        assert booked * objective.cost.whole_flops == pytest.approx(counted, rel=1e-9)
        return evaluation, booked

    whole, passes = booked_and_counted(Terms())
    assert len(whole.rungs) == 2 and 1 < passes < 2
    assert objective.without_ladder()([A])[0].forward_equivalents == 1.0
    on_ladder, _ = booked_and_counted(Terms(judge=lambda partial: len(partial.rungs) == 2))
    assert not on_ladder.nll_sums
    stopped, _ = booked_and_counted(Terms(judge=lambda partial: len(partial.nll_sums) == 1))
    assert len(stopped.nll_sums) == 1
    booked_and_counted(Terms(gradient=True))
    booked_and_counted(Terms(gradient=True, sample=(0, 2)))
    booked_and_counted(Terms(sample=(1,)))


def test_wrong_objectives_are_refused(model: LongRopeModel) -> None:
    (document,) = random_documents(20)
    part = ObjectivePart.last_part([document])
    wrong = [
        lambda: PerplexityObjective(model, [], target_length=TARGET),
        lambda: PerplexityObjective(model, [part, document], target_length=TARGET),  # type: ignore[list-item]
        lambda: PerplexityObjective(model, [part], target_length=TARGET, last_fraction=0.5),
        lambda: PerplexityObjective(model, [document], target_length=TARGET, last_fraction=0.0),
        lambda: ObjectivePart((document,), (np.zeros(19, dtype=bool),)),
        lambda: ObjectivePart((document,), (np.ones(20, dtype=bool),)),
        lambda: ObjectivePart((document,), (np.ones(19, dtype=bool),), weight=0.0),
        lambda: ObjectivePart((document[:1],), (np.ones(0, dtype=bool),)),
    ]
    for build in wrong:
        with pytest.raises(InputError, match=r"objective|last_fraction"):
            build()


def test_baselines_come_with_their_own_and_with_the_searched_temperature() -> None:
    methods = baseline_methods(GEOMETRY, TARGET, attention_factor=1.17)
    names = ["none", "pi", "ntk", "dynamic-ntk:4", "yarn"]
    assert [(m.name, m.attention_factor) for m in methods] == [
        (n, t) for t in ("own", "searched") for n in names
    ]
    for own, searched in zip(methods[:5], methods[5:], strict=True):
        for length in (WINDOW, TARGET):
            plain, changed = (
                method.factors_at(length).for_length(length) for method in (own, searched)
            )
            assert changed.attention_factor == 1.17
            assert changed.rescale == plain.rescale
            assert plain.attention_factor == (
                Yarn(scale=4).factors(GEOMETRY).attention_factor if own.name == "yarn" else 1.0
            )


def test_dynamic_ntk_follows_the_length_and_may_come_with_several_factors() -> None:
    methods = {m.name: m for m in baseline_methods(GEOMETRY, TARGET, written_scales=(1.0, 2.0))}
    assert {"dynamic-ntk:1", "dynamic-ntk:2"} <= methods.keys()
    dynamic = methods["dynamic-ntk:1"]
    assert dynamic.factors_at(WINDOW).for_length(WINDOW).rescale == (1.0,) * 8
    assert dynamic.factors_at(TARGET).for_length(TARGET).rescale == pytest.approx(
        methods["ntk"].factors_at(TARGET).for_length(TARGET).rescale
    )
    with pytest.raises(InputError, match="target_length=32"):
        baseline_methods(GEOMETRY, WINDOW // 2)
