"""Searches begun before go on: headers as they were to the letter, and whole journals proposed
again candidate by candidate."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_longrope.search import (
    SEARCHERS,
    Candidate,
    CriticalSpace,
    Journal,
    SearcherChoice,
    SearchSpace,
    SearchTask,
)
from tests.support.search_stubs import SCALE, SEEDS, SPACE

ROOT = Path(__file__).resolve().parents[3]
IDENTITIES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "identities.json").read_text(encoding="utf-8")
)
"""What searchers wrote into headers before they had a registry: name, settings given, identity."""
JOURNALS = sorted((ROOT / "benchmarks" / "search_cost" / "journals").glob("*.jsonl.gz"))


@pytest.mark.parametrize("case", IDENTITIES.values(), ids=IDENTITIES.keys())
def test_identities_are_to_the_letter_what_they_were(case: dict[str, Any]) -> None:
    choice = SearcherChoice.model_validate({"name": case["name"], **(case["given"] or {})})
    space: SearchSpace = SPACE
    if "critical_pair" in case["identity"]["space"]:
        space = CriticalSpace.extension(SPACE.num_pairs, SCALE, 3)
    task = SearchTask(length=case["length"], scale=SCALE, num_documents=2)
    identity = choice.build(space, SEEDS, 3, task).identity()
    assert json.dumps(identity) == json.dumps(case["identity"])  # the order of keys too


@pytest.mark.parametrize("path", JOURNALS, ids=[path.name.split(".")[0] for path in JOURNALS])
def test_a_journal_in_the_repository_is_gone_on_with(path: Path, tmp_path: Path) -> None:
    """Opening it compares headers; replaying it asks for each candidate again."""
    plain = tmp_path / "journal.jsonl"
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    header = json.loads(plain.read_text(encoding="utf-8").splitlines()[0])
    if header["searcher"] not in SEARCHERS:
        pytest.skip("of Microsoft's own code")
    objective = header["objective"]
    choice = SearcherChoice.model_validate({"name": header["searcher"], **header["settings"]})
    searcher = choice.build(
        SearchSpace(**header["space"]),
        [Candidate.from_json(seed) for seed in header["seeds"]],
        header["seed"],
        SearchTask(objective["target_length"], SCALE, len(objective["lengths"])),
    )
    with Journal.open(plain, searcher.identity(), objective) as journal:
        entries = journal.entries
    for entry in entries:
        if searcher.finished:  # some were written when descents still took a last step, at rate 0
            assert entry.index == len(entries) - 1
            break
        (proposed,) = searcher.ask(1)
        # not to the last digit: a curve's λ are powers, which differ by that much between machines
        for ours, theirs in zip(_numbers(proposed), _numbers(entry.candidate), strict=True):
            assert math.isclose(ours, theirs, rel_tol=1e-9)
        searcher.tell(proposed, entry.evaluation)


def _numbers(candidate: Candidate) -> tuple[float, ...]:
    return (*candidate.rescale, candidate.start_tokens, candidate.attention_factor)
