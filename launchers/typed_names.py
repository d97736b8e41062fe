"""Errors about a recipe, told in the words of the command line that it came from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from megatron_longrope.errors import InputError

_OPTIONS = {"model": "--model", "run_dir": "--run-dir", "setting": "--set"}
"""Fields of errors, and the options that stand for them in every command."""
_FITTED = {
    "documents": "--text",
    "corpus.documents": "--text",
    "target_length": "--target",
}
"""Further ones where a recipe is fitted to a model, documents and a target."""
_LENGTHS = (".length", ".sequence_length", ".lengths")
"""Ends of the keys that follow from --target in a fitted recipe."""
_PLACE = re.compile(r" \(in \S+\)$")


@contextmanager
def typed_names(overrides: Sequence[str] = ()) -> Iterator[None]:
    """Makes an InputError raised inside name what the person typed.

    A key that `--set` set is named with it, other fields by the options that they stand for.

    >>> with typed_names(["seed=-1"]):
    ...     raise InputError("seed", -1, "must be 0 or more")
    Traceback (most recent call last):
    ...
    megatron_longrope.errors.InputError: --set seed=-1: must be 0 or more
    """
    try:
        yield
    except InputError as error:
        field, value, rule = error.field, error.value, error.rule
        typed = _override_of(field, overrides)
        if typed is not None:
            key, _, value = typed.partition("=")
            field, rule = f"--set {key}", _PLACE.sub("", rule)
        raise InputError(_OPTIONS.get(field, field), value, rule) from error


@contextmanager
def fitted_names(overrides: Sequence[str]) -> Iterator[None]:
    """Does what `typed_names` does, for a recipe that the person has not seen.

    Lengths are named by `--target`, which they follow from; other keys with how to set them.
    """
    with typed_names(overrides):
        try:
            yield
        except InputError as error:
            field, rule = error.field, error.rule
            if _override_of(field, overrides) is None:
                if field.endswith(_LENGTHS):
                    field, rule = "--target", f"{rule} (of {field}, fitted to the target)"
                elif "." in field and field not in _FITTED:
                    rule = f"{_PLACE.sub('', rule)} (change it with --set {field}=…)"
                field = _FITTED.get(field, field)
            raise InputError(field, error.value, rule) from error


def _override_of(field: str, overrides: Sequence[str]) -> str | None:
    """Returns the last override of `field`, of a group that holds it or of a key within it."""
    for override in reversed(overrides):
        key = override.partition("=")[0]
        if field == key or field.startswith(f"{key}.") or key.startswith(f"{field}."):
            return override
    return None
