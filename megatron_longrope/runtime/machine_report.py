"""The probes behind `longrope doctor`: what this machine has, lacks, and what each absence costs.

Every probe looks and reports. None changes anything, and an absent package is a finding, not an
error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from packaging.specifiers import SpecifierSet

# The ranges stand in pyproject.toml too; a test checks that both agree.
SUPPORTED_PYTHON = SpecifierSet(">=3.10,<3.13")
SUPPORTED_TORCH = SpecifierSet(">=2.9")
SUPPORTED_MEGATRON_CORE = SpecifierSet(">=0.16.1,<0.17")
SUPPORTED_TRANSFORMER_ENGINE = SpecifierSet(">=2.9,<2.12")
REQUIRED_PACKAGES = (
    "click",
    "cmaes",
    "jinja2",
    "matplotlib",
    "numpy",
    "packaging",
    "psutil",
    "pydantic",
    "rich",
    "ruamel.yaml",
    "safetensors",
    "tokenizers",
    "typing_extensions",
)
_GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for on this machine."""

    name: str
    present: bool
    """Whether it is there and usable."""
    detail: str
    """What was seen."""
    cost_of_absence: str
    """What does not work, or works otherwise, without it."""
    essential: bool = False
    """Whether extending a model, the main job, is impossible without it."""


def machine_report() -> list[Finding]:
    """Returns every finding, the essential ones first."""
    probes: Sequence[Callable[[], Finding]] = (
        python,
        torch_package,
        megatron_core,
        python_packages,
        gloo,
        cuda,
        nccl,
        transformer_engine,
        flash_attention,
        apex,
        slurm,
        cores,
        memory,
    )
    return [probe() for probe in probes]


def can_run_main_job(findings: Sequence[Finding]) -> bool:
    """Returns whether nothing essential is missing."""
    return all(finding.present for finding in findings if finding.essential)


def python() -> Finding:
    """Looks at the version of Python."""
    version = ".".join(map(str, sys.version_info[:3]))
    cost = "Nothing runs: take one of the supported versions."
    return _in_range("Python", version, SUPPORTED_PYTHON, cost)


def torch_package() -> Finding:
    """Looks for torch, and what it was built for."""
    built_for = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    finding = _in_range(
        "torch", torch.__version__, SUPPORTED_TORCH, "Nothing runs: install a supported torch."
    )
    return Finding(
        finding.name,
        finding.present,
        f"{finding.detail}; {built_for}",
        finding.cost_of_absence,
        True,
    )


def megatron_core() -> Finding:
    """Looks for megatron-core in the versions that the CPU platform is made for and tested with."""
    cost = "Nothing that touches a model runs: pip install -c constraints.txt megatron-core."
    return _in_range(
        "megatron-core", installed_version("megatron-core"), SUPPORTED_MEGATRON_CORE, cost
    )


def python_packages() -> Finding:
    """Looks for the other packages that every command may need."""
    missing = [name for name in REQUIRED_PACKAGES if installed_version(name) is None]
    detail = "missing: " + ", ".join(missing) if missing else f"all {len(REQUIRED_PACKAGES)} there"
    cost = "Some commands stop at the first use: pip install -c constraints.txt -e ."
    return Finding("Python packages", not missing, detail, cost, essential=True)


def gloo() -> Finding:
    """Looks for gloo, the backend of process groups on CPUs; essential where there is no GPU."""
    present = torch.distributed.is_available() and torch.distributed.is_gloo_available()
    cost = "No process groups on CPUs: without a GPU nothing runs."
    essential = not torch.cuda.is_available()
    return Finding("gloo", present, "in torch" if present else "not in this torch", cost, essential)


def cuda() -> Finding:
    """Looks for CUDA, with each device's name, memory and compute capability."""
    cost = (
        "Everything runs on the CPU: right, but fit for small models and some ten thousand tokens "
        "only."
    )
    if not torch.cuda.is_available():
        seen = "no usable device or driver" if torch.version.cuda else "this torch is a CPU build"
        return Finding("CUDA", False, seen, cost)
    devices = [
        torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())
    ]
    described = [
        f"{d.name} ({d.total_memory / _GIB:.0f} GiB, sm{d.major}{d.minor})" for d in devices
    ]
    detail = "; ".join(f"{described.count(text)} × {text}" for text in dict.fromkeys(described))
    return Finding("CUDA", True, f"{torch.version.cuda}: {detail}", cost)


