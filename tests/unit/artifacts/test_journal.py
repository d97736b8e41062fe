"""The journal: round trips, torn tails, damage, foreign headers, two writers."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_longrope.errors import InputError, LongRopeError
from megatron_longrope.search import (
    Candidate,
    Evaluation,
    Gradient,
    Journal,
    JournalEntry,
    Provenance,
    read_journal,
)
from tests.support.search_stubs import small_search, stub_evaluation

OBJECTIVE = {"documents": "sha256:00ff", "length": 2048}


def entry(index: int, evaluation: Evaluation | None = None) -> JournalEntry:
    candidate = Candidate((1.0, 1.07, 2.0 + index / 100), index, 1.1)
    evaluation = evaluation or stub_evaluation(candidate)
    return JournalEntry(
        index, candidate, Provenance(index // 2, "mutant"), evaluation, 0.25, evaluation.tokens
    )


def open_journal(path):
    return Journal.open(path, small_search().identity(), OBJECTIVE)


@pytest.fixture
def path(tmp_path):
    """A journal of three evaluations."""
    with open_journal(tmp_path / "journal.jsonl") as journal:
        for index in range(3):
            journal.append(entry(index))
    return tmp_path / "journal.jsonl"


def test_reopening_gives_the_entries_back(path):
    with open_journal(path) as journal:
        assert list(journal.entries) == [entry(index) for index in range(3)]
        journal.append(entry(3))
    assert read_journal(path)[1] == [entry(index) for index in range(4)]


def test_every_line_is_strict_json_with_its_fields(path):
    header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert (
        header["version"] == 1
        and header["searcher"] == "evolution"
        and header["objective"] == OBJECTIVE
    )
    assert {"seed", "settings", "space", "seeds"} <= header.keys()
    assert {
        "index",
        "generation",
        "origin",
        "candidate",
        "nll_sums",
        "token_counts",
        "completed",
        "seconds",
        "cost_tokens",
        "gradient",
        "crc",
    } == lines[0].keys()


@given(st.lists(st.floats(), min_size=1, max_size=4), st.booleans())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_evaluation_survives_bit_for_bit(sums, completed):
    gradient = Gradient(np.array(sums), math.inf)
    before = entry(0, Evaluation(tuple(sums), (7,) * len(sums), completed, gradient))
    after = JournalEntry.from_json(json.loads(json.dumps(before.to_json(), allow_nan=False)))
    assert repr(after.evaluation.nll_sums) == repr(before.evaluation.nll_sums)
    assert np.array_equal(after.evaluation.gradient.rescale, np.array(sums), equal_nan=True)
    assert (
        after.evaluation.gradient.attention_factor == math.inf
        and after.evaluation.completed == completed
    )


def test_a_last_line_torn_anywhere_is_cut_off(path):
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for size in {*range(last, len(whole), 9), len(whole) - 1}:
        path.write_bytes(whole[:size])
        assert len(read_journal(path)[1]) == 2
        assert path.stat().st_size == size
        with open_journal(path) as journal:
            assert path.read_bytes() == whole[:last]
            journal.append(entry(2))
        assert path.read_bytes() == whole


@given(st.data())
@settings(
    max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_any_other_damage_names_the_line(path, data):
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 2))
    damaged = bytearray(whole)
    damaged[place] = ord("z") if damaged[place] != ord("z") else ord("y")
    other = path.with_name("damaged.jsonl")
    other.write_bytes(damaged)
    with pytest.raises(InputError, match=f"line {whole[:place].count(bytes([10])) + 1} "):
        read_journal(other)


@pytest.mark.parametrize("order", [[0, 1, 1], [0, 2, 1], [1, 2]])
def test_lines_doubled_dropped_or_swapped_are_refused(path, order):
    header, *lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + b"".join(lines[index] for index in order))
    with pytest.raises(InputError, match=r"line \d holds evaluation"):
        read_journal(path)


@pytest.mark.parametrize(
    "content", [b"", b"torn header", b"[1, 2]\n", b"some text\n", b'{"a": 1}\n']
)
def test_files_that_are_no_journal_are_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="line 1"):
        open_journal(path)
    assert path.read_bytes() == content


def test_another_search_is_refused_by_the_first_key_that_differs(path):
    before = path.read_bytes()
    with pytest.raises(InputError) as refused:
        Journal.open(path, small_search().identity(), {**OBJECTIVE, "length": 4096})
    assert refused.value.field == "objective.length" and "2048" in refused.value.rule
    with pytest.raises(InputError) as refused:
        Journal.open(path, small_search(seed=2).identity(), OBJECTIVE)
    assert refused.value.field == "seed"
    assert path.read_bytes() == before


def test_two_writers_are_noticed(path):
    with open_journal(path) as first, open_journal(path) as second:
        first.append(entry(3))
        with pytest.raises(LongRopeError, match="another process"):
            second.append(entry(3))
    assert len(read_journal(path)[1]) == 4


def test_each_line_is_synced_before_append_returns(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(descriptor), real(descriptor))
    )
    with open_journal(tmp_path / "journal.jsonl") as journal:
        created = len(synced)
        assert created >= 2  # the header and its folder
        journal.append(entry(0))
        assert len(synced) == created + 1


def test_nothing_is_left_beside_the_journal(path):
    assert os.listdir(path.parent) == [path.name]
