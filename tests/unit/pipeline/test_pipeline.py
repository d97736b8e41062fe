"""Stages that run once, documents that are kept apart, rows that hold every token."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from checkpoints_tools.initialize import initial_weights
from data_prep.bpe import train_bpe
from data_prep.documents import TokenDocument
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.data import PackedDataset, TextTokenizer
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape
from megatron_longrope.pipeline.corpus import load_corpus
from megatron_longrope.pipeline.evaluating import extended_factor_set
from megatron_longrope.pipeline.exporting import export_factor_set
from megatron_longrope.pipeline.fine_tuning import training_factors
from megatron_longrope.pipeline.recipe import (
    CorpusConfig,
    RetrievalConfig,
    ShortInputs,
    TrainingDataConfig,
)
from megatron_longrope.pipeline.searching import first_search, recovery_search, second_search
from megatron_longrope.pipeline.stages import StageRunner
from megatron_longrope.pipeline.training_data import build_training_set
from megatron_longrope.rope import (
    FactorOrigin,
    PositionInterpolation,
    RopeFactors,
    RopeGeometry,
    Yarn,
)
from megatron_longrope.runtime import Runtime
from tests.support.tiny_models import single_runtime

GEOMETRY = RopeGeometry(base=10000.0, head_dim=64, original_length=256)
runtime = pytest.fixture(scope="module")(single_runtime)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    text = (
        "The pass key is 0123456789. Remember it. What is the pass key? alpha-7 = 4821\nalpha-7 ? "
        "4821\n" * 9
    )
    return train_bpe([text], 285, tmp_path_factory.mktemp("tokenizer"))


def _factors(target: int, temperature: float = 1.1, growth: float = 1.0) -> RopeFactors:
    rescale = tuple(1 + growth * pair / 31 for pair in range(32))
    return RopeFactors(
        rescale=rescale,
        attention_factor=temperature,
        original_length=256,
        target_length=target,
        base=10000.0,
        head_dim=64,
        origin=FactorOrigin(method="test"),
    )


def test_a_stage_runs_once_and_names_a_changed_input(runtime: Runtime, tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> dict[str, int]:
        calls.append(1)
        return {"answer": 42}

    for expected in (1, 1):
        runner = StageRunner(RunDirectory(tmp_path), runtime)
        assert runner.run("search", {"length": 8, "seed": 1}, work) == {"answer": 42}
        assert len(calls) == expected
    with pytest.raises(InputError, match=r"stage search=seed: .*1 → 2"):
        StageRunner(RunDirectory(tmp_path), runtime).run("search", {"length": 8, "seed": 2}, work)


def test_a_stage_that_failed_runs_again(runtime: Runtime, tmp_path: Path) -> None:
    def fails() -> None:
        raise RuntimeError("a kill")

    runner = StageRunner(RunDirectory(tmp_path), runtime)
    with pytest.raises(RuntimeError):
        runner.run("search", {"seed": 1}, fails)
    with pytest.raises(InputError, match="changed since the run began"):
        runner.run("search", {"seed": 2}, lambda: 1)
    assert runner.run("search", {"seed": 1}, lambda: 7) == 7


def test_a_damaged_marker_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.stage("search").parent.mkdir()
    directory.stage("search").write_text('{"status": "do')
    with pytest.raises(InputError, match="damaged marker"):
        StageRunner(directory, runtime).run("search", {}, lambda: 1)


def test_one_list_of_documents_is_divided_without_overlap(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    for number in range(7):
        words = 300 if number % 2 else 30
        (tmp_path / f"{number}.txt").write_text(f"{number} " + "grass key 7 " * words)
    paths = tuple(str(tmp_path / f"{number}.txt") for number in range(7))
    corpus = load_corpus(
        CorpusConfig(documents=paths, num_search=2, num_evaluation=1), tokenizer, 400
    )
    names = [
        [Path(d.name).stem for d in part] for part in (corpus.search, corpus.held_out, corpus.train)
    ]
    assert names == [["1", "3"], ["5"], ["0", "2", "4", "6"]]
    with pytest.raises(InputError, match=r"3 of 7.*4 are needed"):
        load_corpus(CorpusConfig(documents=paths, num_search=3, num_evaluation=1), tokenizer, 400)


def test_rows_hold_the_text_once_and_the_share_of_retrieval(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    documents = [
        TokenDocument(str(n), torch.arange(n * 100, n * 100 + 700).numpy() % 280, "0" * 64)
        for n in range(20)
    ]
    config = TrainingDataConfig(
        sequence_length=512,
        short_piece_share=0.3,
        retrieval=RetrievalConfig(share=0.25, min_length=200, max_length=512),
    )
    for max_piece, longest in ((None, 512), (256, 256)):
        build_training_set(
            tmp_path / str(longest),
            documents,
            tokenizer,
            config,
            window=256,
            max_piece=max_piece,
            seed=1,
        )
        dataset = PackedDataset(tmp_path / str(longest))
        pieces = [piece for row in range(dataset.num_rows) for piece in dataset.row(row)]
        assert max(map(len, pieces)) == longest
        total = sum(map(len, pieces))
        retrieval = sum(
            d.tokens
            for d in dataset.manifest.documents
            if d.name.startswith(("passkey", "key-value"))
        )
        assert abs(retrieval / total - 0.25) < 0.05
        assert total - retrieval == 20 * 700


def test_searches_start_where_the_method_says() -> None:
    from megatron_longrope.pipeline.recipe import RecoveryStep, SearchConfig

    config = SearchConfig()
    first = first_search(config, GEOMETRY, 2048)
    assert set(first.space.lower) == {1.0} and set(first.space.upper) == {10.0}
    assert any(seed.rescale == Yarn(scale=8.0).factors(GEOMETRY).rescale for seed in first.seeds)
    tuned = _factors(2048)
    second = second_search(SearchConfig(attention_factor="inherited"), GEOMETRY, 8192, tuned)
    assert second.space.lower == tuned.rescale and set(second.space.upper) == {40.0}
    assert second.space.attention_factors == (1.1,)
    pi = second.seeds[0].rescale
    assert all(math.isclose(b, 4 * a) for a, b in zip(tuned.rescale, pi, strict=True))
    yarn = SearchConfig(starts=("yarn",))
    assert {seed.rescale for seed in first_search(yarn, GEOMETRY, 2048).seeds} == {
        Yarn(scale=8.0).factors(GEOMETRY).rescale
    }
    assert (
        len(second_search(yarn, GEOMETRY, 8192, tuned).seeds) == 2
    )  # at its own and at a sharper temperature
    sharper = SearchConfig(starts=("yarn",), sharper_starts=(1.2, 1.26))
    own, *others = (
        seed.attention_factor for seed in second_search(sharper, GEOMETRY, 8192, tuned).seeds
    )
    assert own == pytest.approx(1.1 * Yarn(scale=4.0).factors(GEOMETRY).attention_factor)
    assert others == pytest.approx([1.2 * 1.1, 1.26 * 1.1])
    with pytest.raises(ValueError, match="a recovery starts from"):
        RecoveryStep(length=256, search=yarn)
    step = RecoveryStep(length=256, search=config)
    assert (
        RecoveryStep.model_validate(step.model_dump(mode="json")) == step
    )  # as a run directory keeps it
    recovery = recovery_search(config, GEOMETRY, 256, tuned, None)
    assert set(recovery.space.upper) == {max(tuned.rescale)} and set(recovery.space.lower) == {1.0}


@pytest.mark.parametrize(
    ("stage", "settings", "named"),
    [
        ("first", {"attention_factor": "inherited"}, "search.attention_factor"),
        ("first", {"sharper_starts": [1.3]}, "search.sharper_starts"),
        ("second", {"space": "longrope2", "critical_pair": 5}, "search.space"),
        ("recovery", {"space": "longrope2"}, "search.space"),
        ("recovery", {"sharper_starts": [1.3]}, "search.sharper_starts"),
        ("recovery", {"searcher": "piecewise"}, "search.searcher"),
        ("first", {"early_stopping": {"ladder": [512, 2048]}}, "search.early_stopping.ladder"),
        ("recovery", {"early_stopping": {"ladder": [256]}}, "search.early_stopping.ladder"),
    ],
)
def test_a_setting_without_a_meaning_in_its_stage_is_refused(
    stage: str, settings: dict[str, object], named: str
) -> None:
    from megatron_longrope.pipeline.recipe import SearchConfig

    config, tuned = SearchConfig.model_validate(settings), _factors(2048)
    with pytest.raises(InputError, match=named):
        if stage == "first":
            first_search(config, GEOMETRY, 2048)
        elif stage == "second":
            second_search(config, GEOMETRY, 8192, tuned)
        else:
            recovery_search(config, GEOMETRY, 256, tuned, None)


def test_fine_tuned_factors_of_another_model_are_refused() -> None:
    from megatron_longrope.pipeline.recipe import SearchConfig

    other = _factors(2048).model_copy(update={"base": 500000.0})
    with pytest.raises(InputError, match=r"base=500000.0: the model's is 10000.0"):
        second_search(SearchConfig(), GEOMETRY, 8192, other)


def test_temperatures_reach_beyond_yarns_own() -> None:
    from megatron_longrope.pipeline.recipe import SearchConfig

    for scale, last in ((8, 1.3), (32, 1.41)):
        assert (
            first_search(SearchConfig(), GEOMETRY, 256 * scale).space.attention_factors[-1] == last
        )


@pytest.mark.parametrize("searcher", ["cma", "gradient"])
def test_start_tokens_are_refused_where_the_searcher_keeps_them(searcher: str) -> None:
    from megatron_longrope.pipeline.recipe import SearchConfig

    with pytest.raises(ValueError, match="search_start_tokens"):
        SearchConfig.model_validate({"searcher": searcher, "search_start_tokens": True})


def test_the_export_takes_two_ranges_and_says_what_it_leaves() -> None:
    whole = extended_factor_set(
        [_factors(2048), _factors(8192, growth=9)], [(256, _factors(256, growth=0.1))]
    )
    carried, left_out = export_factor_set(whole, 256)
    assert [entry.up_to for entry in carried.ranges] == [256, None]
    assert carried.for_length(100) == whole.for_length(100) and carried.for_length(
        9000
    ) == whole.for_length(9000)
    assert len(left_out) == 1 and "2k" in left_out[0]
    sharper = extended_factor_set(
        [_factors(2048), _factors(8192, temperature=1.2)], [(256, _factors(256))]
    )
    carried, left_out = export_factor_set(sharper, 256)
    assert (
        carried.ranges[-1].factors.target_length == 2048
        and "8k" in left_out[0]
        and "1.2" in left_out[0]
    )
    none = extended_factor_set([_factors(2048)], [(256, _factors(256, temperature=1.0))])
    with pytest.raises(InputError, match="one attention_factor"):
        export_factor_set(none, 256)


def test_the_retrieval_start_repeats_what_came_before(runtime: Runtime) -> None:
    """Untrained, it already predicts the second saying of a random passage far better than a plain
    start does."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = ModelShape(
        num_layers=2,
        hidden_size=256,
        ffn_hidden_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        vocab_size=512,
        context_length=256,
    )
    passage = torch.randint(0, 512, (8, 40), generator=torch.Generator().manual_seed(1))
    twice = torch.cat([passage, passage], dim=1)
    losses = {}
    for scheme in ("normal", "retrieval"):
        model = LlamaForCausalLM(
            LlamaConfig(**{k: v for k, v in shape.to_hf().items() if k != "architectures"})
        )
        weights = initial_weights(shape, scheme, 1)  # type: ignore[arg-type]
        model.load_state_dict(weights)
        assert all(
            torch.equal(weights[name], value)
            for name, value in initial_weights(shape, scheme, 1).items()
        )  # type: ignore[arg-type]
        with torch.no_grad():
            logits = model(twice).logits[:, 40:-1]
        losses[scheme] = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), twice[:, 41:].flatten()
        ).item()
    assert losses["normal"] > math.log(512) - 0.3 and losses["retrieval"] < 0.8 * math.log(512)


