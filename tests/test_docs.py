"""The pages are true: every Python block runs, every link leads somewhere, every option is there.

How a page and this file speak to each other, in comments that no reader sees:

``<!-- the model writes … -->`` before a block holds the model's texts for it, one after the
other with a line ``---`` between; agents with ``model=…`` on the page get them in turn.
``<!-- not run: why -->`` before a block means that it is compiled only.
A fence ``text output`` behind a block is what the block prints, to the character.
A test function in a block is called. A YAML block that begins with ``# agent.yaml`` is loaded,
and lies beside the blocks that follow.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib.util
import inspect
import io
import pkgutil
import re
import shlex
import sys
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from agentpar import Agent, ScriptedRuntime
from agentpar.config import load
from agentpar.events import Usage
from agentpar.ports import Capability, ModelRequest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])
RUN_ELSEWHERE = {"docs/langgraph.md", "docs/yaml.md"}  # test_langgraph.py, config/test_config.py
_PIECE = re.compile(
    r"<!-- (?P<note>the model writes|not run:)(?P<said>.*?)-->"
    r"|^```(?P<kind>[^\n`]+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass
class Block:
    """A fenced block of a page, with what its page says about it to this file."""

    kind: str
    text: str
    line: int
    texts: list[str] = field(default_factory=list)
    not_run: str = ""


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    texts: list[str] = []
    not_run = ""
    content = page.read_text(encoding="utf-8")
    for piece in _PIECE.finditer(content):
        if piece["note"] == "the model writes":
            texts = [text.strip() for text in piece["said"].split("\n---\n")]
        elif piece["note"]:
            not_run = piece["said"].strip()
        else:
            line = content.count("\n", 0, piece.start()) + 1
            found.append(Block(piece["kind"].strip(), piece["text"], line, texts, not_run))
            texts, not_run = [], ""
    return found


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def kinds(page: Path) -> set[str]:
    return {block.kind for block in blocks(page)}


class PageModel:
    """The model of a page: says what the comments on the page hold, in order."""

    def __init__(self) -> None:
        self.texts: deque[str] = deque()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        assert self.texts, "the page holds no text for this model call"
        async for piece in ScriptedRuntime([self.texts.popleft()]).stream(request):
            yield piece

    async def capabilities(self) -> frozenset[Capability]:
        return frozenset()

    async def aclose(self) -> None:
        """Nothing to release."""


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> PageModel:
    """Stands behind every model address of a page."""
    model = PageModel()
    monkeypatch.setattr("agentpar.agent.open_runtime", lambda *_, **__: model)
    return model


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "python" in kinds(page) and name_of(page) not in RUN_ELSEWHERE],
    ids=name_of,
)
def test_the_page_runs(
    page: Path, model: PageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Python block of the page, in order, in one namespace; what is shown is printed."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.delitem(sys.modules, "people", raising=False)  # a page writes one of its own
    names = vars(module)
    printed = ""
    with asyncio.Runner() as runner:
        for block in blocks(page):
            place = f"{name_of(page)}:{block.line}"
            if block.kind == "text output":
                assert printed.rstrip() == block.text.rstrip(), place
            elif block.kind == "yaml" and block.text.startswith("# agent.yaml\n"):
                Path("agent.yaml").write_text(block.text, encoding="utf-8")
            elif block.kind == "python":
                # Blank lines in front, so that a traceback tells the line of the page.
                code = "\n" * block.line + block.text
                model.texts.extend(block.texts)
                printed = run(code, name_of(page), names, runner, only_compile=bool(block.not_run))
                assert not model.texts, f"{place}: the model was asked less than the page says"


def run(
    code: str, page: str, names: dict[str, Any], runner: asyncio.Runner, *, only_compile: bool
) -> str:
    """Run a block, in which ``await`` may stand as in a notebook; what it printed."""
    compiled = compile(code, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if only_compile:
        return ""
    before = set(names)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        if compiled.co_flags & inspect.CO_COROUTINE:
            runner.run(eval(compiled, names))
        else:
            eval(compiled, names)
        for name in names.keys() - before:
            if name.startswith("test_"):
                names[name]()
    return out.getvalue()


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "yaml" in kinds(page) and name_of(page) not in RUN_ELSEWHERE],
    ids=name_of,
)
def test_the_agents_of_the_page_load(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every whole agent in YAML is one."""
    monkeypatch.chdir(tmp_path)
    for key in ("BRAVE_KEY", "TAVILY_KEY", "VLLM_KEY"):
        monkeypatch.setenv(key, "k")
    monkeypatch.delitem(sys.modules, "people", raising=False)
    Path("people.py").write_text("def population(country: str) -> int: return 0", encoding="utf-8")
    for block in blocks(page):
        if block.kind == "yaml" and block.text.startswith("# agent.yaml\n"):
            Path("agent.yaml").write_text(block.text, encoding="utf-8")
            load("agent.yaml", allow_modules=("people",)).arguments()


