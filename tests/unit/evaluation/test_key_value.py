"""The key–value task: its documents, its rows, and what it can be told."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.bpe import train_bpe
from megatron_longrope.artifacts.rows import EvaluationLabels, RetrievalRow
from megatron_longrope.config import build_config
from megatron_longrope.data import TextTokenizer
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation.tasks import TASKS, TaskInputs
from megatron_longrope.evaluation.tasks.key_value import KeyValue, KeyValueSettings
from megatron_longrope.model import DocumentScores
from megatron_longrope.runtime import Runtime
from tests.support.tiny_models import our_model, single_runtime, tiny_hf_model

runtime = pytest.fixture(single_runtime, scope="module")
LABELS = EvaluationLabels("base", "none")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    text = "alpha-7 = 4821\nbeta-3 = 0956\nalpha-7 ? 4821\nomega = 173\n" * 20
    return train_bpe([text], 270, tmp_path_factory.mktemp("bpe"))


def test_documents_ask_for_a_line_of_their_list(tokenizer: TextTokenizer) -> None:
    settings = KeyValueSettings(value_digits=6)
    document = KeyValue().document(tokenizer, 400, None, 5, settings, (7,))
    assert len(document.tokens) == 400 and document.tokens[0] == 7
    *lines, question = tokenizer.decode(document.tokens[1:]).splitlines()
    name, value = (part.strip() for part in question.split("?"))
    assert value == document.key and len(value) == 6
    assert lines.count(f"{name} = {value}") == 1
    assert len(lines) == len({line.partition(" = ")[0] for line in lines})


def test_rows_count_exact_matches_without_depths(
    tokenizer: TextTokenizer, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are replaced: right on three documents, wrong on the last token of the fourth."""
    from megatron_longrope.evaluation import answers

    seen: list[np.ndarray] = []

    def scores(model: object, documents: list[np.ndarray], **_: object) -> list[DocumentScores]:
        result = []
        for tokens in documents:
            seen.append(tokens)
            correct = np.ones(len(tokens) - 1, dtype=bool)
            correct[-1] = len(seen) <= 3
            result.append(DocumentScores(np.zeros(len(correct), dtype=np.float32), correct))
        return result

    monkeypatch.setattr(answers, "score_documents", scores)
    model = our_model(tiny_hf_model(vocab_size=tokenizer.vocab_size), runtime)
    task, inputs = TASKS["key-value"], TaskInputs(model, tokenizer)
    settings = KeyValueSettings(trials=4)
    rows = task.run(inputs, 300, settings, LABELS)
    assert rows == [
        RetrievalRow(task="key-value", model="base", method="none", length=300, trials=4, correct=3)
    ]
    assert len({tokens.tobytes() for tokens in seen}) == 4
    assert task.tokens(0, 300, settings) == 4 * 300 == sum(map(len, seen))
    assert rows[0].to_json()["depth"] is None


def test_what_cannot_be_built_is_refused(tokenizer: TextTokenizer, runtime: Runtime) -> None:
    model = our_model(tiny_hf_model(vocab_size=tokenizer.vocab_size), runtime)
    with pytest.raises(InputError, match="too short for 9 questions"):
        inputs = TaskInputs(model, tokenizer)
        TASKS["key-value"].run(inputs, 40, KeyValueSettings(questions=9), LABELS)
    with pytest.raises(InputError, match=r"trials=0: .*evaluation\.tasks\.key-value"):
        build_config(KeyValueSettings, {"trials": 0}, "evaluation.tasks.key-value")
    with pytest.raises(InputError, match="no tokenizer"):
        TASKS["key-value"].run(TaskInputs(model, None), 300, KeyValueSettings(), LABELS)
