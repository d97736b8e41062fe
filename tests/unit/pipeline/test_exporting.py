"""What of a factor set Hugging Face's format carries."""

from __future__ import annotations

import pytest

from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.evaluating import extended_factor_set
from megatron_longrope.pipeline.stages.exporting import export_factor_set
from tests.support.factor_sets import made_factors


def test_the_export_takes_two_ranges_and_says_what_it_leaves() -> None:
    whole = extended_factor_set(
        [made_factors(2048), made_factors(8192, growth=9)], [(256, made_factors(256, growth=0.1))]
    )
    carried, left_out = export_factor_set(whole, 256)
    assert [entry.up_to for entry in carried.ranges] == [256, None]
    assert carried.for_length(100) == whole.for_length(100) and carried.for_length(
        9000
    ) == whole.for_length(9000)
    assert len(left_out) == 1 and "2k" in left_out[0]
    sharper = extended_factor_set(
        [made_factors(2048), made_factors(8192, temperature=1.2)], [(256, made_factors(256))]
    )
    carried, left_out = export_factor_set(sharper, 256)
    assert (
        carried.ranges[-1].factors.target_length == 2048
        and "8k" in left_out[0]
        and "1.2" in left_out[0]
    )
    none = extended_factor_set([made_factors(2048)], [(256, made_factors(256, temperature=1.0))])
    with pytest.raises(InputError, match="one attention_factor"):
        export_factor_set(none, 256)
