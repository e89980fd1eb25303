"""A vLLM server with the plugin, over HTTP, with the real 135M weights."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("vllm")

import httpx
import tenacity

from agentpar.runtime import models
from agentpar.runtime.hogwild.engine import Engine
from agentpar.runtime.hogwild.transcript import Transcript

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

MODEL = "smollm2-135m"
TASK = "Alice and Bob list the planets of the solar system together, one a line.\n"


@pytest.fixture
async def client(vllm_sharing_url: str) -> AsyncIterator[httpx.AsyncClient]:
    root = vllm_sharing_url.removesuffix("/v1")
    async with httpx.AsyncClient(base_url=root, trust_env=False, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def reference() -> Engine:
    return Engine.load(models.resolve(MODEL))


def body(
    engine: Engine, group: str, worker: str, *, size: int = 2, told: str = "", **settings: Any
) -> dict[str, Any]:
    prefix = list(engine.encode(TASK))
    return {
        "model": MODEL,
        "prompt": [*prefix, *engine.encode(told or f"{worker}: ")],
        "max_tokens": 24,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "vllm_xargs": {
            "hogwild_group": group,
            "hogwild_worker": worker,
            "hogwild_prefix": len(prefix),
            "hogwild_size": size,
        },
        **settings,
    }


async def complete(client: httpx.AsyncClient, request: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post("/v1/completions", json=request)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    return choice


async def transcript(records: Path, group: str) -> Transcript:
    """The group's, which it leaves at the step after its last."""
    attempts = tenacity.AsyncRetrying(
        wait=tenacity.wait_fixed(0.05), stop=tenacity.stop_after_delay(20), reraise=True
    )
    return await attempts(asyncio.to_thread, only, records, group)


def only(records: Path, group: str) -> Transcript:
    """The one that lies there."""
    (path,) = records.glob(f"{quote(group, safe='')}.*.json")
    return Transcript.from_json(path.read_text())


async def idle(client: httpx.AsyncClient) -> None:
    """Wait until the server runs nothing and holds nothing."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    async with asyncio.timeout(20):
        while True:
            text = (await client.get("/metrics")).text
            if not sum(
                float(value)
                for name in names
                for value in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)
            ):
                return
            await asyncio.sleep(0.1)


async def test_a_served_group_is_the_replay_of_its_transcript(
    vllm_records: Path, client: httpx.AsyncClient, reference: Engine
) -> None:
    """Two clients at once; every token is the likeliest of one dense pass in torch."""
    requests = {worker: body(reference, "both", worker) for worker in ("Alice", "Bob")}
    choices = dict(
        zip(
            requests,
            await asyncio.gather(*(complete(client, r) for r in requests.values())),
            strict=True,
        )
    )
    found = await transcript(vllm_records, "both")
    assert set(found.tokens) == {"Alice", "Bob"}
    again = reference.replay(found)
    for worker, choice in choices.items():
        told = len(requests[worker]["prompt"]) - len(found.prefix)
        assert choice["token_ids"] == again.rows[worker][told - 1 :].argmax(-1).tolist()
    await idle(client)


async def test_rows_see_each_other(client: httpx.AsyncClient, reference: Engine) -> None:
    """The same prompts without a group end in other texts."""
    requests = [body(reference, "seen", worker) for worker in ("Alice", "Bob")]
    together = await asyncio.gather(*(complete(client, request) for request in requests))
    apart = await asyncio.gather(
        *(complete(client, {**request, "vllm_xargs": None}) for request in requests)
    )
    assert [c["token_ids"] for c in together] != [c["token_ids"] for c in apart]


NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "no worker": ({"vllm_xargs": {"hogwild_group": "g", "hogwild_prefix": 3}}, "hogwild_worker"),
    "a wrong prefix": (
        {"vllm_xargs": {"hogwild_group": "g", "hogwild_worker": "A", "hogwild_prefix": 9999}},
        "hogwild_prefix = 9999, but its prompt has",
    ),
    "a layout that is none": (
        {
            "vllm_xargs": {
                "hogwild_group": "g",
                "hogwild_worker": "A",
                "hogwild_prefix": 3,
                "hogwild_layout": "zigzag",
            }
        },
        "hogwild_layout is 'zigzag'",
    ),
    "two samples": ({"n": 2, "temperature": 1.0}, "start 2 workers instead"),
    "log probabilities of the prompt": ({"prompt_logprobs": 1}, "prompt_logprobs"),
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_nonsense_is_http_400_with_what_was_wrong(
    client: httpx.AsyncClient, reference: Engine, what: str
) -> None:
    """It never reaches the engine."""
    settings, said = NONSENSE[what]
    answer = await client.post(
        "/v1/completions", json={**body(reference, "nonsense", "A"), **settings}
    )
    assert answer.status_code == 400, answer.text
    assert said in json.dumps(answer.json(), ensure_ascii=False)


async def test_a_row_that_its_group_cannot_have_is_http_400_and_others_go_on(
    client: httpx.AsyncClient, reference: Engine
) -> None:
    """The engine refuses it, and the client is told why."""
    odd = body(reference, "odd", "Carol")
    odd["prompt"] = [odd["prompt"][0] + 1, *odd["prompt"][1:]]
    alice = body(reference, "odd", "Alice", size=1, max_tokens=60, stream=True)
    async with client.stream("POST", "/v1/completions", json=alice) as stream:
        lines = stream.aiter_lines()
        await anext(lines)  # the group is there
        answer = await client.post("/v1/completions", json=odd)
        rest = [line async for line in lines if line.startswith("data: {")]
    assert answer.status_code == 400
    assert "token 0 of the prefix" in answer.text
    assert json.loads(rest[-1].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    await idle(client)


async def test_a_client_that_goes_away_closes_its_row(
    vllm_records: Path, client: httpx.AsyncClient, reference: Engine
) -> None:
    """The other writes on; in the end the server holds nothing."""
    leaving = body(reference, "leaving", "Alice", max_tokens=400, stream=True)
    staying = asyncio.create_task(
        complete(client, body(reference, "leaving", "Bob", max_tokens=60))
    )
    async with client.stream("POST", "/v1/completions", json=leaving) as stream:
        lines = stream.aiter_lines()
        for _ in range(6):
            await anext(lines)
    assert len((await staying)["token_ids"]) == 60
    found = await transcript(vllm_records, "leaving")
    assert 0 < len(found.tokens["Alice"]) < 300
    assert sum("Alice" in step.closed for step in found.steps) == 1
    await idle(client)


async def test_a_stop_string_ends_its_row_only(
    client: httpx.AsyncClient, reference: Engine
) -> None:
    """The text ends before it; the other row goes on."""
    free = await asyncio.gather(
        *(complete(client, body(reference, "free", worker)) for worker in ("Alice", "Bob"))
    )
    word = free[0]["text"][4:8]
    choices = await asyncio.gather(
        complete(client, body(reference, "stopped", "Alice", stop=[word])),
        complete(client, body(reference, "stopped", "Bob")),
    )
    assert choices[0]["finish_reason"] == "stop"
    assert word not in choices[0]["text"]
    assert len(choices[1]["token_ids"]) == 24
