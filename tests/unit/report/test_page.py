"""The report page: whole, self-contained, escaped, tolerant of what is missing and strict about
what is damaged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_longrope.errors import InputError
from megatron_longrope.report import write_report
from megatron_longrope.report.run_files import read_run
from megatron_longrope.report.style import LOOKS, OTHER, method_look
from tests.support import report_fake_run as fake

SECTIONS = {
    "factors": ["factors"],
    "search": ["journals"],
    "training": ["metrics.jsonl"],
    "length": ["evals/perplexity.json"],
    "position": ["evals/positions.json"],
    "retrieval": ["evals/passkey.json"],
    "table": ["evals/perplexity.json"],
    "checks": ["result.json"],
    "provenance": ["result.json", "config.yaml"],
}


class Page(HTMLParser):
    """Collects the tags of a page, the ids, what it would load, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every `tag`."""
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.write_fake_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def html(whole_run: Path) -> str:
    return write_report(whole_run).read_text(encoding="utf-8")


@pytest.fixture
def run_dir(whole_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "demo"))


def test_all_sections_are_there(html: str) -> None:
    page = Page(html)
    assert [section["id"] for section in page.of("section")] == list(SECTIONS)
    assert not [p for p in page.of("p") if p.get("class") == "missing"]
    # 2 targets, 2 searches, loss and learning rate, 2 models × 2 attention factors, 2 models by
    # position
    assert sum("aria-label" in svg for svg in page.of("svg")) == 2 + 2 + 2 + 4 + 2
    assert sum(table.get("class") == "heat" for table in page.of("table")) == 2


def test_loads_nothing(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "img", "image", "base"} & {
        tag for tag, _ in page.tags
    }
    links = [
        value
        for _, attributes in page.tags
        for key, value in attributes.items()
        if key in ("href", "xlink:href")
    ]
    assert links and all(link and link.startswith("#") for link in links)
    assert not [
        attributes
        for _, attributes in page.tags
        if attributes.keys() & {"src", "srcset", "data", "action"}
    ]
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)'\"]*)", html))
    assert "@import" not in html and "http:" not in html and "https:" not in html


def test_ids_are_unique_and_every_link_has_its_target(html: str) -> None:
    page = Page(html)
    ids = Counter(attributes["id"] for _, attributes in page.tags if attributes.get("id"))
    assert [name for name, count in ids.items() if count > 1] == []
    targets = [attributes["href"] for _, attributes in page.tags if attributes.get("href")]
    assert {(target or "")[1:] for target in targets} <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)


def test_names_from_files_are_escaped(run_dir: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    result = json.loads((run_dir / "result.json").read_text())
    result["model"]["name"] = result["checks"][0]["text"] = result["stages"][0]["name"] = hostile
    result["summary"][hostile] = hostile
    fake.write_json(run_dir / "result.json", result)
    rows = fake.perplexity_rows() + [
        row | {"method": f"$\\frac{hostile}"} for row in fake.perplexity_rows()[:3]
    ]
    fake.write_json(run_dir / "evals" / "perplexity.json", {"rows": rows})
    (run_dir / "config.yaml").write_text(f"note: '{hostile}'\n")
    html = write_report(run_dir).read_text(encoding="utf-8")
    page = Page(html)
    assert not page.of("img") and not page.of("script")
    assert page.text.count(hostile) >= 6 and "<script>alert('x')</script>" in page.text


def test_same_files_same_page(whole_run: Path, html: str) -> None:
    assert write_report(whole_run).read_text(encoding="utf-8") == html
    assert [path.name for path in (whole_run / "report").iterdir()] == ["index.html"]


@pytest.mark.parametrize("name", sorted({name for names in SECTIONS.values() for name in names}))
def test_what_is_missing_becomes_one_line(whole_run: Path, tmp_path: Path, name: str) -> None:
    source, target = whole_run / name, tmp_path / name
    target.parent.mkdir(exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    present = [section for section, names in SECTIONS.items() if name in names]
    assert [section["id"] for section in page.of("section")] == present
    notes = [p["id"] for p in page.of("p") if p.get("class") == "missing"]
    assert notes == [section for section in SECTIONS if section not in present]


def test_an_empty_folder_gives_a_page_of_notes(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert [p["id"] for p in page.of("p") if p.get("class") == "missing"] == list(SECTIONS)


def test_no_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        write_report(tmp_path / "absent")


DAMAGES = [b"[1, 2\n", b"\xff\xfe\n", b"[]\n", b'{"rows": [{"model": 3}]}\n']
JSON_FILES = [
    "result.json",
    "factors/final.json",
    "journals/search_first.jsonl",
    "metrics.jsonl",
    "evals/perplexity.json",
    "evals/positions.json",
    "evals/passkey.json",
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", JSON_FILES)
def test_a_damaged_file_is_named(run_dir: Path, name: str, damage: bytes) -> None:
    _assert_refused(run_dir, name, damage)


@pytest.mark.parametrize("damage", [b"a: [1\n", b"\xff\xfe\n", b"- 1\n"])
def test_a_damaged_recipe_is_named(run_dir: Path, damage: bytes) -> None:
    _assert_refused(run_dir, "config.yaml", damage)


def _assert_refused(run_dir: Path, name: str, damage: bytes) -> None:
    (run_dir / name).write_bytes(damage)
    with pytest.raises(InputError, match=re.escape(Path(name).name)) as caught:
        write_report(run_dir)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_changed_number_in_a_journal_is_noticed(run_dir: Path) -> None:
    path = run_dir / "journals" / "search_first.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace('"index": 2', '"index": 3')
    path.write_text("".join(lines))
    with pytest.raises(InputError, match=r"search_first\.jsonl.*line 4 is damaged"):
        write_report(run_dir)


def test_a_torn_last_line_is_left_out(run_dir: Path) -> None:
    whole = read_run(run_dir)
    for name in ("journals/search_first.jsonl", "metrics.jsonl"):
        with (run_dir / name).open("a") as stream:
            stream.write('{"stage": "fine_t')
    assert read_run(run_dir) == whole


def test_report_imports_no_torch() -> None:
    code = (
        "import sys, megatron_longrope.report; print([m for m in ('torch', 'megatron', 'pyplot') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_thin_results_still_make_a_page(tmp_path: Path) -> None:
    """One length, one step without a finite loss, a search without an evaluation, factors that
    change nothing."""
    for folder in ("factors", "evals"):
        (tmp_path / folder).mkdir()
    unchanged = fake.factors_json("none", fake.WINDOW)
    fake.write_json(tmp_path / "factors" / "none.json", fake.factor_file((None, unchanged)))
    row = {
        "model": "base",
        "method": "none",
        "length": 1,
        "document": "a",
        "tokens": 1,
        "nll_sum": None,
    }
    fake.write_json(tmp_path / "evals" / "perplexity.json", {"rows": [row]})
    bucket = {"bucket_start": 0, "bucket_end": 1, "temperature": "searched"}
    fake.write_json(
        tmp_path / "evals" / "positions.json", {"rows": [row | bucket | {"nll_sum": 0.0}]}
    )
    fake.write_json(tmp_path / "evals" / "passkey.json", {"rows": []})
    fake.write_json(tmp_path / "result.json", {"format": 1})
    (tmp_path / "metrics.jsonl").write_text(
        '{"stage": "fine_tune", "step": 0, "loss": NaN, "lr": 0.0}\n'
    )
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "∞: the loss was not a finite number" in page.text
    present = ["factors", "training", "length", "position", "table", "provenance"]
    assert [section["id"] for section in page.of("section")] == present


def test_a_second_interpolation_looks_as_its_method() -> None:
    second = method_look("second-yarn")
    assert (second.variable, second.marker) == (LOOKS["yarn"].variable, LOOKS["yarn"].marker)
    with_settings = method_look("yarn:8,beta_fast=4")
    assert with_settings == replace(LOOKS["yarn"], label="YaRN 8× (beta_fast=4)")
    assert (
        second.label == "YaRN on fine-tuned λ"
        and method_look("dynamic-ntk:8").label == "Dynamic NTK 8×"
    )
    assert (
        method_look("second-hand").label == "second-hand"
        and method_look("second-hand").marker == OTHER.marker
    )
