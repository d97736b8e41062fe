"""How a runtime ends: no process leaves while another still needs what it holds."""

from __future__ import annotations

import time

import pytest

from megatron_longrope.runtime import start_runtime
from tests.support.spawn import run_distributed

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]
_LATE_SECONDS = 2.0


def _read_late() -> bytes:
    with start_runtime(threads=1) as runtime:
        if runtime.is_main:  # holds the store, and has nothing more to do
            runtime.store.set("last result", "42")
            return b""
        time.sleep(_LATE_SECONDS)
        value: bytes = runtime.store.get("last result")
        return value


def test_the_process_with_the_store_waits_for_those_that_read_from_it() -> None:
    assert run_distributed(2, _read_late, timeout=90) == [b"", b"42"]
