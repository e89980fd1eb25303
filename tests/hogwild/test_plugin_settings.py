"""Settings under which no cache can be shared are refused with their options, before all else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentpar.errors import CannotShare
from agentpar.runtime.hogwild.plugin import settings


def config(**changed: Any) -> SimpleNamespace:
    """What is read of vLLM's config, all of it good but for what is ``changed``."""

    def part(**names: Any) -> SimpleNamespace:
        return SimpleNamespace(**{name: changed.get(name, good) for name, good in names.items()})

    return part(
        parallel_config=part(
            tensor_parallel_size=1,
            pipeline_parallel_size=1,
            data_parallel_size=1,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
            enable_dbo=False,
        ),
        cache_config=part(cache_dtype="auto"),
        speculative_config=None,
        kv_transfer_config=None,
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size is 2, and has to be 1"),
        ({"data_parallel_size": 4}, "--data-parallel-size is 4"),
        ({"decode_context_parallel_size": 2}, "--decode-context-parallel-size is 2"),
        ({"prefill_context_parallel_size": 2}, "--prefill-context-parallel-size is 2"),
        ({"enable_dbo": True}, "--enable-dbo is set"),
        ({"speculative_config": object()}, "--speculative-config is set"),
        ({"kv_transfer_config": object()}, "--kv-transfer-config is set"),
        ({"cache_dtype": "fp8"}, "--kv-cache-dtype is fp8"),
        ({"cache_dtype": "turboquant_4bit_nc"}, "--kv-cache-dtype is turboquant_4bit_nc"),
    ],
)
def test_what_rules_sharing_out_is_refused_with_its_option(
    changed: dict[str, Any], said: str
) -> None:
    """And with what to do."""
    (fault,) = settings.faults(config(**changed))
    assert fault.startswith(said)
    with pytest.raises(CannotShare, match="or start it without --hogwild"):
        settings.refuse([fault])


@pytest.mark.parametrize("cache", ["auto", "bfloat16", "float16"])
def test_other_settings_are_none_of_ours(cache: str) -> None:
    """Nor is tensor parallelism, where each worker has some heads of every row."""
    settings.refuse(settings.faults(config(cache_dtype=cache, tensor_parallel_size=2)))


def test_all_faults_are_told_at_once() -> None:
    """Nobody has to start a server twice to hear of the second."""
    with pytest.raises(CannotShare) as refused:
        settings.refuse(settings.faults(config(enable_dbo=True, cache_dtype="fp8_e4m3")))
    assert "--enable-dbo is set" in str(refused.value)
    assert "; --kv-cache-dtype is fp8_e4m3" in str(refused.value)
