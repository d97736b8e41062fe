"""`longrope search` of models that arrive with scaling of their own: beyond that, and saying so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints_tools.hf.importing import import_hf
from launchers.main import main
from megatron_longrope.artifacts.journal import read_search_journal
from megatron_longrope.rope import (
    OwnScaling,
    PositionInterpolation,
    RopeFactors,
    factor_set_from_hf,
    read_factors,
    write_factors,
)
from tests.support.tiny_run import WINDOW, make_model, make_texts

ARRIVES, TARGET = 2 * WINDOW, 4 * WINDOW


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that arrives with YaRN, and texts."""
    root: Path = tmp_path_factory.mktemp("arrived")
    make_model(root / "tiny", make_texts(root / "texts"))
    file = root / "tiny" / "config.json"
    config = json.loads(file.read_text())
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": WINDOW}
    rope = {"rope_scaling": yarn, "rope_parameters": yarn | {"rope_theta": config["rope_theta"]}}
    file.write_text(json.dumps(config | rope | {"max_position_embeddings": ARRIVES}))
    return root


def _own(folder: Path) -> OwnScaling:
    return OwnScaling(factor_set_from_hf(json.loads((folder / "tiny/config.json").read_text())))


def _search(folder: Path, model: Path, out: Path, *more: str, target: int = TARGET) -> int:
    sizes = ("--ramp-rounds", "0", "--passes", "0", "--starts-from", "yarn")
    text = str(folder / "texts" / "text-0.txt")
    places = ("--model", str(model), "--text", text, "--target", str(target), "--out", str(out))
    with pytest.raises(SystemExit) as ended:
        main(["search", *places, *sizes, *more])
    return int(ended.value.code or 0)


@pytest.mark.parametrize("kind", ["hf", "megatron"])
def test_its_own_factors_are_the_fine_tuned_ones(
    kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder / "tiny"
    if kind == "megatron":
        model = tmp_path / "tiny"
        import_hf(folder / "tiny", model)
    assert _search(folder, model, tmp_path / "out") == 0
    own = _own(folder)
    assert own.tuned is not None and own.window == ARRIVES
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if "arrives with" in line]
    assert "tiny arrives with yarn for 256: a second-stage search from these factors" in line
    (journal,) = (tmp_path / "out" / "journals").glob("search-*.jsonl")
    lowest = json.loads(journal.read_text().splitlines()[0])["space"]["lower"]
    assert tuple(lowest) == own.tuned.rescale
    assert read_search_journal(journal).entries
    rows = json.loads((tmp_path / "out" / "result.json").read_text())["baselines"]
    assert [row["method"] for row in rows[:4]] == [
        *("model", "second-pi", "second-ntk", "second-yarn")
    ]
    assert _search(folder, model, tmp_path / "other", target=ARRIVES) == 2
    assert "exceed the model's window of 256 tokens" in capsys.readouterr().err


def test_factors_given_come_first(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    geometry = _own(folder).geometry
    given: RopeFactors = PositionInterpolation(scale=2).factors(geometry)
    write_factors(tmp_path / "pi.json", given)
    arguments = ("--from-factors", str(tmp_path / "pi.json"))
    assert _search(folder, folder / "tiny", tmp_path / "out", *arguments) == 0
    assert "arrives with" not in capsys.readouterr().err
    found = read_factors(tmp_path / "out" / "factors" / "best.json").for_length(TARGET)
    assert min(found.rescale) >= 2.0


def test_settings_of_a_first_search_are_refused_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _search(folder, folder / "tiny", tmp_path / "out", "--space", "longrope2") == 2
    error = capsys.readouterr().err
    assert "search.space=longrope2" in error and len(error.splitlines()) == 1
