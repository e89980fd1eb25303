"""vLLM inside the process, as a user would embed it: in a program of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agentpar.runtime import models

PROGRAM = """
import asyncio, json, sys, time
from agentpar.errors import GrammarRefused
from agentpar.events import Usage
from agentpar.ports import Message, ModelRequest
from agentpar.runtime.engine import EngineRuntime
from agentpar.workers import Workers

def ask(text, **more):
    return ModelRequest((Message("user", text),), **more)

async def read(runtime, request):
    *pieces, usage = [item async for item in runtime.stream(request)]
    assert isinstance(usage, Usage)
    return {"text": "".join(pieces), "pieces": len(pieces), "tokens": usage.completion_tokens,
            "prompt": usage.prompt_tokens, "cached": usage.cached_tokens, "cut": usage.cut}

async def main():
    runtime = EngineRuntime(sys.argv[1], sharing=True)
    told = {}
    try:
        told["plain"], told["beside"] = await asyncio.gather(
            read(runtime, ask("Count from one to fifty.", max_tokens=20)),
            read(runtime, ask("Name a colour.", max_tokens=5)),
        )
        told["able"] = sorted(await runtime.capabilities())
        endless = ask("Go.", grammar='root ::= "a" root', max_tokens=20)
        told["endless"] = await read(runtime, endless)
        told["grammar"] = await read(runtime, ask("Go.", grammar='root ::= "abc" "def"'))
        schema = {"type": "object", "properties": {"n": {"type": "integer", "enum": [4, 5]}},
                  "required": ["n"], "additionalProperties": False}
        told["schema"] = await read(runtime, ask("Go.", json_schema=schema, max_tokens=64))
        long = "The quick brown fox jumps over the lazy dog. " * 40
        await read(runtime, ask(long, max_tokens=1, background=True))
        told["again"] = await read(runtime, ask(long, max_tokens=1))
        stream = runtime.stream(ask("Go.", grammar='root ::= "a" root', max_tokens=8000))
        await anext(stream)
        await stream.aclose()
        told["unfinished"] = runtime._engine.output_processor.get_num_unfinished_requests()
        try:
            await read(runtime, ask("Go.", grammar="root ::= nowhere"))
        except GrammarRefused as error:
            told["refused"] = str(error)
        told["able_now"] = sorted(await runtime.capabilities())
        workers = Workers(2, max_tokens=8, backend="rows")
        async with runtime.group("Count to nine.", workers.names, workers) as group:
            told["workers"] = sorted({piece.worker async for piece in group})
            told["answer"] = "".join([text async for text in group.answer(max_tokens=4)])
    finally:
        await runtime.aclose()
    print("TOLD" + json.dumps(told))

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_engine_in_process_keeps_the_promises_of_a_runtime(tmp_path: Path) -> None:
    """Streaming, side by side, cut texts, grammar, one refused, schema, cached tokens, abort, and
    a clean end; on an engine that shares its cache, which groups then do."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    folder = models.resolve("smollm2-135m")
    done = subprocess.run(
        [sys.executable, program, folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.split("TOLD")[1])
    assert 10 < told["plain"]["tokens"] <= 20, "where it ends is the model's business"
    assert told["plain"]["pieces"] > 10
    assert told["beside"]["tokens"] <= 5
    assert told["plain"]["cut"] == (told["plain"]["tokens"] == 20)
    assert (told["endless"]["tokens"], told["endless"]["cut"]) == (20, True)
    assert told["grammar"]["text"] == "abcdef"
    assert not told["grammar"]["cut"]
    assert "grammar" in told["refused"].lower()
    assert told["able"] == ["grammar", "json_schema", "prefill"]
    assert told["able_now"] == ["json_schema", "prefill"]
    assert told["schema"]["text"].replace(" ", "") in {'{"n":4}', '{"n":5}'}
    assert told["again"]["cached"] > told["again"]["prompt"] / 2
    assert told["unfinished"] == 0
    assert told["workers"] == ["Alice", "Bob"]
    assert told["answer"]
