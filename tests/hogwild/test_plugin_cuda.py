"""The plugin's CUDA side over vLLM's real classes, as far as that goes without a GPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from tiny import tiny

from agentpar.errors import CannotShare, UsageError
from agentpar.runtime import launch
from agentpar.runtime.hogwild import plugin
from agentpar.runtime.hogwild.rope import Rope

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has said that the plugin may start on CUDA."""
    monkeypatch.setenv(plugin.CUDA, "1")


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """vLLM takes itself to be on CUDA, in a server that was started for groups."""
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.input_processor import InputProcessor

    monkeypatch.setenv(plugin.SWITCH, "1")
    monkeypatch.setattr(current_platform, "device_type", "cuda", raising=False)
    monkeypatch.setattr(InputProcessor, "process_inputs", InputProcessor.process_inputs)
    monkeypatch.setattr(AsyncLLM, "generate", AsyncLLM.generate)
    yield
    AttentionBackendEnum.CUSTOM.clear_override()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that vLLM can be configured for."""
    folder = tmp_path_factory.mktemp("model")
    tiny(dtype=torch.float32, layers=1).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_whole_engines_write_what_a_dense_pass_says() -> None:
    """Three orders of a cache's axes, all layouts, ordinary requests beside; a head that the kernel
    does not take is answered in torch, and a step with a prompt in it too."""
    found = _found_by("cuda_cases.py")
    first = found["tokens outside"]
    assert set(first["kernel"]) == {"contiguous", "combined", "interleaved", "alone"}
    assert all(first["kernel"].values())
    assert found["layers inside"]["kernel"]["contiguous"]
    assert not found["no head for the kernel"]["kernel"]["combined"]
    assert len({tuple(one["strides"]) for one in found.values()}) == len(found)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_replayed_graph_answers_the_groups_of_its_step_and_no_others() -> None:
    """Padded batches with rows and strangers, steps with a prompt, a group that has gone, and one
    that a graph has no room for; the captured kernels see the same tensors in all steps."""
    found = _found_by("graph_cases.py")
    assert found["contiguous"].count("FULL") >= 5
    assert found["strangers"][1:] == ["FULL"] * 4
    assert found["combined"][2] == "NONE", "an injected text is read in this step"
    assert found["combined"].count("FULL") >= 4
    assert set(found["crowded"]) == {"NONE"}
    assert found["sets of tensors"] == 1


def _found_by(name: str) -> Any:
    """What the program ``name`` of this folder prints in the end."""
    program = Path(__file__).with_name(name)
    path = os.pathsep.join((str(Path(plugin.__file__).parents[4]), str(program.parent)))
    ran = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_it_starts_on_cuda_only_where_somebody_says_so(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """The refusal says what has not been done, and both ways out."""
    monkeypatch.delenv(plugin.CUDA, raising=False)
    with pytest.raises(UsageError, match="have not run on a GPU yet") as refused:
        plugin.serve_args("cuda")
    assert f"{plugin.CUDA}=1" in str(refused.value)
    assert "leave out --hogwild" in str(refused.value)
    assert not launch.can_share("cuda", folder)
    monkeypatch.setenv(plugin.CUDA, "1")
    assert launch.can_share("cuda", folder)
    with pytest.raises(UsageError, match="not on 'tpu'"):
        plugin.serve_args("tpu")


@pytest.mark.usefixtures("allowed")
def test_vllm_takes_the_arguments(folder: Path) -> None:
    """Its own parser reads them, and each class among them can be imported."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    arguments = ["--model", str(folder), *plugin.serve_args("cuda")]
    found = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    assert found.attention_backend in (AttentionBackendEnum.CUSTOM, "CUSTOM")
    assert found.enforce_eager is True
    assert found.async_scheduling is False
    for path in (found.worker_cls, found.scheduler_cls, *found.middleware):
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), type)


@pytest.mark.usefixtures("on_cuda")
def test_a_server_on_cuda_that_nobody_allowed_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where it was not us who wrote its command line."""
    monkeypatch.delenv(plugin.CUDA, raising=False)
    with pytest.raises(CannotShare, match="have not run on a GPU yet"):
        plugin.register()


@pytest.mark.usefixtures("on_cuda", "allowed")
def test_ours_is_custom_and_vllm_finds_it_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """As FlashAttention in bfloat16; vLLM's CPU backend stays as it is."""
    from vllm.platforms.interface import DeviceCapability
    from vllm.v1.attention.backend import AttentionCGSupport
    from vllm.v1.attention.backends.registry import AttentionBackendEnum
    from vllm.v1.attention.selector import AttentionSelectorConfig

    plugin.register()
    assert not AttentionBackendEnum.CPU_ATTN.is_overridden()
    backend: Any = AttentionBackendEnum.CUSTOM.get_class()
    assert backend.__module__ == "agentpar.runtime.hogwild.plugin.cuda.backend"
    for dtype, reasons in (torch.bfloat16, []), (torch.float32, ["dtype not supported"]):
        asked = AttentionSelectorConfig(128, dtype, "auto", 16)
        found = backend.validate_configuration(
            device_capability=DeviceCapability(9, 0), **asked._asdict()
        )
        assert found == reasons
    assert backend.get_name() == "FLASH_ATTN"
    builder = backend.get_builder_cls()
    for setting, support in (
        ("", AttentionCGSupport.NEVER),
        ("pieces", AttentionCGSupport.NEVER),
        ("decode", AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE),
    ):
        monkeypatch.setenv(plugin.GRAPHS, setting)
        assert builder.get_cudagraph_support(None, None) == support


