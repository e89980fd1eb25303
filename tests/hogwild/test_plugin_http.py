"""A vLLM server with the plugin, over HTTP, with the real 135M weights and an adapter for them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("vllm")

import httpx
import tenacity

import agentpar
from agentpar.runtime import launch, models
from agentpar.runtime.hogwild import plugin
from agentpar.runtime.hogwild.engine import Engine
from agentpar.runtime.hogwild.transcript import Transcript

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

MODEL = "smollm2-135m"
ADAPTER = "random"
TASK = "Alice and Bob list the planets of the solar system together, one a line.\n"


@dataclass(frozen=True)
class Server:
    url: str
    records: Path
    log: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Started as `agentpar serve --hogwild` does, in float32 so that a replay can be exact."""
    from adapters import adapted
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("server")
    adapted(AutoModelForCausalLM.from_pretrained(models.resolve(MODEL)), folder / ADAPTER, seed=0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*plugin.serve_args(), "--dtype", "float32", "--max-model-len", "1024"]
    # A place that stays empty: vLLM's CPU kernels give the last one to those without an adapter.
    arguments += ["--enable-lora", "--max-loras", "2", "--max-lora-rank", "8"]
    arguments += ["--lora-modules", f"{ADAPTER}={folder / ADAPTER}"]
    command = launch.command(
        Path(models.resolve(MODEL)), name=MODEL, port=port, device="cpu", extra_args=arguments
    )
    path = [str(Path(agentpar.__file__).parents[1])]
    if not importlib.metadata.entry_points(group="vllm.general_plugins", name="agentpar_hogwild"):
        path.append(str(folder))
        _declare_plugin(folder)
    environment = {
        **os.environ,
        **launch.environment("cpu"),
        **plugin.environment(),
        plugin.RECORD: str(folder / "records"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "PYTHONPATH": os.pathsep.join(path),
    }
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, log)
        yield Server(url, folder / "records", log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:  # one that is still starting may not hear it
            process.kill()
            process.wait()


def _declare_plugin(folder: Path) -> None:
    """What installing the package would: the entry point that vLLM looks for."""
    declared = folder / "agentpar_hogwild-0.dist-info"
    declared.mkdir()
    (declared / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: agentpar_hogwild\nVersion: 0\n"
    )
    (declared / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nagentpar_hogwild = agentpar.runtime.hogwild.plugin:register\n"
    )


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-4000:]
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-4000:])


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=120) as client:
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


async def transcript(server: Server, group: str) -> Transcript:
    """The group's, which it leaves at the step after its last."""
    pattern = f"{quote(group, safe='')}.*.json"
    attempts = tenacity.AsyncRetrying(
        wait=tenacity.wait_fixed(0.05), stop=tenacity.stop_after_delay(20), reraise=True
    )
    async for attempt in attempts:
        with attempt:
            (path,) = server.records.glob(pattern)
    return Transcript.from_json(path.read_text())