def nccl() -> Finding:
    """Looks for NCCL, the backend of process groups on GPUs."""
    present = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    detail = "not in this torch"
    if present:
        detail = ".".join(map(str, torch.cuda.nccl.version()))
    return Finding("NCCL", present, detail, "No job on GPUs: on CPUs gloo does its work.")


def transformer_engine() -> Finding:
    """Looks for Transformer Engine, in the versions this megatron-core works with, and loads it."""
    cost = (
        "No FP8 and no fused layers: torch's own attention and norms serve, equal up to rounding."
    )
    version = installed_version("transformer-engine") or installed_version(
        "transformer-engine-torch"
    )
    finding = _in_range(
        "Transformer Engine", version, SUPPORTED_TRANSFORMER_ENGINE, cost, essential=False
    )
    return _loadable(finding, "transformer_engine.pytorch") if finding.present else finding


def flash_attention() -> Finding:
    """Looks for the flash-attn package, which Transformer Engine can use too."""
    cost = (
        "Transformer Engine attends with cuDNN's kernels instead; torch's own flash kernels are "
        "not affected."
    )
    version = installed_version("flash-attn")
    finding = Finding("flash-attn", version is not None, version or "not installed", cost)
    return _loadable(finding, "flash_attn") if finding.present else finding


def apex() -> Finding:
    """Looks for NVIDIA's Apex, whose optimizers and compiled kernels tell it from its namesake.

    The package `apex` on PyPI is an unrelated toolkit.
    """
    cost = (
        "Transformer Engine's fused Adam does its work; where that is absent too, torch's: slower, "
        "not different."
    )
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return Finding("Apex", False, "not installed", cost)
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    if not any((place / "optimizers").is_dir() for place in places):
        return Finding(
            "Apex", False, "the installed `apex` is an unrelated package, not NVIDIA's", cost
        )
    if importlib.util.find_spec("amp_C") is None:
        return Finding("Apex", False, "installed without its compiled kernels (amp_C)", cost)
    return Finding("Apex", True, installed_version("apex") or "installed", cost)


def slurm() -> Finding:
    """Looks for the two Slurm programs that our jobs use."""
    missing = [name for name in ("sbatch", "srun") if find_program(name) is None]
    detail = "missing: " + ", ".join(missing) if missing else str(find_program("sbatch"))
    cost = (
        "`longrope launch slurm` prints a job but cannot submit it from here; torchrun serves a "
        "single machine."
    )
    return Finding("Slurm", not missing, detail, cost)


def cores() -> Finding:
    """Counts the CPU cores that this process may use."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return Finding(
        "CPU cores", count >= 2, str(count), "The demonstration takes twice its time on one core."
    )


def memory() -> Finding:
    """Measures the main memory that this process may use, in GiB.

    That is the machine's, or the container's limit where it is less.
    """
    machine = psutil.virtual_memory()
    limit = container_memory_limit()
    total = min(machine.total, limit) if limit is not None else machine.total
    detail = f"{total / _GIB:.1f} GiB, {min(machine.available, total) / _GIB:.1f} GiB of it free"
    return Finding(
        "Memory", total >= 4 * _GIB, detail, "With less than 4 GiB the demonstration may not fit."
    )


def installed_version(distribution: str) -> str | None:
    """Returns the version of an installed distribution; None where it is absent."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_program(name: str) -> str | None:
    """Returns the path of a program, looked for beside this interpreter first, where pip
    puts programs."""
    beside = Path(sys.executable).parent
    return shutil.which(name, path=str(beside)) or shutil.which(name)


def container_memory_limit(path: Path = Path("/sys/fs/cgroup/memory.max")) -> int | None:
    """Returns the memory limit of this control group in bytes; None where there is none."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _in_range(
    name: str, version: str | None, supported: SpecifierSet, cost: str, essential: bool = True
) -> Finding:
    if version is None:
        return Finding(name, False, "not installed", cost, essential)
    present = supported.contains(version, prereleases=True)
    rule = f"supported: {supported}" if present else f"outside the supported {supported}"
    return Finding(name, present, f"{version} ({rule})", cost, essential)


def _loadable(finding: Finding, module: str) -> Finding:
    """Returns `finding`, marked as absent where its module is installed but cannot be loaded.

    That happens to packages built for another torch, or where the driver is missing.
    """
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        reason = f"{finding.detail}, but does not load: {' '.join(str(error).split())[:120]}"
        return Finding(finding.name, False, reason, finding.cost_of_absence, finding.essential)
    return finding