@pytest.mark.usefixtures("allowed")
def test_graphs_are_asked_for_by_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, the server captures none; another is refused with those that there are."""
    assert "--enforce-eager" in plugin.serve_args("cuda")
    for word in ("pieces", "decode"):
        monkeypatch.setenv(plugin.GRAPHS, word)
        assert "--no-enforce-eager" in plugin.serve_args("cuda")
    monkeypatch.setenv(plugin.GRAPHS, "all")
    with pytest.raises(UsageError, match="GRAPHS is 'all': it can be 'pieces' or 'decode'"):
        plugin.serve_args("cuda")


def test_a_server_whose_steps_cannot_be_followed_is_refused(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Each option that is wrong or missing stands in the message; else there is none."""
    from vllm import EngineArgs

    from agentpar.runtime.hogwild.plugin.cuda.worker import require_settings

    eager = EngineArgs(model=str(folder), skip_tokenizer_init=True, enforce_eager=True)
    config = eager.create_engine_config()
    config.scheduler_config.async_scheduling = False
    require_settings(config)
    config.model_config.enforce_eager = False
    config.scheduler_config.async_scheduling = True
    config.parallel_config.enable_dbo = True
    config.parallel_config.pipeline_parallel_size = 2
    with pytest.raises(CannotShare) as refused:
        require_settings(config)
    for option in (
        "--pipeline-parallel-size is 2, and has to be 1",
        "--enforce-eager is missing",
        "--no-async-scheduling is missing",
        "--enable-dbo is set",
    ):
        assert option in str(refused.value)
    assert "context" not in str(refused.value)
    monkeypatch.setenv(plugin.GRAPHS, "pieces")
    with pytest.raises(CannotShare) as refused:
        require_settings(config)
    assert "--enforce-eager" not in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (1, 0, 2, 3)])
def test_the_cache_is_read_where_vllm_writes_it(
    monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Key and value of a token side by side, in whichever order its other axes are."""
    from agentpar.runtime.hogwild.plugin.cuda import backend

    layer = _layer(monkeypatch, order, dtype)
    cache = backend.packed(layer)
    assert (cache.block_size, cache.behind) == (16, 32)
    assert cache.keys == cache.values
    assert not layer.kv_cache.any()


def test_a_cache_that_lies_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM that stores the value first would be read wrongly, so it does not start."""
    from rehearsal import store
    from vllm.v1.attention.backends import flash_attn

    from agentpar.runtime.hogwild.plugin.cuda import backend

    def turned(key: Any, value: Any, keys: Any, values: Any, *rest: Any) -> None:
        store(value, key, keys, values, *rest)

    layer = _layer(monkeypatch, (0, 1, 2, 3), torch.bfloat16)
    monkeypatch.setattr(flash_attn, "reshape_and_cache_flash", turned)
    with pytest.raises(CannotShare, match="does not store the key and the value of a token"):
        backend.packed(layer)


def _layer(monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...], dtype: torch.dtype) -> Any:
    """A layer with our attention, made by vLLM's constructor, and a cache in this order."""
    from rehearsal import store
    from vllm.v1.attention.backends import flash_attn

    from agentpar.runtime.hogwild.plugin.cuda.backend import Impl

    monkeypatch.setattr(flash_attn, "reshape_and_cache_flash", store, raising=False)
    shape = (5, 2, 16, 64)  # blocks, heads, tokens, key and value
    cache = torch.zeros([shape[axis] for axis in order], dtype=dtype)
    cache = cache.permute([order.index(axis) for axis in range(4)])
    impl = Impl(4, 32, 1.0, 2, None, None, "auto")
    return SimpleNamespace(impl=impl, kv_cache=cache, _k_scale=1.0, _v_scale=1.0)


@pytest.mark.parametrize(
    ("rope", "numbers", "taken"),
    [
        (Rope((0.1,) * 64), 128, True),
        (Rope((0.1,) * 16), 32, True),
        (Rope((0.1,) * 64, "pairs"), 128, False),
        (Rope((0.1,) * 32), 128, False),
        (Rope((0.1,) * 48), 96, False),
        (Rope((0.1,) * 8), 16, False),
    ],
    ids=["128", "32", "pairs", "half turns", "no power of two", "too small"],
)
def test_the_kernel_gets_what_it_takes(rope: Rope, numbers: int, taken: bool) -> None:
    """All else is answered in torch."""
    from agentpar.runtime.hogwild.plugin.cuda.decode import fits

    assert fits(rope, numbers) is taken
