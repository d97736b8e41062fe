"""A scaling method from outside the package: known to METHODS alone, it serves everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from data_prep.bpe import train_bpe
from launchers.main import main
from megatron_longrope.config import build_config
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import baseline_methods
from megatron_longrope.pipeline.recipe import Recipe, SearchConfig
from megatron_longrope.pipeline.searching import first_search, second_search
from megatron_longrope.rope import (
    METHODS,
    NtkAware,
    RopeFactors,
    RopeGeometry,
    RopeMethod,
    factor_set_from_hf,
    method_from_hf,
    method_from_text,
)
from megatron_longrope.rope.hf_reading import FACTOR, HfRopeType
from megatron_longrope.search import read_journal
from tests.support.tiny_models import WINDOW, tiny_hf_model
from tests.support.tiny_run import recipe_values

ENTRIES = 285
TEXT = "What is the pass key? The pass key is 12345. The grass is green. The sky is blue.\n" * 20
GEOMETRY = RopeGeometry(base=10000.0, head_dim=16, original_length=WINDOW)


class Dummy(RopeMethod):
    """λ_i = s^power for every pair."""

    name: ClassVar[str] = "dummy"
    is_baseline: ClassVar[bool] = True
    starts_searches: ClassVar[bool] = True
    goes_on_tuned: ClassVar[bool] = True
    hf: ClassVar[HfRopeType | None] = HfRopeType("of-a-test", keys=FACTOR, required=FACTOR)

    scale: float = Field(ge=1)
    power: float = 1.0

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns the same λ for every pair, whatever the length."""
        target = round(self.scale * geometry.original_length)
        return self.make_factors(geometry, (self.scale**self.power,) * geometry.num_pairs, target)


@pytest.fixture
def registered() -> Iterator[None]:
    METHODS.register(Dummy.name, Dummy)
    yield
    METHODS.remove(Dummy.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a tiny model and its tokenizer, and a text beside it."""
    root: Path = tmp_path_factory.mktemp("hf")
    tiny_hf_model(vocab_size=ENTRIES).save_pretrained(root / "tiny")
    train_bpe([TEXT], ENTRIES, root / "tiny")
    (root / "text.txt").write_text(TEXT)
    return root


def longrope(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def evaluate(folder: Path, *methods: str) -> int:
    options = [part for method in methods for part in ("--method", method)]
    return longrope(
        *("eval", "ppl", "--model", folder / "tiny", "--text", folder / "text.txt"),
        *("--lengths", 2 * WINDOW, "--json", folder / "rows.json", *options),
    )


@pytest.mark.usefixtures("registered")
def test_the_command_line_evaluates_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folder, "dummy:2", "dummy", "pi:2", "dummy:4,power=0.5", "dummy:4") == 0
    rows = json.loads((folder / "rows.json").read_text())["rows"]
    sums = {row["method"]: row["nll_sum"] for row in rows}
    assert sums["dummy:2"] == sums["dummy"] == sums["pi:2"] == sums["dummy:4,power=0.5"]
    assert sums["dummy:4"] != sums["dummy:2"]
    assert evaluate(folder, "dummy:2,power=big") == 2
    assert "power=big: Input should be a valid number" in capsys.readouterr().err


@pytest.mark.usefixtures("registered")
def test_lists_and_help_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert longrope("factors", "methods") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "dummy" in line)
    assert line.split()[:4] == ["dummy", "scale,", "power", "of-a-test"]
    assert longrope("search", "--help") == 0
    assert "|dummy]" in capsys.readouterr().out
    assert [m.name for m in baseline_methods(GEOMETRY, 2 * WINDOW)][-1] == "dummy"


@pytest.mark.usefixtures("registered")
def test_a_search_starts_from_it(folder: Path, tmp_path: Path) -> None:
    code = longrope(
        *("search", "--model", folder / "tiny", "--text", folder / "text.txt"),
        *("--target", 2 * WINDOW, "--out", tmp_path / "out", "--starts-from", "dummy"),
        *("--ramp-rounds", 0, "--passes", 0),
    )
    assert code == 0
    (journal,) = (tmp_path / "out" / "journals").glob("*.jsonl")
    _, entries = read_journal(journal)
    assert {entry.candidate.rescale for entry in entries} == {(2.0,) * 8}
    baselines = json.loads((tmp_path / "out" / "result.json").read_text())["baselines"]
    assert "dummy" in {row["method"] for row in baselines}


def recipe_from(*starts: str) -> Recipe:
    values = recipe_values(Path("model"), [Path("text.txt")])
    for step in values["extension"]:
        step["search"] = {**step["search"], "starts": list(starts)}
    return build_config(Recipe, values, "the recipe")


@pytest.mark.usefixtures("registered")
def test_a_recipe_starts_both_searches_from_it() -> None:
    first, second = recipe_from("dummy").extension
    found = first_search(first.search, GEOMETRY, 2 * WINDOW)
    assert {seed.rescale for seed in found.seeds} == {(2.0,) * 8}
    tuned = Dummy(scale=2).factors(GEOMETRY)
    further = second_search(second.search, GEOMETRY, 4 * WINDOW, tuned)
    assert {seed.rescale for seed in further.seeds} == {(4.0,) * 8}


@pytest.mark.usefixtures("registered")
def test_a_hugging_face_config_is_read_and_written() -> None:
    method = Dummy(scale=4)
    written = {"rope_type": "of-a-test", "factor": 4.0}
    assert method.to_hf(GEOMETRY) == {**written, "power": 1.0}
    config = {
        "head_dim": 16,
        "max_position_embeddings": WINDOW,
        "rope_parameters": {**written, "rope_theta": 10000.0},
    }
    assert method_from_hf(config) == (method, GEOMETRY)
    assert factor_set_from_hf(config) == method.factor_set(GEOMETRY)


def test_the_method_in_the_documentation_works() -> None:
    page = (Path(__file__).parents[3] / "docs" / "extending.md").read_text(encoding="utf-8")
    section = page.partition("## A RoPE scaling method")[2]
    source = section.partition("```python\n")[2].partition("```")[0]
    try:
        exec(source, {"__name__": "bent_ntk"})
        bent = method_from_text("bent-ntk:8,power=1", GEOMETRY, WINDOW)
        assert bent.ranges[0].factors.rescale == pytest.approx(
            NtkAware(scale=8).factors(GEOMETRY).rescale
        )
        assert SearchConfig(starts=("bent-ntk",)).starts == ("bent-ntk",)
    finally:
        METHODS.remove("bent-ntk")


def test_nothing_of_it_stays_behind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folder, "dummy:2") == 2
    assert "--method=dummy:2: one of none, pi, ntk" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"starts\.0=dummy: one of pi, ntk, yarn"):
        recipe_from("dummy")
