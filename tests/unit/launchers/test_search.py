"""The options of `longrope search`: what they ask of a search, and sizes of another searcher
refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from launchers.commands.search import command
from launchers.factor_search import _tuned_factors, search_config
from launchers.main import main
from launchers.search_options import check_search_request
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.searching import search_name
from megatron_longrope.rope import published_factors, write_factors


def options(*arguments: str) -> dict[str, Any]:
    needed = ["--model", "m", "--text", "a.txt", "--target", "2k", "--out", "o"]
    context: click.Context = command.make_context("search", [*needed, *arguments])
    return context.params


@pytest.mark.parametrize(
    ("arguments", "searcher", "sizes"),
    [
        ([], "hybrid", {}),
        (
            ["--ramp-rounds", "2", "--passes", "0"],
            "hybrid",
            {"ramp": {"max_rounds": 2}, "cycles": 0},
        ),
        (
            ["--ramp-rounds", "0", "--passes", "6"],
            "hybrid",
            {"ramp": {"max_rounds": 0}, "descent": {"passes": 6}},
        ),
        (["--searcher", "gradient", "--passes", "6"], "gradient", {"passes": 6}),
    ],
)
def test_sizes_reach_their_searcher(
    arguments: list[str], searcher: str, sizes: dict[str, Any]
) -> None:
    config = search_config(options(*arguments), 3)
    assert config.searcher.name == searcher and config.num_documents == 3
    given = config.searcher.settings
    assert ({} if given is None else given.model_dump(exclude_unset=True)) == sizes


def test_starts_may_be_repeated_and_are_all_by_default() -> None:
    assert search_config(options("--starts-from", "yarn", "--starts-from", "pi"), 1).starts == (
        "yarn",
        "pi",
    )
    assert search_config(options(), 1).starts == ("pi", "ntk", "yarn")


def test_a_held_out_text_that_is_searched_on_is_refused_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("a.txt", "one"), ("copy.txt", "one"), ("b.txt", "two"), ("b2.txt", "two")):
        Path(name).write_text(text)
    words = ["search", "--model", "gone", "--text", "a.txt", "--target", "2k", "--out", "o"]
    for held_out, says in (
        (["copy.txt"], "--held-out=copy.txt: is what --text a.txt holds"),
        (["b.txt", "b2.txt"], "--held-out=b2.txt: is what --held-out b.txt holds"),
    ):
        result = CliRunner().invoke(main, [*words, "--held-out", *held_out])
        assert result.exit_code == 2 and result.stderr.splitlines() == [says]


def test_fine_tuned_factors_come_by_name_or_file(tmp_path: Path) -> None:
    published = "llama2-7b/fine-tune-128k"
    tuned = _tuned_factors(published, 262144)
    assert tuned == published_factors(published)
    write_factors(tmp_path / "tuned.json", published_factors(published))
    assert _tuned_factors(str(tmp_path / "tuned.json"), 262144) == tuned
    for name, says in (("llama2-7b/3k", "neither a published set"), ("no.json", "no such file")):
        with pytest.raises(InputError, match=f"--from-factors={name}: {says}"):
            _tuned_factors(name, 262144)
    with pytest.raises(InputError, match="must exceed the 128k tokens"):
        _tuned_factors(published, 4096)


def test_journals_are_named_by_searcher_but_the_default_s_by_length_alone() -> None:
    assert search_name(4096, search_config(options(), 1)) == "search-4096"
    assert search_name(4096, search_config(options("--searcher", "cma"), 1)) == "search-4096-cma"
    assert (
        search_name(256, search_config(options("--searcher", "evolution"), 1), "recover")
        == "recover-256-evolution"
    )


def test_transformers_angles_serve_searchers_without_gradients(tmp_path: Path) -> None:
    for arguments in (["--searcher", "evolution"], ["--passes", "0"]):
        check_search_request(tmp_path, options("--angle-precision", "hf", *arguments))


def test_a_ladder_is_of_early_stopping() -> None:
    config = search_config(options("--ladder", "256", "--ladder", "1k"), 1)
    assert config.early_stopping is not None and config.early_stopping.ladder == (256, 1024)
    assert search_config(options("--no-early-stopping"), 1).early_stopping is None


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--no-early-stopping", "--ladder", "256"], "part of early stopping"),
        (["--ladder", "1k", "--ladder", "256"], "that ascend"),
        (["--searcher", "evolution", "--passes", "3"], "has no --passes"),
        (["--searcher", "gradient", "--ramp-rounds", "3"], "has no --ramp-rounds"),
        (["--searcher", "hybrid", "--population", "3"], "has no --population"),
        (["--searcher", "gradient", "--passes", "0"], "passes"),
    ],
)
def test_sizes_of_another_searcher_are_refused(arguments: list[str], wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        search_config(options(*arguments), 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--searcher", "cma", "--passes", "3"], "--searcher=cma: has no --passes"),
        (
            ["--searcher", "evolution", "--population", "4", "--offspring", "0"],
            "Invalid value for '--offspring'",
        ),
        (["--searcher", "gradient", "--passes", "0"], "passes=0"),
        (["--offload"], "--offload=none: belongs to --recompute full"),
        (["--offload", "--recompute", "selective"], "belongs to --recompute full"),
        (
            ["--angle-precision", "hf"],
            "--angle-precision=hf: has no gradients, which searcher hybrid needs",
        ),
        (["--critical-pair", "3"], "--critical-pair=3: belongs to --space longrope2"),
        (
            ["--starts-from", "yarn", "--starts-from", "cope"],
            "--starts-from=cope: slows pairs to a standstill, which belongs to --space open",
        ),
        (
            ["--json", "nowhere/result.json"],
            "--json=nowhere/result.json: its folder does not exist",
        ),
        (["--out", "a_file"], "a_file is a file, not a folder"),
        (["--out", "a_file/below/it"], "a_file is a file, not a folder"),
    ],
)
def test_wrong_options_are_one_line_before_anything_is_loaded(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither model nor text is there: whoever looked for them first would say so instead."""
    monkeypatch.chdir(tmp_path)
    Path("a_file").touch()
    needed = ["--model", "gone", "--text", "gone.txt", "--target", "2k", "--out", "new/folder"]
    result = CliRunner().invoke(main, ["search", *needed, *arguments])
    assert result.exit_code == 2 and says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]