def test_shipped_recipes_are_valid() -> None:
    from megatron_longrope.config import build_config, read_yaml
    from megatron_longrope.pipeline.pretraining import TrainRecipe
    from megatron_longrope.pipeline.recipe import Recipe
    from megatron_longrope.presets import recipe_names, recipe_path

    for name in recipe_names():
        kind = TrainRecipe if name == "demo-model" else Recipe
        config = build_config(kind, read_yaml(recipe_path(name)), name)
        assert config.name == name and json.dumps(config.model_dump(mode="json"))


def test_temperatures_of_a_first_search_are_not_times_a_fine_tuned_one() -> None:
    from megatron_longrope.config import build_config, read_yaml
    from megatron_longrope.pipeline.recipe import Recipe
    from megatron_longrope.presets import recipe_path

    values = read_yaml(recipe_path("demo"))
    values["extension"][0]["search"]["sharper_starts"] = [1.3]
    with pytest.raises(InputError, match="is for searches beyond a fine-tuned length"):
        build_config(Recipe, values, "demo")


@pytest.mark.parametrize(("short_inputs", "temperature"), [("pretrained", 1.0), ("unscaled", 1.2)])
def test_short_rows_may_be_trained_under_other_factors(
    short_inputs: ShortInputs, temperature: float
) -> None:
    geometry = RopeGeometry(base=10000.0, head_dim=8, original_length=64)
    tuned = (
        PositionInterpolation(scale=4)
        .factors(geometry)
        .model_copy(update={"attention_factor": 1.2})
    )
    assert training_factors(tuned, "extended").for_length(10) == tuned
    chosen = training_factors(tuned, short_inputs)
    assert chosen.for_length(65) == tuned
    short = chosen.for_length(64)
    assert short.rescale == (1.0,) * 4 and short.attention_factor == temperature


def test_a_misspelt_key_of_a_step_is_answered_with_the_keys_there() -> None:
    from megatron_longrope.config import build_config, read_yaml
    from megatron_longrope.pipeline.recipe import Recipe
    from megatron_longrope.presets import recipe_path

    values = read_yaml(recipe_path("demo"))
    values["extension"][1]["search"]["searcher"]["ramp"] = {"max_round": 1}
    with pytest.raises(InputError, match="known here: first_step, last_step, max_rounds"):
        build_config(Recipe, values, "demo")
