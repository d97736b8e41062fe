"""Megatron-LM's common.pt, a pickle of any objects, read without importing what it names.

Whatever the pickle names is replaced by an empty stand-in that does nothing.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_longrope.errors import InputError
from megatron_longrope.model.checkpoints.safe_metadata import FIELD, one_line

_MAX_COMMON_BYTES = 64 << 20


class _StandIn:
    """Takes the place of whatever a pickle names; takes its state, does nothing."""

    def __new__(cls, *_: object, **__: object) -> _StandIn:
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(
                {key: value for key, value in state.items() if isinstance(key, str)}
            )

    def append(self, _: object) -> None:
        """What pickle calls for subclasses of list."""

    def __setitem__(self, _: object, __: object) -> None:
        """What pickle calls for subclasses of dict."""


class Namespace(_StandIn):
    """argparse's, which holds Megatron-LM's arguments."""


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("argparse", "Namespace"):
            return Namespace
        return (
            OrderedDict
            if (module_name, global_name) == ("collections", "OrderedDict")
            else _StandIn
        )

    def persistent_load(self, pid: Any) -> Any:
        return _StandIn()


def read_common(path: Path) -> Mapping[str, Any]:
    """Returns what common.pt holds; raises InputError where it is missing or damaged."""
    if not path.is_file():
        raise InputError(
            FIELD, path.parent, f"not a whole Megatron-LM checkpoint: it has no {path.name}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            (member,) = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
            if member.file_size > _MAX_COMMON_BYTES:
                raise InputError(FIELD, path, "larger than any arguments")
            with archive.open(member) as stream:
                common = _InertUnpickler(stream).load()
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        OSError,
        ValueError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        MemoryError,
        NotImplementedError,
    ) as error:
        raise InputError(FIELD, path, f"damaged: {one_line(error)}") from error
    if not isinstance(common, dict):
        raise InputError(FIELD, path, "damaged: it does not hold a dictionary")
    return common
