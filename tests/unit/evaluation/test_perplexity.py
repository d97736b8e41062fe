"""Perplexity: sums against transformers, every token scored once, one division at the end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_longrope.artifacts.results import aggregate, read_rows, write_rows
from megatron_longrope.artifacts.rows import EvaluationLabels, PerplexityRow, RetrievalRow
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import (
    EvaluationDocument,
    SlidingWindow,
    check_documents,
    documents_sha256,
    measure_perplexity,
    token_losses,
)
from megatron_longrope.model import LongRopeModel
from megatron_longrope.runtime import Runtime
from tests.support.tiny_models import our_model, random_documents, single_runtime, tiny_hf_model

runtime = pytest.fixture(single_runtime, scope="module")
HF = pytest.fixture(lambda: tiny_hf_model(), scope="module", name="hf")
LABELS = EvaluationLabels("base", "none")


@pytest.fixture(scope="module")
def model(hf: object, runtime: Runtime) -> LongRopeModel:
    return our_model(hf, runtime)


def documents(*lengths: int) -> list[EvaluationDocument]:
    return [
        EvaluationDocument(f"document {i}", tokens)
        for i, tokens in enumerate(random_documents(*lengths))
    ]


def hf_losses(hf: object, tokens: np.ndarray) -> np.ndarray:
    """Per-token losses of transformers [tokens − 1], float64."""
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        logits = hf(ids[None]).logits[0, :-1]  # type: ignore[operator]
    return torch.nn.functional.cross_entropy(logits.double(), ids[1:], reduction="none").numpy()


@pytest.mark.parametrize("length", [2, 3, 4, 37, 64])
def test_sums_equal_those_of_transformers(length: int, hf: object, model: LongRopeModel) -> None:
    chosen = documents(80, 64)
    measured = measure_perplexity(model, chosen, length, LABELS)
    for document, row in zip(chosen, measured.rows, strict=True):
        losses = hf_losses(hf, document.tokens[:length])
        assert row.tokens == length - 1
        assert row.nll_sum == pytest.approx(losses.sum(), abs=1e-4)
        assert row.perplexity == pytest.approx(math.exp(losses.mean()), rel=1e-5)
        tail = losses[-max(1, length // 4) :]
        assert row.last_quarter_tokens == len(tail)
        assert row.last_quarter_nll_sum == pytest.approx(tail.sum(), abs=1e-4)


@given(length=st.integers(2, 300), window=st.integers(2, 80), data=st.data())
def test_each_token_is_scored_once_with_the_promised_context(
    length: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window - 1))
    scored: list[int] = []
    for start, stop, new in SlidingWindow(window, stride).spans(length):
        assert stop - start <= window and stop <= length and start % stride == 0
        contexts = [token - start for token in range(new, stop)]
        if start > 0:
            assert contexts and min(contexts) >= window - stride and max(contexts) <= window - 1
        scored += range(new, stop)
    assert scored == list(range(1, length))


@pytest.mark.parametrize(("window", "stride"), [(32, 16), (20, 7), (30, 29), (64, 1), (500, 1)])
def test_sliding_window_equals_the_usual_loop_with_transformers(
    window: int, stride: int, hf: object, model: LongRopeModel
) -> None:
    (document,) = documents(70)
    expected, previous_end = np.full(69, np.nan), 0
    for begin in range(0, 70, stride):
        end = min(begin + window, 70)
        losses = hf_losses(hf, document.tokens[begin:end])
        fresh = min(end - previous_end, len(losses))
        expected[end - 1 - fresh : end - 1] = losses[-fresh:]
        previous_end = end
        if end == 70:
            break
    (losses,) = token_losses(model, [document.tokens], SlidingWindow(window, stride))
    np.testing.assert_allclose(losses, expected, atol=2e-5)
    (row,) = measure_perplexity(
        model, [document], 70, LABELS, sliding=SlidingWindow(window, stride)
    ).rows
    written = row.to_json()
    assert (written["protocol"], written["window"], written["stride"]) == (
        "sliding",
        window,
        stride,
    )
    assert (row.tokens, row.nll_sum) == (69, pytest.approx(expected.sum(), abs=1e-3))


@pytest.mark.parametrize("width", [1, 7, 16, 64, 100])
def test_position_buckets_add_up_to_the_whole(width: int, model: LongRopeModel) -> None:
    measured = measure_perplexity(model, documents(64, 70), 64, LABELS, bucket_tokens=width)
    buckets = measured.positions
    assert sum(bucket.tokens for bucket in buckets) == 2 * 63
    total = sum(row.nll_sum for row in measured.rows)
    assert sum(bucket.nll_sum for bucket in buckets) == pytest.approx(total, rel=1e-9)
    assert all(a.bucket_end == b.bucket_start for a, b in zip(buckets, buckets[1:], strict=False))
    assert buckets[-1].bucket_end == 64
    losses = np.sum(
        token_losses(model, [document.tokens[:64] for document in documents(64, 70)]), axis=0
    )
    for bucket in buckets:
        positions = range(max(bucket.bucket_start, 1), bucket.bucket_end)
        assert bucket.nll_sum == pytest.approx(
            sum(losses[position - 1] for position in positions), rel=1e-9
        )
        assert bucket.tokens == 2 * len(positions)


def test_results_do_not_depend_on_how_passes_are_shared(model: LongRopeModel) -> None:
    tokens = random_documents(40, 30, 64, 2)
    together = token_losses(model, tokens)
    apart = token_losses(model, tokens, max_batch_tokens=1)
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_short_documents_are_an_error_that_names_them(model: LongRopeModel) -> None:
    with pytest.raises(
        InputError, match=r"document=document 1: has 40 tokens, fewer than the length 64"
    ):
        measure_perplexity(model, documents(64, 40), 64, LABELS)
    with pytest.raises(InputError, match="at least 2 tokens"):
        measure_perplexity(model, documents(64), 1, LABELS)
    with pytest.raises(InputError, match="two documents have this name"):
        check_documents(documents(5) * 2, [2])
    with pytest.raises(InputError, match="at least one document"):
        check_documents([], [2])


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 0), (8, 9), (1, 1), (8, -1)])
def test_windows_that_leave_tokens_without_context_are_refused(window: int, stride: int) -> None:
    with pytest.raises(InputError, match=f"sliding={window}:{stride}"):
        SlidingWindow(window, stride)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.floats(0, 50), st.integers(1, 99)),
        min_size=1,
        max_size=8,
    )
)
def test_aggregate_weighs_tokens_not_documents(entries: list[tuple[str, float, int]]) -> None:
    rows = [
        PerplexityRow(
            model="base", method=m, length=8, document="d", tokens=tokens, nll_sum=loss * tokens
        )
        for m, loss, tokens in entries
    ]
    result = aggregate(rows, lambda row: (row.method, row.length))
    for method in {entry[0] for entry in entries}:
        chosen = [(loss, tokens) for m, loss, tokens in entries if m == method]
        expected = math.exp(
            np.average([loss for loss, _ in chosen], weights=[tokens for _, tokens in chosen])
        )
        assert result[method, 8] == pytest.approx(expected, rel=1e-9)


def test_rows_survive_the_file_and_infinities_become_null(
    tmp_path: Path, model: LongRopeModel
) -> None:
    rows = measure_perplexity(model, documents(64), 64, LABELS).rows
    changes = {"document": "diverged", "nll_sum": math.nan, "last_quarter_nll_sum": math.inf}
    broken = PerplexityRow.model_validate(rows[0].model_dump() | changes)
    path = tmp_path / "evals" / "perplexity.json"
    write_rows(path, [*rows, broken], note="kept")
    assert read_rows(path) == [*rows, broken]
    plain = json.loads(path.read_text())["rows"]
    assert plain[0] == rows[0].to_json()
    assert plain[1]["nll_sum"] is None and plain[1]["perplexity"] is None
    assert [entry.name for entry in path.parent.iterdir()] == ["perplexity.json"]


def test_a_loss_that_was_not_finite_is_worse_than_every_other(model: LongRopeModel) -> None:
    rows = measure_perplexity(model, documents(64, 70), 64, LABELS).rows
    for nll_sum in (None, math.nan, math.inf, -math.inf):
        broken = PerplexityRow.model_validate(rows[0].model_dump() | {"nll_sum": nll_sum})
        better = PerplexityRow.model_validate(rows[1].model_dump() | {"method": "pi"})
        found = aggregate([broken, rows[1], better], lambda row: row.method)
        assert found["none"] == math.inf and min(found, key=found.__getitem__) == "pi"


def test_rows_of_before_are_read(tmp_path: Path) -> None:
    labels = {"model": "base", "method": "yarn", "length": 8}
    rows = [
        {**labels, "temperature": "searched", "document": "d", "tokens": 7, "nll_sum": 7.0},
        {**labels, "depth": 0.5, "trials": 4, "correct": 3, "accuracy": 0.75},
    ]
    (tmp_path / "old.json").write_text(json.dumps({"rows": rows}))
    perplexity, passkey = read_rows(tmp_path / "old.json")
    assert isinstance(perplexity, PerplexityRow) and isinstance(passkey, RetrievalRow)
    assert (perplexity.attention_factor, perplexity.perplexity) == ("searched", math.e)
    assert (passkey.task, passkey.accuracy) == ("passkey", 0.75)
    assert perplexity.to_json()["attention_factor"] == "searched"


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"rows": 3}',
        '{"rows": [1]}',
        "{",
        '{"rows": [{"method": "pi"}]}',
        '{"rows": [{"document": "d", "method": "pi"}]}',
        '{"rows": [{"model": "m", "method": "pi", "length": "8", "trials": 1, "correct": 1}]}',
    ],
)
def test_damaged_result_files_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"file=.*rows\.json"):
        read_rows(path)


def test_digest_tells_documents_and_their_borders_apart() -> None:
    def digest(*parts: list[int]) -> str:
        return documents_sha256([EvaluationDocument("d", np.array(part)) for part in parts])

    assert digest([1, 2], [3]) == digest([1, 2], [3])
    assert (
        len({digest([1, 2], [3]), digest([1], [2, 3]), digest([1, 2, 3]), digest([3], [1, 2])}) == 4
    )
