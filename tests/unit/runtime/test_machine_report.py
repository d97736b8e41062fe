"""`longrope doctor`: what it reports agrees with the packages themselves, and absences are told
apart."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import sys
from pathlib import Path

import psutil
import pytest
import torch
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from launchers.main import main
from megatron_longrope.runtime import machine_report
from megatron_longrope.runtime.gpu_stack import choose_engine, gpu_stack
from megatron_longrope.runtime.machine_report import Finding

ROOT = Path(__file__).resolve().parents[3]
NAMES = {
    "Python",
    "torch",
    "megatron-core",
    "Python packages",
    "gloo",
    "CUDA",
    "NCCL",
    "Transformer Engine",
    "flash-attn",
    "Apex",
    "Slurm",
    "CPU cores",
    "Memory",
}


def test_the_report_covers_everything_and_each_absence_has_its_cost() -> None:
    findings = machine_report.machine_report()
    assert {finding.name for finding in findings} == NAMES
    assert all(
        finding.detail and re.fullmatch(r"[A-Z`].+\.", finding.cost_of_absence)
        for finding in findings
    )
    by_name = {finding.name: finding for finding in findings}
    assert importlib.metadata.version("megatron-core") in by_name["megatron-core"].detail
    assert by_name["CUDA"].present == torch.cuda.is_available()
    assert machine_report.can_run_main_job(findings)


def test_the_ranges_are_those_of_the_packaging() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    requirements = {
        requirement.name: requirement.specifier
        for line in re.findall(r'^ +"([A-Za-z][^"]*)",', text, re.MULTILINE)
        if not line.startswith(("Development", "Intended", "Operating", "Programming", "Topic"))
        for requirement in [_requirement(line)]
        if requirement is not None
    }
    assert requirements["torch"] == machine_report.SUPPORTED_TORCH
    assert requirements["megatron-core"] == machine_report.SUPPORTED_MEGATRON_CORE
    assert requirements["transformer-engine"] == machine_report.SUPPORTED_TRANSFORMER_ENGINE
    assert set(machine_report.REQUIRED_PACKAGES) <= set(requirements)
    python = re.search(r'^requires-python = "(.*)"', text, re.MULTILINE)
    assert python is not None
    assert SpecifierSet(python[1]) == machine_report.SUPPORTED_PYTHON


def _requirement(line: str) -> Requirement | None:
    try:
        return Requirement(line)
    except ValueError:
        return None


def test_every_direct_dependency_is_pinned() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {
        Requirement(line).name for line in text.splitlines() if line and not line.startswith("#")
    }
    assert (
        set(machine_report.REQUIRED_PACKAGES) | {"torch", "megatron-core", "pytest", "ruff", "mypy"}
        <= pinned
    )


@pytest.mark.parametrize(
    ("version", "present"),
    [("0.16.1", True), ("0.16.9", True), ("0.15.0", False), ("0.17.0", False), (None, False)],
)
def test_megatron_core_outside_its_range(
    version: str | None, present: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_report, "installed_version", lambda name: version)
    finding = machine_report.megatron_core()
    assert (finding.present, finding.essential) == (present, True)
    assert machine_report.can_run_main_job([finding]) == present


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        machine_report, "installed_version", lambda name: None if name == "rich" else "1"
    )
    finding = machine_report.python_packages()
    assert not finding.present
    assert finding.detail == "missing: rich"


def put_package(folder: Path, monkeypatch: pytest.MonkeyPatch, *files: str) -> None:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()


def test_nvidias_apex_is_told_from_the_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_package(tmp_path, monkeypatch, "apex/__init__.py")
    assert "unrelated" in machine_report.apex().detail
    put_package(tmp_path, monkeypatch, "apex/optimizers/__init__.py")
    assert "amp_C" in machine_report.apex().detail
    assert not machine_report.apex().present
    put_package(tmp_path, monkeypatch, "amp_C.py")
    assert machine_report.apex().present
    assert "apex" not in sys.modules


@pytest.mark.parametrize(
    "line", ["raise ImportError('undefined symbol: x')", "raise OSError('libcudart.so')"]
)
def test_a_package_that_does_not_load_is_absent(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_package(tmp_path, monkeypatch, "flash_attn/__init__.py")
    (tmp_path / "flash_attn" / "__init__.py").write_text(line)
    monkeypatch.setattr(machine_report, "installed_version", lambda name: "2.8.3")
    finding = machine_report.flash_attention()
    assert not finding.present
    assert "does not load" in finding.detail


def test_a_program_is_found_beside_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert machine_report.find_program("sbatch") == str(program)
    assert machine_report.find_program("no-such-program") is None


def test_a_containers_memory_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    assert machine_report.container_memory_limit(limit) is None
    limit.write_text("max\n")
    assert machine_report.container_memory_limit(limit) is None
    limit.write_text(f"{2 << 30}\n")
    assert machine_report.container_memory_limit(limit) == 2 << 30
    monkeypatch.setattr(machine_report, "container_memory_limit", lambda: 2 << 30)
    assert machine_report.memory().present == (psutil.virtual_memory().total < 0)
    assert machine_report.memory().detail.startswith("2.0 GiB")


def test_doctor_writes_what_it_shows(tmp_path: Path) -> None:
    path = tmp_path / "doctor.json"
    result = CliRunner().invoke(main, ["doctor", "--json", str(path)])
    assert result.exit_code == 0, result.stderr
    written = json.loads(path.read_text())
    assert written["can_run"] is True
    assert {finding["name"] for finding in written["findings"]} == NAMES
    assert "megatron-core" in result.stdout
    engine = choose_engine(gpu_stack())
    assert written["engine"] == {"engine": engine.engine, "reason": engine.reason}
    assert f"--engine auto takes {engine.engine}" in result.stdout


def test_doctor_ends_with_1_where_something_essential_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = Finding("torch [bold]", False, "not installed", "Nothing runs.", essential=True)
    monkeypatch.setattr(machine_report, "machine_report", lambda: [missing])
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "torch [bold]" in result.stdout
    assert "Nothing runs." in result.stdout
