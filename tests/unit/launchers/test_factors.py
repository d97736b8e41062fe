"""`longrope factors list | show | methods`."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from launchers.commands.factors import command
from megatron_longrope.errors import InputError
from megatron_longrope.rope import (
    LongRope,
    RopeGeometry,
    published_factors,
    published_names,
    write_factors,
)


def run(*words: str) -> Result:
    return CliRunner().invoke(command, words)


def test_list_names_every_set_and_says_which_are_not_monotone(tmp_path: Path) -> None:
    result = run("list", "--json", str(tmp_path / "list.json"))
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.output.splitlines() if line.strip()}
    assert all(name in lines for name in published_names())
    assert lines["llama2-7b/2048k-after-256k"].split()[1:-1] == [
        "LLaMA2-7B",
        "256k",
        "2M",
        "1.1118",
        "575.805",
        "yes",
    ]
    assert " no " in lines["mistral-7b-v0.1/2048k-after-256k"]
    rows = json.loads((tmp_path / "list.json").read_text())["rows"]
    assert [row["name"] for row in rows] == list(published_names())
    assert rows[-1]["target_length"] == 131072


def test_list_is_tab_separated_on_demand_with_all_digits(tmp_path: Path) -> None:
    shown = run("list", "--tsv", "-")
    assert run("list", "--tsv", str(tmp_path / "list.tsv")).output == run("list").output
    assert shown.output == (tmp_path / "list.tsv").read_text()
    rows = list(csv.DictReader(shown.output.splitlines(), dialect="excel-tab"))
    assert [row["name"] for row in rows] == list(published_names())
    factors = published_factors(rows[0]["name"])
    assert float(rows[0]["attention_factor"]) == factors.attention_factor
    assert float(rows[0]["max_rescale"]) == max(factors.rescale)
    refused = run("list", "--tsv", str(tmp_path / "nowhere" / "list.tsv"))
    assert isinstance(refused.exception, InputError)


def test_show_gives_wavelengths_of_a_published_set(tmp_path: Path) -> None:
    result = run("show", "llama2-7b/fine-tune-128k", "--json", str(tmp_path / "show.json"))
    assert result.exit_code == 0, result.output
    (only,) = json.loads((tmp_path / "show.json").read_text())["ranges"]
    assert len(only["pairs"]) == 64
    last = only["pairs"][-1]
    assert last["wavelength"] == pytest.approx(2 * math.pi * 10_000 ** (126 / 128))
    assert last["rescaled_wavelength"] == pytest.approx(32 * last["wavelength"])
    assert only["attention_factor"] == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))


def test_show_reads_a_file_with_two_ranges(tmp_path: Path) -> None:
    geometry = RopeGeometry(base=1e4, head_dim=8, original_length=512)
    method = LongRope(short=(1.0,) * 4, long=(1.0, 3.0, 2.0, 8.0), scale=8)
    write_factors(tmp_path / "f.json", method.factor_set(geometry))
    result = run("show", str(tmp_path / "f.json"))
    assert result.exit_code == 0, result.output
    assert "up to 512 tokens" in result.output
    assert "monotone no" in result.output


def test_neither_name_nor_file_is_bad_input(tmp_path: Path) -> None:
    assert isinstance(run("show", "llama2-7b/3k").exception, InputError)
    (tmp_path / "f.json").write_text("{")
    assert isinstance(run("show", str(tmp_path / "f.json")).exception, InputError)


def test_methods_lists_settings_names_and_uses(tmp_path: Path) -> None:
    result = run("methods", "--json", str(tmp_path / "methods.json"))
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads((tmp_path / "methods.json").read_text())["rows"]}
    assert list(rows)[:5] == ["none", "pi", "ntk", "dynamic-ntk", "yarn"]
    assert rows["llama3"]["settings"] == ["factor", "low_freq_factor", "high_freq_factor"]
    assert (rows["pi"]["rope_type"], rows["ntk"]["rope_type"]) == ("linear", None)
    assert "search start" in rows["yarn"]["uses"] and rows["longrope"]["uses"] == []
