"""Reading Megatron-LM's common.pt, a pickle of any objects, without importing what it names.

Megatron-LM saves its arguments there (an argparse.Namespace), with enums and other objects of its
own classes. A closed list of names would refuse most files. So every class and function that the
pickle names is replaced by an empty stand-in: calling one makes an object that does nothing, and
the plain values around it are read as they are.
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
    """Takes the place of any class or function that a pickle names; it only keeps its state."""

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
        """Does nothing; pickle calls it for each entry of a subclass of list."""

    def __setitem__(self, _: object, __: object) -> None:
        """Does nothing; pickle calls it for each entry of a subclass of dict."""


class Namespace(_StandIn):
    """Takes the place of argparse.Namespace, which holds Megatron-LM's arguments."""


class _InertUnpickler(pickle.Unpickler):
    """Never imports anything: each name becomes a stand-in, each stored tensor an empty one."""

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
    """Returns the dictionary in common.pt; raises InputError where it is missing or damaged."""
    if not path.is_file():
        raise InputError(
            FIELD, path.parent, f"not a whole Megatron-LM checkpoint: it has no {path.name}"
        )
    try:
        # torch.save writes a zip archive, with the pickle in data.pkl and tensors beside it.
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
