"""Tensors found inside torch.save's records, and records that are not what a plain tensor's looks
like."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoints_tools.common.tensor_file import is_finite
from megatron_longrope.model.checkpoints.tensor_record import locate_tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("crc", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(7,), (3, 5), (1, 4, 6)])
def test_the_numbers_lie_where_it_says(
    sizes: tuple[int, ...], dtype: torch.dtype, crc: bool
) -> None:
    tensor = torch.randn(sizes).to(dtype)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(crc)
    file = io.BytesIO(b"other records come first")
    start = file.seek(0, io.SEEK_END)
    torch.save(tensor, file)
    torch.serialization.set_crc32_options(before)
    length = file.tell() - start
    file.write(b"and after")
    place = locate_tensor(file, start, length)
    assert place is not None and (place.dtype, place.sizes) == (dtype, sizes)
    raw = file.getvalue()[place.start : place.start + tensor.nbytes]
    assert raw == tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(4, 6).t(),
        torch.ones(8)[2:],
        torch.ones(3).int(),
        [None],
        {"a": 1},
        torch.nn.Parameter(torch.ones(2)),
    ],
)
def test_what_is_no_plain_tensor_is_left_to_torch(value: object, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "record")
    with (tmp_path / "record").open("rb") as file:
        assert locate_tensor(file, 0, (tmp_path / "record").stat().st_size) is None


@given(st.integers(0, 2000), st.integers(0, 255))
def test_a_damaged_record_never_raises_nor_leads_outside(position: int, byte: int) -> None:
    file = io.BytesIO()
    torch.save(torch.ones(20, 5), file)
    raw = bytearray(file.getvalue())
    raw[position % len(raw)] = byte
    place = locate_tensor(io.BytesIO(bytes(raw)), 0, len(raw))
    if place is not None:
        assert place.start >= 0 and place.start + torch.Size(
            place.sizes
        ).numel() * place.dtype.itemsize <= len(raw)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", [0, 1023, 1024, 2047, 2048, 2100])
def test_one_number_that_is_not_finite_is_found(dtype: torch.dtype, where: int) -> None:
    tensor = torch.full((2101,), torch.finfo(dtype).max, dtype=dtype)  # whose sums overflow
    assert is_finite(tensor)
    for wrong in (float("nan"), float("inf"), -float("inf")):
        tensor[where] = wrong
        assert not is_finite(tensor)
