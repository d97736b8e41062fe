"""A task from outside the package, through its registry alone: command line, recipe, checks,
report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydantic import Field

from data_prep.bpe import train_bpe
from launchers.main import main
from megatron_longrope.artifacts.results import EvaluationRows, write_rows
from megatron_longrope.artifacts.rows import RetrievalRow
from megatron_longrope.artifacts.summaries import Check
from megatron_longrope.config import build_config
from megatron_longrope.data import PasskeyDocument, load_tokenizer
from megatron_longrope.data.passkey import Encoder
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation.tasks import TASKS, RetrievalSettings, RetrievalTask
from megatron_longrope.pipeline.evaluating import Evaluator, Measurements
from megatron_longrope.pipeline.evaluation_settings import EvaluationConfig
from megatron_longrope.report import write_report
from megatron_longrope.rope import NoScaling
from megatron_longrope.runtime import Runtime
from tests.support.factor_sets import UNSCALED
from tests.support.tiny_models import our_model, single_runtime, tiny_hf_model

runtime = pytest.fixture(single_runtime)
TEXT = "the same word again and again, then the question: which word? again\n" * 20
ENTRIES = 270
ROOT = Path(__file__).resolve().parents[3]


class EchoSettings(RetrievalSettings):
    word: str = Field(default="again", description="Said over and over.")
    depths_of_it: tuple[float, ...] = Field(default=(0.0, 1.0), description="Where, from 0 to 1.")


class Echo(RetrievalTask[EchoSettings]):
    """Count how often the only word said is said once more."""

    name = "echo-word"
    title = "Echo"
    settings_kind = EchoSettings

    def depths(self, settings: EchoSettings) -> Sequence[float]:
        return settings.depths_of_it

    def document(
        self,
        tokenizer: Encoder,
        length: int,
        depth: float | None,
        seed: int,
        settings: EchoSettings,
        prefix: Sequence[int],
    ) -> PasskeyDocument:
        encoded = tokenizer.encode(f" {settings.word}", add_special_tokens=False)
        word = np.array(getattr(encoded, "ids", encoded), dtype=np.int64)
        text = np.resize(word, length - len(prefix))
        tokens = np.concatenate([np.array(prefix, dtype=np.int64), text])
        return PasskeyDocument(tokens, length - len(word), len(word), settings.word)

    def checks(self, rows: EvaluationRows, window: int) -> list[Check]:
        own = [row for row in rows.retrieval if row.task == self.name]
        return [Check.of("echo", "rows of it", len(own), window, met=True)] if own else []


@pytest.fixture
def echo() -> Iterator[Echo]:
    """The task, registered for one test."""
    task = TASKS.register(Echo.name, Echo())
    yield task
    TASKS.remove(Echo.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a tiny model and its tokenizer."""
    root: Path = tmp_path_factory.mktemp("hf") / "tiny"
    tiny_hf_model(vocab_size=ENTRIES).save_pretrained(root)
    train_bpe([TEXT], ENTRIES, root)
    return root


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["eval", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_it_has_a_command_with_its_settings(
    echo: Echo, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--help") == 0 and "echo-word" in capsys.readouterr().out
    assert run("echo-word", "--help") == 0
    help_text = " ".join(capsys.readouterr().out.split())
    assert "once more" in help_text and "--word WORD" in help_text
    assert "Where, from 0 to 1. [default: 0,1]" in help_text and "--text" not in help_text
    out = tmp_path / "rows.json"
    request = ("echo-word", "--model", folder, "--lengths", "64,96", "--trials", 2, "--json", out)
    assert run(*request, "--depths-of-it", "0.5", "--word", "the", "--method", "none") == 0
    shown = capsys.readouterr()
    assert "Echo, exact match over all depths" in shown.out and "none at 96 tokens" in shown.err
    content = json.loads(out.read_text())
    assert content.keys() == {"rows"}
    rows = [RetrievalRow.model_validate(row) for row in content["rows"]]
    assert [(row.task, row.length, row.depth, row.trials) for row in rows] == [
        ("echo-word", 64, 0.5, 2),
        ("echo-word", 96, 0.5, 2),
    ]
    assert run(*request, "--trials", 0) == 2
    assert "--trials=0" in capsys.readouterr().err
    assert run(*request, "--depths-of-it", "half") == 2
    assert "--depths-of-it=half" in capsys.readouterr().err


def test_a_recipe_names_it_and_the_report_shows_it(
    echo: Echo, folder: Path, tmp_path: Path, runtime: Runtime
) -> None:
    values = {
        "lengths": [64, 96],
        "tasks": {"passkey": {"lengths": ["1k"]}, "echo-word": {"word": "the", "trials": 2}},
    }
    config = build_config(EvaluationConfig, values)
    assert config == build_config(EvaluationConfig, config.model_dump(mode="json"))
    assert config.task_lengths("passkey") == (1024,)
    measured = Measurements()
    model = our_model(tiny_hf_model(vocab_size=ENTRIES), runtime)
    evaluator = Evaluator(model, UNSCALED, "extended", [], load_tokenizer(folder), config, measured)
    evaluator.tasks("longrope", NoScaling().factors(model.geometry), "searched", up_to=96)
    assert measured.files.keys() == {"echo-word"}
    for name, rows in measured.files.items():
        write_rows(tmp_path / "evals" / f"{name}.json", rows)
    rows = EvaluationRows.of(measured.files["echo-word"])
    assert [(row.length, row.depth) for row in rows.retrieval] == [
        (length, depth) for length in (64, 96) for depth in (0.0, 1.0)
    ]
    (check,) = echo.checks(rows, 64)
    assert (check.name, check.value) == ("echo", 4)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    section = page[page.index('<section id="retrieval">') :].partition("</section>")[0]
    assert "<h3>Echo word</h3>" in section and section.count('<table class="heat">') == 1
    assert "Echo word at 96" in page


def test_afterwards_it_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("echo-word", "--help") == 2
    capsys.readouterr()
    with pytest.raises(InputError, match=r"evaluation task=echo-word: one of .*passkey"):
        build_config(EvaluationConfig, {"lengths": [64], "tasks": {"echo-word": {}}})


def test_the_task_of_the_guide_works(folder: Path, tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = guide.partition("## An evaluation task")[2].partition("\n## ")[0]
    code = section.partition("```python\n")[2].partition("```")[0]
    exec(compile(code, "extending.md", "exec", dont_inherit=True), {"__name__": "first_word"})
    try:
        document = TASKS["first-word"].document(  # type: ignore[attr-defined]
            load_tokenizer(folder), 200, None, 3, TASKS["first-word"].settings_kind(), ()
        )
        assert len(document.tokens) == 200
        text = load_tokenizer(folder).decode(document.tokens)
        assert text.startswith(f"{document.key}\n")
        assert text.endswith(f"\nThe first word was {document.key}")
        request = ("first-word", "--model", folder, "--lengths", "96", "--words", 3, "--trials", 2)
        assert run(*request, "--json", tmp_path / "rows.json") == 0
        (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
        assert (row["task"], row["depth"], row["trials"]) == ("first-word", None, 2)
        assert run(*request, "--words", 11) == 2
    finally:
        TASKS.remove("first-word")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"passkey": {"trails": 3}}, r"trails=3: unknown key in evaluation\.tasks\.passkey"),
        ({"passkey": {"depths": [2]}}, r"depths\.0=2.*evaluation\.tasks\.passkey"),
        ({"passkey": 3}, r"evaluation\.tasks\.passkey=3"),
        ({"perplexity": {}}, "every run measures this"),
        (["passkey"], "names of tasks"),
    ],
)
def test_wrong_tasks_of_a_recipe_are_one_line(tasks: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_config(EvaluationConfig, {"lengths": [64], "tasks": tasks})
    assert "\n" not in str(caught.value)


def test_the_help_of_a_task_imports_no_torch() -> None:
    code = (
        "import sys\nfrom launchers.main import main\n"
        "try:\n    main(['eval', 'ppl', '--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
