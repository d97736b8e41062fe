"""Retrieval by teacher forcing is correct exactly where greedy decoding gives the key."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_prep.bpe import train_bpe
from megatron_longrope.artifacts.rows import EvaluationLabels, RetrievalRow
from megatron_longrope.config import build_config
from megatron_longrope.data import PasskeyDocument, TextTokenizer, passkey_document
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import answers_retrieved, greedy_decode
from megatron_longrope.evaluation.answers import trial_seed
from megatron_longrope.evaluation.tasks import TASKS, TaskInputs
from megatron_longrope.model import LongRopeModel, document_logits
from megatron_longrope.rope import FactorRange, FactorSet, PositionInterpolation
from megatron_longrope.runtime import Runtime
from tests.support.tiny_models import (
    WINDOW,
    our_model,
    random_documents,
    single_runtime,
    tiny_hf_model,
)

runtime = pytest.fixture(single_runtime, scope="module")
ANSWER = 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    text = (
        "What is the pass key? The pass key is 12345. Remember it. The grass is green. The sky is "
        "blue.\n" * 20
    )
    return train_bpe([text], 290, tmp_path_factory.mktemp("bpe"))


@pytest.fixture
def model(runtime: Runtime) -> LongRopeModel:
    return our_model(tiny_hf_model(), runtime)


def measure(
    model: LongRopeModel,
    tokenizer: TextTokenizer,
    length: int,
    prefix: tuple[int, ...] = (),
    **settings: object,
) -> list[RetrievalRow]:
    """Runs the passkey task as `longrope eval` does."""
    task = TASKS["passkey"]
    inputs = TaskInputs(model, tokenizer, prefix=prefix)
    chosen = build_config(task.settings_kind, settings)
    rows = task.run(inputs, length, chosen, EvaluationLabels("base", "none"))
    assert all(isinstance(row, RetrievalRow) for row in rows)
    return rows  # type: ignore[return-value]


def with_answer(prompt: np.ndarray, answer: np.ndarray) -> PasskeyDocument:
    return PasskeyDocument(np.concatenate([prompt, answer]), len(prompt), len(answer), key="")


def assert_equivalent(model: LongRopeModel, documents: list[PasskeyDocument]) -> list[bool]:
    """Holds teacher forcing against decoding and returns what both say."""
    forced = answers_retrieved(model, documents)
    decoded = [
        bool(
            (
                greedy_decode(model, document.tokens[: document.answer_start], ANSWER)
                == document.answer
            ).all()
        )
        for document in documents
    ]
    assert forced.tolist() == decoded
    return decoded


def variations(model: LongRopeModel, prompt: np.ndarray) -> list[PasskeyDocument]:
    """The model's own answer to `prompt`; and with each token in turn changed, after which it goes
    on as it would."""
    answers = [greedy_decode(model, prompt, ANSWER)]
    for place in range(ANSWER):
        begun = answers[0][: place + 1].copy()
        begun[place] = (begun[place] + 1) % model.shape.vocab_size
        rest = greedy_decode(model, np.concatenate([prompt, begun]), ANSWER - len(begun))
        answers.append(np.concatenate([begun, rest]))
    return [with_answer(prompt, answer) for answer in answers]


def test_teacher_forcing_is_right_exactly_when_decoding_is(model: LongRopeModel) -> None:
    prompts = random_documents(5, 100, 60, seed=3)
    documents = [document for prompt in prompts for document in variations(model, prompt)]
    retrieved = assert_equivalent(model, documents)
    assert retrieved == [True, False, False, False, False] * len(prompts)


def test_the_equivalence_holds_for_random_answers_of_a_nearly_uniform_model(
    runtime: Runtime,
) -> None:
    hf = tiny_hf_model(vocab_size=2, tie_word_embeddings=False)
    random = np.random.default_rng(0)
    documents = [
        with_answer(random.integers(0, 2, 12), random.integers(0, 2, ANSWER)) for _ in range(30)
    ]
    model = our_model(hf, runtime)
    retrieved = assert_equivalent(model, documents)
    assert 0 < sum(retrieved) < len(documents)


def test_the_equivalence_holds_among_ties(runtime: Runtime) -> None:
    hf = tiny_hf_model(vocab_size=8, tie_word_embeddings=False)
    with torch.no_grad():
        hf.lm_head.weight[:6] = (
            0  # six logits are exactly 0; the two others decide whether that is the highest
        )
    model = our_model(hf, runtime)
    random = np.random.default_rng(1)
    documents = [
        with_answer(random.integers(0, 8, 10), random.choice([0, 1, 6, 7], ANSWER))
        for _ in range(20)
    ]
    documents += [
        variation
        for prompt in random_documents(9, 30, vocabulary=8)
        for variation in variations(model, prompt)
    ]
    documents += [
        with_answer(prompt, greedy_decode(model, prompt, ANSWER))
        for prompt in random.integers(0, 8, (8, 9))
    ]
    retrieved = assert_equivalent(model, documents)
    ties = [
        (
            np.sort(document_logits(model, document.tokens[: document.answer_start])[-1])[-2:] == 0
        ).all()
        for document in documents
    ]
    assert any(hit and tie for hit, tie in zip(retrieved, ties, strict=True))
    assert any(not hit and tie for hit, tie in zip(retrieved, ties, strict=True))


def test_all_logits_equal_gives_the_lowest_id(runtime: Runtime) -> None:
    hf = tiny_hf_model(tie_word_embeddings=False)
    with torch.no_grad():
        hf.lm_head.weight.zero_()
    model = our_model(hf, runtime)
    (prompt,) = random_documents(9)
    zeros, ones = np.zeros(ANSWER, dtype=np.int64), np.ones(ANSWER, dtype=np.int64)
    assert assert_equivalent(model, [with_answer(prompt, zeros), with_answer(prompt, ones)]) == [
        True,
        False,
    ]


def test_an_answer_across_the_border_of_two_factor_sets_uses_one_of_them(
    model: LongRopeModel,
) -> None:
    short, long = (
        PositionInterpolation(scale=scale).factors(model.geometry) for scale in (1.0, 6.0)
    )
    model.set_factors(
        FactorSet(
            ranges=(FactorRange(up_to=50, factors=short), FactorRange(up_to=None, factors=long))
        )
    )
    before = model.factor_set
    documents = variations(model, random_documents(48)[0])
    assert assert_equivalent(model, documents) == [True, False, False, False, False]
    assert model.factor_set is before


def test_rows_count_exact_matches_and_are_the_same_each_time(
    tokenizer: TextTokenizer, runtime: Runtime
) -> None:
    model = our_model(tiny_hf_model(vocab_size=tokenizer.vocab_size), runtime)
    rows = measure(model, tokenizer, 4 * WINDOW, (7,), depths=(0.0, 0.5, 1.0), trials=2)
    assert [(row.length, row.depth, row.trials) for row in rows] == [
        (4 * WINDOW, depth, 2) for depth in (0, 0.5, 1)
    ]
    assert rows[0].to_json() == {
        "task": "passkey",
        "model": "base",
        "method": "none",
        "attention_factor": "own",
        "length": 4 * WINDOW,
        "depth": 0.0,
        "trials": 2,
        "correct": rows[0].correct,
        "accuracy": rows[0].correct / 2,
    }
    (alone,) = measure(model, tokenizer, 4 * WINDOW, (7,), depths=(0.5,), trials=2)
    assert alone == rows[1]


def test_a_model_that_knows_the_key_is_counted_right(
    tokenizer: TextTokenizer, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are replaced: right on answers of documents with an even trial, wrong on one token of
    the odd ones."""
    from megatron_longrope.evaluation import answers
    from megatron_longrope.model import DocumentScores

    seeds = {trial: trial_seed(0, 300, 0.25, trial) for trial in range(5)}
    built = {trial: passkey_document(tokenizer, 300, 0.25, seed) for trial, seed in seeds.items()}

    def scores(model: object, documents: list[np.ndarray], **_: object) -> list[DocumentScores]:
        result = []
        for tokens in documents:
            (trial,) = [
                t for t, document in built.items() if np.array_equal(document.tokens, tokens)
            ]
            correct = np.zeros(len(tokens) - 1, dtype=bool)
            correct[built[trial].answer_start - 1 :] = True
            correct[-1] &= trial % 2 == 0
            result.append(DocumentScores(np.zeros(len(correct), dtype=np.float32), correct))
        return result

    monkeypatch.setattr(answers, "score_documents", scores)
    model = our_model(tiny_hf_model(vocab_size=tokenizer.vocab_size), runtime)
    (row,) = measure(model, tokenizer, 300, depths=(0.25,), trials=5)
    assert (row.correct, row.trials) == (3, 5)


def test_wrong_requests_are_refused(tokenizer: TextTokenizer, model: LongRopeModel) -> None:
    with pytest.raises(InputError, match="trials=0"):
        measure(model, tokenizer, 300, depths=(0.5,), trials=0)
    with pytest.raises(InputError, match=r"depths=\(\)"):
        measure(model, tokenizer, 300, depths=(), trials=1)
    with pytest.raises(InputError, match="length=10: too short"):
        measure(model, tokenizer, 10, depths=(0.5,), trials=1)
