"""Each hook into vLLM is where the plugin expects it; where one moved, the server says so."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from agentpar.errors import CannotShare
from agentpar.runtime.hogwild import plugin
from agentpar.runtime.hogwild.plugin import contract
from agentpar.runtime.hogwild.plugin.contract import HOOKS, Hook

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.path)
def test_the_hook_is_there(hook: Hook) -> None:
    """In the installed vLLM, with what the plugin relies on."""
    assert contract.fault_of(hook) is None


def test_no_hook_stands_twice_and_each_has_its_reason() -> None:
    """The table is read by people, too."""
    assert len({hook.name for hook in HOOKS}) == len(HOOKS)
    assert all(hook.why for hook in HOOKS)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.path)
def test_a_hook_that_has_gone_is_named(hook: Hook) -> None:
    """Each of them, were it called something else, stops the server with its name and version."""
    gone = replace(hook, path=f"{hook.path}_as_it_was")
    with pytest.raises(CannotShare) as refused:
        contract.check([gone])
    assert gone.name in str(refused.value)
    assert contract.version() in str(refused.value)


def test_a_hook_that_takes_something_else_is_told_with_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM renames a parameter: the message has what is there and what is needed."""
    module = importlib.import_module("vllm.v1.core.sched.scheduler")

    def _free_request(self: object, request: object, *, later: bool) -> None: ...

    monkeypatch.setattr(module.Scheduler, "_free_request", _free_request)
    with pytest.raises(CannotShare) as refused:
        contract.check(contract.hooks("cpu"))
    said = str(refused.value)
    assert "vllm.v1.core.sched.scheduler.Scheduler._free_request" in said
    assert "takes (self, request, later)" in said
    assert "(self, request, delay_free_blocks) is needed" in said
    assert "start the server without --hogwild" in said


def test_a_hook_that_moved_counts_on_its_device_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention takes something else: groups do not start on CUDA, and do on a CPU."""
    module = importlib.import_module("vllm.v1.attention.backends.flash_attn")

    def forward(self: object, query: object, kv_cache: object) -> None: ...

    monkeypatch.setattr(module.FlashAttentionImpl, "forward", forward)
    contract.check(contract.hooks("cpu"))
    with pytest.raises(CannotShare) as refused:
        contract.check(contract.hooks("cuda"))
    said = str(refused.value)
    assert "1 of the hooks into it moved" in said
    assert "flash_attn.FlashAttentionImpl.forward: takes (self, query, kv_cache), where" in said


def test_a_missing_field_is_named() -> None:
    """Of messages and metadata the fields count."""
    hook = Hook("vllm.v1.engine", "EngineCoreOutputs", ("outputs", "gone"), "", fields=True)
    with pytest.raises(CannotShare, match="has no gone"):
        contract.check([hook])


def test_a_live_object_without_an_attribute_is_named() -> None:
    """What only shows at run time is checked when the scheduler and the runner are made."""
    with pytest.raises(CannotShare, match=r"SimpleNamespace\.running: is not there"):
        contract.require(SimpleNamespace(), "scheduler")


def test_the_plugin_is_inert_and_cheap_unless_asked() -> None:
    """Every vLLM in the environment calls it: it loads neither vLLM nor torch, nor our core."""
    program = (
        "import sys, time; began = time.process_time(); "
        "from agentpar.runtime.hogwild.plugin import register; register(); "
        "print(time.process_time() - began, 'vllm' in sys.modules, 'torch' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k != plugin.SWITCH}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    seconds, *loaded = done.stdout.split()
    assert loaded == ["False", "False"]
    assert float(seconds) < 1.0


def test_the_server_gets_classes_that_exist() -> None:
    """What `serve_args` names can be imported."""
    arguments = plugin.serve_args()
    for path in arguments[1::2]:
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), type)