async def idle(client: httpx.AsyncClient, *, is_so: bool = True) -> None:
    """Wait until the server runs nothing and holds nothing; or, if not ``is_so``, something."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    async with asyncio.timeout(20):
        while True:
            text = (await client.get("/metrics")).text
            busy = any(
                float(value)
                for name in names
                for value in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)
            )
            if busy is not is_so:
                return
            await asyncio.sleep(0.1)


async def test_a_served_group_is_the_replay_of_its_transcript(
    server: Server, client: httpx.AsyncClient, reference: Engine
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
    found = await transcript(server, "both")
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
    "a prompt that is told back with its scores": (
        {"echo": True, "logprobs": 1},
        "prompt_logprobs",
    ),
    "a search with beams": ({"use_beam_search": True, "n": 2}, "leave use_beam_search out"),
    "a grammar that is none": (
        {"structured_outputs": {"grammar": "root ::= nothing"}},
        "grammar",
    ),
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


async def test_a_chat_with_beams_is_refused_likewise(client: httpx.AsyncClient) -> None:
    """vLLM would drop what it says of its group, and answer it alone."""
    row = {"hogwild_group": "g", "hogwild_worker": "A", "hogwild_prefix": 3}
    request = {"model": MODEL, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 4}
    beams = {**request, "use_beam_search": True, "n": 2, "temperature": 0}
    answer = await client.post("/v1/chat/completions", json={**beams, "vllm_xargs": row})
    assert answer.status_code == 400, answer.text
    assert "leave use_beam_search out" in answer.text
    answer = await client.post("/v1/chat/completions", json=beams)
    assert answer.status_code == 200, answer.text


STRUCTURES: dict[str, tuple[dict[str, Any], str]] = {
    "schema": (
        {
            "json": {
                "type": "object",
                "properties": {"planet": {"enum": ["Mars", "Venus"]}, "moons": {"type": "boolean"}},
                "required": ["planet", "moons"],
                "additionalProperties": False,
            }
        },
        r'\{"planet": ?"(Mars|Venus)", ?"moons": ?(true|false)\}',
    ),
    "grammar": ({"grammar": 'root ::= "Mars" ", Venus"+'}, r"Mars(, Venus)+"),
    "regex": ({"regex": r"[A-C]{9}"}, r"[A-C]{9}"),
    "choice": ({"choice": ["red planet", "blue planet"]}, r"(red|blue) planet"),
}


@pytest.mark.parametrize("what", STRUCTURES)
async def test_a_rows_structure_is_its_own(
    server: Server, client: httpx.AsyncClient, reference: Engine, what: str
) -> None:
    """It writes what its structure allows, in sight of the other, who writes freely and exactly."""
    structure, pattern = STRUCTURES[what]
    settings = {"structured_outputs": structure, "ignore_eos": False, "max_tokens": 40}
    held, free = await asyncio.gather(
        complete(client, body(reference, what, "Alice", **settings)),
        complete(client, request := body(reference, what, "Bob")),
    )
    wrote = re.fullmatch(pattern, held["text"].strip())
    assert wrote or (what == "grammar" and held["finish_reason"] == "length")
    found = await transcript(server, what)
    told = len(request["prompt"]) - len(found.prefix)
    # Its last token, which ends it, is in nobody's sight.
    assert found.tokens["Alice"][-len(held["token_ids"]) + 1 :] == tuple(held["token_ids"][:-1])
    again = reference.replay(found)
    assert free["token_ids"] == again.rows["Bob"][told - 1 :].argmax(-1).tolist()
    await idle(client)


@pytest.mark.parametrize(
    ("model", "status", "said"),
    [
        (ADAPTER, 400, f"has LoRA adapter '{ADAPTER}', but its group has None"),
        ("nobody", 404, "The model `nobody` does not exist"),
    ],
)
async def test_a_row_of_another_model_is_refused_and_the_others_begin_without_it(
    server: Server,
    client: httpx.AsyncClient,
    reference: Engine,
    model: str,
    status: int,
    said: str,
) -> None:
    """They wait for it a while, and write what they write without it."""
    alice = asyncio.create_task(complete(client, body(reference, model, "Alice")))
    await idle(client, is_so=False)
    odd = await client.post("/v1/completions", json=body(reference, model, "Bob", model=model))
    assert odd.status_code == status, odd.text
    assert said in odd.text
    choice = await alice
    found = await transcript(server, model)
    assert set(found.tokens) == {"Alice"}
    told = len(body(reference, model, "Alice")["prompt"]) - len(found.prefix)
    again = reference.replay(found)
    assert choice["token_ids"] == again.rows["Alice"][told - 1 :].argmax(-1).tolist()
    await idle(client)


async def test_two_prompts_in_one_request_are_not_two_rows(
    client: httpx.AsyncClient, reference: Engine
) -> None:
    """Both would have one name."""
    row = body(reference, "twice", "Alice", size=1)
    answer = await client.post("/v1/completions", json={**row, "prompt": [row["prompt"]] * 2})
    assert answer.status_code == 400, answer.text
    assert "is there already" in answer.text
    await idle(client)


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
    server: Server, client: httpx.AsyncClient, reference: Engine
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
    found = await transcript(server, "leaving")
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