_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file of the repository, and to a heading of it, has something behind it."""
    text = _PIECE.sub("", page.read_text(encoding="utf-8"))
    lost = []
    for link in _LINK.finditer(re.sub(r"`[^`]*`", "", text)):
        target, _, heading = link["target"].partition("#")
        if target.startswith(("http://", "https://")):
            continue
        there = page.parent / target if target else page
        if not there.exists() or (heading and heading not in headings(there)):
            lost.append(link["target"])
    assert not lost


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in found}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every ``agentpar …`` of the pages, in a shell block or in backticks, with its place."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [
            line for b in blocks(page) if b.kind in ("sh", "bash") for line in b.text.split("\n")
        ]
        lines += re.findall(r"`([^`\n]+)`", _PIECE.sub("", text))
        for line in lines:
            for part in re.split(r"&&|\|\s|\$ ", line.replace("\\|", " ")):
                words = words_of(part)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words[:1] in (["agentpar"], [".venv/bin/agentpar"]):
                    yield name_of(page), words[1:]


def words_of(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # an apostrophe in words that are no command
        return []


def test_commands_of_the_pages_exist() -> None:
    """Each command that a page names is one, with each option that the page gives it."""
    from agentpar.cli.app import app

    group: Any = typer.main.get_command(app)
    wrong = []
    found = 0
    for page, words in commands():
        words = [word for word in words if word not in ("--debug", "…")]
        if not words or words[0].startswith("-"):
            continue
        found += 1
        command = group.commands.get(words[0])
        if parts := getattr(command, "commands", None):  # a group: `agentpar memory show`
            words = [" ".join(words[:2]), *words[2:]]
            command = parts.get(words[0].partition(" ")[2])
        options = {o for p in command.params for o in p.opts} if command else set()
        options |= {"--help", "-h"}
        for word in words[1:]:
            option = word.partition("=")[0]
            if option.startswith("-") and option not in options:
                wrong.append(f"{page}: {words[0]} has no {word}")
        if command is None:
            wrong.append(f"{page}: there is no command {words[0]!r}")
    assert found > 10
    assert not wrong


def test_names_of_the_pages_exist() -> None:
    """Every `agentpar.…` in backticks is a module, or something in one."""
    wrong = []
    found = 0
    for page in PAGES:
        text = _PIECE.sub("", page.read_text(encoding="utf-8"))
        for code in re.findall(r"`[^`\n]+`", text):
            for name in re.findall(r"(?<![\w/])agentpar(?!\S*\.json)(?:\.\w+)+", code):
                found += 1
                try:
                    pkgutil.resolve_name(name)
                except (ImportError, AttributeError):
                    wrong.append(f"{name_of(page)}: {name}")
    assert found > 5
    assert not wrong


def example(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


async def test_embed_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """`examples/embed.py` asks, and shows the answer with where each citation comes from."""
    embed = example("embed")
    plan = '1. population(country="Chile")\n2. population(country="Peru")\njoin()'
    text = "Chile has 19.1 million people [1]. Peru has 33 million [2].\nAnswer: Peru [2]"
    agent = Agent(tools=[embed.population], runtime=ScriptedRuntime([plan, text]))
    await embed.main(agent, "Which has more people, Chile or Peru?")
    printed = capsys.readouterr().out
    assert text in printed
    assert "[1] population(Chile): from '19116201'" in printed
    assert "task 2: Ok(value=32971854)" in printed


def test_the_first_example_is_a_file() -> None:
    """The tool of the README's first block stands in `examples/embed.py` as it is."""
    first = next(block.text for block in blocks(ROOT / "README.md") if block.kind == "python")
    tool, agent, _ = first.partition("\n\nagent = ")
    assert agent
    assert tool.partition("\n\n")[2].strip() in (ROOT / "examples/embed.py").read_text()
