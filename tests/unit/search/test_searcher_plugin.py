"""A searcher from outside the package, known by its registration alone: in options, help, a recipe
and a whole search."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner
from pydantic import Field

from launchers.main import main
from megatron_longrope.artifacts.journal import read_journal
from megatron_longrope.config import StrictConfig, build_config, read_yaml, write_yaml
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.search import (
    SEARCHERS,
    Candidate,
    Proposal,
    RoundSearcher,
    SearcherChoice,
    SearchStage,
    SettingOption,
)
from tests.support.search_stubs import SEEDS, SPACE, TASK, stub_evaluation
from tests.support.tiny_run import TUNED, make_model, make_texts, recipe_values

ROOT = Path(__file__).resolve().parents[3]


class DummySettings(StrictConfig):
    """How many candidates follow the seeds."""

    steps: int = Field(default=3, ge=1)


class DummySearch(RoundSearcher[DummySettings]):
    """The seeds, then the first of them at other temperatures."""

    name = "dummy"
    summary = "a few temperatures of the first start"
    Settings = DummySettings
    options = (SettingOption("--dummy-steps", "candidates", lambda steps: {"steps": steps}),)
    searches_start_tokens = False
    unfit_stages: ClassVar[Mapping[SearchStage, str]] = {"recovery": "knows no short inputs"}

    @property
    def num_evaluations(self) -> int:
        """Evaluations from first to last."""
        return len(self.seeds) + self.settings.steps

    def next_round(self) -> list[Proposal]:
        """Returns everything at once."""
        if self.round_number > 0:
            return []
        first = self.seeds[0]
        sharper = [
            Candidate(first.rescale, first.start_tokens, self.space.attention_factors[step])
            for step in range(1, self.settings.steps + 1)
        ]
        return [
            *(Proposal(seed, "seed") for seed in self.seeds),
            *(Proposal(candidate, "step") for candidate in sharper),
        ]


@pytest.fixture
def _registered() -> Iterator[None]:
    SEARCHERS.register(DummySearch.name, DummySearch)
    yield
    SEARCHERS.remove(DummySearch.name)


def search(*arguments: object) -> tuple[int, str]:
    """Runs `longrope search` in this process; returns its exit code and all it printed."""
    result = CliRunner().invoke(main, ["search", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.mark.usefixtures("_registered")
def test_it_searches_from_the_command_line(tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "texts")
    model, out = make_model(tmp_path / "model", texts), tmp_path / "out"
    asked = ["--model", model, "--text", texts[0], "--target", TUNED, "--out", out]
    code, printed = search(*asked, "--searcher", "dummy", "--dummy-steps", 2)
    assert code == 0, printed
    header, entries = read_journal(out / "journals" / f"search-{TUNED}-dummy.jsonl")
    assert header["searcher"] == "dummy" and header["settings"] == {"steps": 2}
    assert [entry.provenance.origin for entry in entries[-2:]] == ["step", "step"]
    assert json.loads((out / "result.json").read_text())["evaluations"] == len(entries)
    assert (out / "factors" / f"search-{TUNED}-dummy.json").is_file()


@pytest.mark.usefixtures("_registered")
def test_the_help_lists_every_searcher_and_what_its_options_are_of() -> None:
    code, printed = search("--help")
    lines = [line.split(maxsplit=1) for line in printed.partition("Searchers:")[2].splitlines()]
    listed = {line[0]: line[1] for line in lines if line}
    assert code == 0 and list(listed) == list(SEARCHERS)
    assert listed["dummy"] == DummySearch.summary and "gradient" in listed
    assert "For dummy: candidates" in printed


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--searcher", "dummy", "--passes", "3"], "--searcher=dummy: has no --passes"),
        (["--searcher", "cma", "--dummy-steps", "3"], "--searcher=cma: has no --dummy-steps"),
        (["--searcher", "dummy", "--dummy-steps", "0"], "'--dummy-steps'"),
    ],
)
def test_options_of_another_searcher_are_one_line(
    arguments: list[str], says: str, tmp_path: Path
) -> None:
    needed = ["--model", "gone", "--text", "gone.txt", "--target", "2k", "--out", tmp_path / "out"]
    code, printed = search(*needed, *arguments)
    assert code == 2 and says in printed and len(printed.splitlines()) == 1


@pytest.mark.usefixtures("_registered")
def test_a_recipe_names_it_and_asks_it_what_it_can_do(tmp_path: Path) -> None:
    values = recipe_values(tmp_path / "model", [tmp_path / "a.txt"])
    section = values["extension"][0]["search"]
    section["searcher"] = {"name": "dummy", "steps": 5}
    recipe = build_config(Recipe, values, "tiny")
    assert recipe.extension[0].search.searcher.settings == DummySettings(steps=5)
    write_yaml(recipe.model_dump(mode="json"), tmp_path / "config.yaml")
    assert build_config(Recipe, read_yaml(tmp_path / "config.yaml"), "config.yaml") == recipe

    section["search_start_tokens"] = True
    with pytest.raises(InputError, match="searcher dummy keeps n̂ as its best start has it"):
        build_config(Recipe, values, "tiny")
    del section["search_start_tokens"]
    section["searcher"] = {"name": "dummy", "step": 5}
    with pytest.raises(InputError, match=r"searcher\.step=5: .*known here: name, steps"):
        build_config(Recipe, values, "tiny")
    section["searcher"] = "dummy"
    values["recovery"][0]["search"] = {"searcher": "dummy"}
    with pytest.raises(InputError, match=r"search\.searcher: dummy knows no short inputs"):
        build_config(Recipe, values, "tiny")


def test_the_documented_searcher_finds_t() -> None:
    section = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").split("## A searcher")[1]
    code = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], flags=re.DOTALL)
    names: dict[str, object] = {"SEARCHERS": SEARCHERS}
    try:
        for block in code:
            exec(compile(block, "docs/extending.md", "exec"), names)
        choice = SearcherChoice.model_validate({"name": "golden", "steps": 10})
        searcher = choice.build(SPACE, SEEDS, 1, TASK)
        while not searcher.finished:
            (candidate,) = searcher.ask(1)
            assert SPACE.admits(candidate)
            searcher.tell(candidate, stub_evaluation(candidate))
    finally:
        SEARCHERS.remove("golden")
    assert searcher.best is not None and len(searcher.history) == searcher.num_evaluations
    assert searcher.best[0].attention_factor == pytest.approx(1.17, abs=0.005)


def test_it_is_gone_when_it_is_removed(tmp_path: Path) -> None:
    needed = ["--model", "gone", "--text", "gone.txt", "--target", "2k", "--out", tmp_path / "out"]
    code, printed = search(*needed, "--searcher", "dummy")
    assert code == 2 and "'dummy' is not one of 'hybrid', " in printed
    with pytest.raises(InputError, match="no searcher is called dummy"):
        values = recipe_values(tmp_path / "model", [tmp_path / "a.txt"])
        values["extension"][0]["search"]["searcher"] = "dummy"
        build_config(Recipe, values, "tiny")
