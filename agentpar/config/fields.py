"""Every field that an ``agent.yaml`` can have: its type, default and meaning.

The one home of what the file may say; schema, messages and documentation come from here.
It must never build a tool or read a file. Defaults are those of `agentpar.agent.Agent`,
and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, overload

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SecretStr,
    WithJsonSchema,
)
from pydantic_core import CoreSchema

from agentpar.config.units import count, duration, number, rate, size, switch

FILLED = r"\$\{"
"""What every value may hold besides: a reference to the environment."""


def _or_text(kind: str, pattern: str, **bounds: Any) -> WithJsonSchema:
    """The JSON Schema of a number that may also be written as a text with a unit."""
    text = {"type": "string", "pattern": f"^{pattern}$|{FILLED}"}
    return WithJsonSchema({"anyOf": [{"type": kind, **bounds}, text]})


Size = Annotated[
    int,
    BeforeValidator(size),
    Field(ge=1),
    _or_text("integer", r"\d+(\.\d+)? ?([kKMG]i?)?B?", minimum=1),
]
Count = Annotated[
    int,
    BeforeValidator(count),
    Field(ge=1),
    _or_text("integer", r"\d+(\.\d+)? ?[kM]?", minimum=1),
]
CountOrZero = Annotated[
    int,
    BeforeValidator(count),
    Field(ge=0),
    _or_text("integer", r"\d+(\.\d+)? ?[kM]?", minimum=0),
]
Duration = Annotated[
    float,
    BeforeValidator(duration),
    Field(gt=0),
    _or_text("number", r"\d+(\.\d+)? ?(ms|s|m|min|h|d)?", exclusiveMinimum=0),
]
Rate = Annotated[
    float,
    BeforeValidator(rate),
    Field(gt=0),
    _or_text("number", r"\d+(\.\d+)? ?/ ?(s|m|min|h)", exclusiveMinimum=0),
]
Usd = Annotated[
    float,
    BeforeValidator(number),
    Field(ge=0),
    _or_text("number", r"\d+(\.\d+)?", minimum=0),
]
Temperature = Annotated[
    float,
    BeforeValidator(number),
    Field(ge=0, le=2),
    _or_text("number", r"\d+(\.\d+)?", minimum=0, maximum=2),
]

Switch = Annotated[bool, BeforeValidator(switch), _or_text("boolean", "true|false")]
Port = Annotated[
    int,
    BeforeValidator(count),
    Field(ge=1, le=65535),
    _or_text("integer", r"\d+", minimum=1, maximum=65535),
]


@dataclass(frozen=True, slots=True, eq=False)
class _Or:
    """Besides what the type says, the JSON Schema allows ``other``; `shape` and `reader` turn
    it into the type before the models see it."""

    other: Mapping[str, Any]

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [handler(core), dict(self.other)]}


_OR_FILE = _Or(
    {
        "type": "object",
        "properties": {"file": {"type": "string", "description": "A file beside this or below."}},
        "required": ["file"],
        "additionalProperties": False,
    }
)
_OR_NAME = _Or({"type": "string", "description": "A tool by its name alone, such as calc."})


_OR_PATTERN = _Or({"type": "string", "minLength": 1, "description": "One pattern alone."})

Pattern = Annotated[str, Field(min_length=1)]


def _alone(value: object) -> object:
    """A text alone as a list of one."""
    return [value] if isinstance(value, str) else value


def _no_empty(value: object) -> object:
    """An empty text is no value: it is what ``${V:-}`` leaves where ``V`` is not set."""
    return None if value == "" else value


class Section(BaseModel):
    """A mapping with known fields.

    ``also`` names other words for a field, ``later`` fields that this version does not have,
    ``refused`` fields that make no sense, with the reason.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )
    also: ClassVar[Mapping[str, str]] = {}
    later: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, str]] = {}


class ModelSettings(Section):
    """How the model writes."""

    temperature: Temperature = 0.0
    """Randomness of the model, 0 to 2; 0 always takes the likeliest word."""
    seed: CountOrZero | None = None
    """Seed of the model's randomness, so that a temperature above 0 can be repeated."""
    max_tokens: Count = 512
    """Most tokens of one answer; one that is cut off there says so."""


class ModelPrice(Section):
    """USD for a million tokens."""

    also = {"input": "prompt", "output": "completion"}

    prompt: Usd = 0.0
    """For tokens that the model reads."""
    completion: Usd = 0.0
    """For tokens that it writes."""


class Model(Section):
    """Which model plans and answers, and where it runs.

    With ``base_url`` it is a server that speaks OpenAI's protocol. With ``id`` alone it is
    the name of weights that agentpar knows (a vLLM on this machine is then found or
    started) or ``vllm:PATH`` (an engine in this process).
    """

    also = {"name": "id", "model": "id", "url": "base_url", "api_base": "base_url"}

    id: Annotated[str | None, BeforeValidator(_no_empty)] = None
    """The model's name: of known weights, ``vllm:PATH``, or as the server at base_url calls it."""
    base_url: Annotated[str | None, BeforeValidator(_no_empty)] = None
    """Address of an OpenAI-compatible server, such as ``http://localhost:8000/v1``."""
    api_key: Annotated[SecretStr | None, BeforeValidator(_no_empty)] = None
    """Key for that server; write ``${NAME}``, so that it stays out of the file."""
    concurrency: Count = 64
    """Most requests to the model server at once, those of all runs together."""
    settings: ModelSettings = ModelSettings()
    """How the model writes."""
    price: ModelPrice = ModelPrice()
    """What the server takes, so that ``limits.max_cost_usd`` can count it."""


def _at_model(value: object) -> object:
    """A text alone as the address of a server, or else as a name."""
    if not isinstance(value, str):
        return value
    return {"base_url" if value.startswith(("http://", "https://")) else "id": value}


_OR_MODEL = _Or({"type": "string", "description": "The name, or a server's address, alone."})


class PlanExample(Section):
    """A question and the plan that a good planner writes for it."""

    question: Annotated[str, Field(min_length=1)]
    """A question like those that the agent will be asked."""
    plan: Annotated[str, Field(min_length=1)]
    """Its plan: lines such as ``1. web_search(query="…")``, then ``join()``."""


class PlannerFields(Section):
    """How the plan is made."""

    also = {"max_replans": "replans", "few_shot": "examples"}
    refused = {"stream": "the plan is always streamed; leave it out"}

    max_tasks: Count = 1000
    """Most tool calls in one run, all rounds together."""
    max_tokens: Count = 768
    """Most tokens of one plan; one that is cut off there is told as a fault."""
    max_lines: Count = 24
    """Most tool calls of one plan that is decoded under a grammar."""
    replans: CountOrZero = 2
    """How many more rounds the joiner may ask for; 0 for none."""
    replan_on: Literal["answer", "failure"] = "answer"
    """When the next plan is asked for: when the joiner asks, or as soon as a call has failed."""
    extended: Switch = False
    """Tell the model of ``$1[*]``, ``any(…)`` and ``some(…)``; a plan may hold them in any case."""
    examples: Annotated[list[PlanExample], Field(min_length=1), _OR_FILE] | None = None
    """Plans shown to the model, or a ``file:`` that holds them; by default the built-in ones."""
    grammar: Literal["auto", "always", "never"] = "auto"
    """Decode plans under a grammar: where the server can, always (else an error), or never."""
    prefill: Literal["auto", "always", "never"] = "auto"
    """Have the model read results while other tools still run: where the server is known to keep
    what it has read, always, or never."""


class WebSearch(Section):
    """Search the web."""

    also = {"engine": "provider", "limit": "max_results"}

    provider: Literal["searxng", "brave", "tavily", "ddgs"] = "searxng"
    """Whose protocol is spoken; ``ddgs`` needs no key but the ``web`` extra."""
    url: Annotated[str | None, BeforeValidator(_no_empty)] = None
    """Base address of the engine, or ``miniweb://`` for the simulated web that ships."""
    api_key: Annotated[SecretStr | None, BeforeValidator(_no_empty)] = None
    """Key for ``brave`` or ``tavily``."""
    max_results: Count = 5
    """Most hits of one search."""
    timeout: Duration = 20.0
    """Time for one search."""


class WebFetch(Section):
    """Read web pages."""

    max_bytes: Size = 2_000_000
    """Most bytes of a page, after decompression."""
    max_chars: Count = 1500
    """Most characters of a page that the model sees: the passages that fit best."""
    allow_domains: list[str] = ["*"]
    """Domains that may be read: ``example.org`` (subdomains too), ``*.example.org`` or ``*``."""
    deny_domains: list[str] = []
    """Domains that are never read, allowed or not."""
    timeout: Duration = 20.0
    """Time for one page, redirects included."""


class WebLookup(Section):
    """Find one fact on the web in one call: search, and read the best pages side by side."""

    search: WebSearch = WebSearch()
    """Where to search; the same fields as ``web_search``."""
    fetch: WebFetch = WebFetch()
    """How to read pages; the same fields as ``web_fetch``."""
    pages: Count = 2
    """Most pages that one call reads."""


class Calc(Section):
    """Arithmetic and comparisons; nothing to set."""


class Mcp(Section):
    """The tools of an MCP server: ``url`` or ``command``."""

    also = {"tools": "allowed_tools"}

    url: str | None = None
    """Address of a server that speaks streamable HTTP."""
    command: list[str] | None = None
    """A program and its words, started as a child that speaks over stdio."""
    allowed_tools: list[str] | None = None
    """The tools to use; by default all."""
    headers: dict[str, SecretStr] = {}
    """HTTP headers sent to ``url``."""
    env: dict[str, SecretStr] = {}
    """Environment variables for ``command``; it sees few others."""
    timeout: Duration = 30.0
    """Time to connect, and for each call."""
    effect: Literal["read", "write"] | None = None
    """What its tools do to the world; by default as the server says, "write" where it does not."""


class ToolEntry(Section):
    """One tool: a mapping with one key, or a name alone (``- calc``)."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})
    later = frozenset({"openapi"})

    web_search: WebSearch | None = None
    """Search the web."""
    web_fetch: WebFetch | None = None
    """Read web pages."""
    web_lookup: WebLookup | None = None
    """Find one fact on the web in one call."""
    calc: Calc | None = None
    """Arithmetic and comparisons."""
    python: str | None = None
    """``module:name`` of a typed function or Tool; its module must be allowed by who runs it."""
    mcp: Mcp | None = None
    """The tools of an MCP server."""
    package: str | None = None
    """A tool that an installed package offers (entry point ``agentpar.tools``); ``- NAME`` too."""

    @property
    def kind(self) -> str:
        """The one key that is set."""
        return next(iter(self.model_fields_set))


OPTIONLESS = frozenset({"web_search", "web_fetch", "web_lookup", "calc"})
"""Tools of our own that a name alone stands for."""


class Defaults(Section):
    """What holds for every tool without a setting of its own."""

    also = {"max_concurrency": "concurrency", "max_parallel": "concurrency"}

    timeout: Duration = 60.0
    """Time for one attempt of a tool call."""
    concurrency: Count = 64
    """Most tool calls at once, all tools together."""
    retries: CountOrZero | None = None
    """Further attempts of a call that failed; by default as each tool says."""
    rate: Rate | None = None
    """Most calls of one tool that begin in a second, such as ``10/s``."""


class PolicyFile(Section):
    """How the tools that match are called; a later entry wins."""

    also = {"tool": "tools", "max_concurrency": "concurrency"}

    tools: Annotated[str | list[str], Field(min_length=1)]
    """A pattern of tool names, such as ``web_*``, or a list of them."""
    timeout: Duration | None = None
    """Time for one attempt."""
    retries: CountOrZero | None = None
    """Further attempts of a call that failed."""
    backoff: Duration | None = None
    """Pause before the second attempt, doubled before each further one."""
    max_backoff: Duration | None = None
    """Longest pause between two attempts."""
    idempotent: Switch | None = None
    """Whether calling twice does no more than once; by default true of tools that only read."""
    lock: str | None = None
    """Calls that name the same lock run one at a time."""
    on_error: Literal["skip", "keep", "fail"] | None = None
    """When all attempts failed: skip what needs the value, keep going with the error as the
    value, or fail the run."""
    cache: Duration | None = None
    """How long a result may serve later runs."""
    concurrency: Count | None = None
    """Most calls of each of the tools at once."""
    rate: Rate | None = None
    """Most calls of each of the tools that begin in a second, such as ``5/s``."""
    hedge: Switch | None = None
    """Call a straggler a second time and take the first result."""
    cost: Usd | None = None
    """Price of one attempt in USD."""
    tokens: CountOrZero | None = None
    """Most tokens that a model writes in one attempt: they are set aside of
    ``limits.max_tokens`` before it begins."""


class PermissionRule(Section):
    """What happens to calls of some tools; the first rule that covers a call decides.

    Where none does, a tool that writes or sends asks, and any other is allowed.
    """

    also = {"tool": "tools"}

    tools: Annotated[list[Pattern], BeforeValidator(_alone), Field(min_length=1), _OR_PATTERN]
    """Names of tools, with ``*`` for any text: ``send_*``; or a list of such."""
    action: Literal["allow", "ask", "deny"]
    """Let the call run, ask for approval, or let it fail."""
    data: Literal["any", "trusted", "untrusted"] | None = None
    """Which calls: untrusted ones are fed by a tool's result, or planned after reading one. Left
    out: any, but an allow for a tool that writes or sends is for trusted data only."""


def _at_n(value: object) -> object:
    """A number alone as how many."""
    return value if isinstance(value, dict) or value is None else {"n": value}


def _or_number(most: int) -> _Or:
    number = {"type": "integer", "minimum": 1, "maximum": most}
    return _Or({"anyOf": [number, {"type": "string"}], "description": "How many."})


class WorkerFields(Section):
    """Several workers who think together before an answer is written."""

    also = {"tokens": "max_tokens", "count": "n"}

    mode: Literal["hogwild", "log"] = "hogwild"
    """``hogwild``: they read each other's tokens as they are written, in one KV cache, where the
    runtime can share one, else as with ``log``: each other's text every ``sync_every`` tokens."""
    n: Annotated[int, BeforeValidator(count), Field(ge=1, le=8), _or_text("integer", r"[1-8]")] = 2
    """How many."""
    max_tokens: Count = 256
    """Most tokens of one worker."""
    layout: Literal["contiguous", "interleaved", "combined"] = "combined"
    """In which order a worker sees what is there (one KV cache only)."""
    check_every: CountOrZero = 0
    """After so many tokens a worker is asked whether it does what another does; 0 for never."""
    sync_every: Count = 64
    """Tokens between two looks at the log (``log`` only)."""
    temperature: Temperature = 0.0
    """Randomness of the workers; with 0 those that see the same write the same."""
    seed: CountOrZero | None = None
    """Seed of the first worker's randomness; the next has the next number."""


class TeamFields(Section):
    """Several teams on each question, of whose answers one is taken."""

    also = {"count": "n", "selection": "select"}

    n: Annotated[
        int,
        BeforeValidator(count),
        Field(ge=1, le=16),
        _or_text("integer", r"([1-9]|1[0-6])", minimum=1, maximum=16),
    ] = 3
    """How many."""
    select: Literal["vote", "first", "judge", "best"] = "vote"
    """Whose answer is taken: that which most came to, which stops the others once more than half
    have (``vote``), the first that is carried in full by what was read, which stops the others
    (``first``), the one that the model picks (``judge``), or the one of which most is carried by
    what was read (``best``)."""


def _at_bank(value: object) -> object:
    """An address alone as a bank that every run keeps for the next."""
    return {"bank": value, "scope": "project"} if isinstance(value, str) else value


def _duration_or_none(value: object) -> float | None:
    """Seconds; ``none`` for None."""
    return None if value in (None, "none") else duration(value)


class MemoryFields(Section):
    """A bank of what calls have brought, which serves equal calls of other teams and runs."""

    also = {"url": "bank", "policy": "admission"}

    bank: Annotated[SecretStr | None, BeforeValidator(_no_empty)] = None
    """``sqlite:///FILE`` beside this one, or ``postgresql://…``; by default in this process, and
    gone with it."""
    admission: Literal["none", "all", "novelty", "rule", "judge", "learned"] | None = None
    """Who decides what enters it; by default ``all``, and ``rule`` where it outlives the run."""
    controller: Annotated[str | None, Field(min_length=1)] = None
    """With ``admission: learned``: the file, beside this one, of a controller that ``agentpar
    memory train`` has made; by default the one that ships."""
    scope: Literal["run", "project"] = "run"
    """For the teams of one question (``run``), or for every run to come (``project``)."""
    ttl: Duration | None = None
    """How long what is in it serves, such as ``7d``; by default for ever."""
    lease: Annotated[
        Annotated[float, Field(gt=0)] | None,
        BeforeValidator(_duration_or_none),
        _or_text("number", r"none|\d+(\.\d+)? ?(ms|s|m|min|h|d)?", exclusiveMinimum=0),
    ] = 30.0
    """How long an equal call that another makes is waited for; ``none``: each makes its own."""
    namespace: Annotated[str, Field(max_length=200)] = ""
    """Keeps apart what lies in one bank; by default the agent's name."""
    offers: CountOrZero = 0
    """Most calls that a planner is shown of those whose result is in the bank."""


class LimitFields(Section):
    """Bounds on one run."""

    max_steps: Count | None = None
    """Most attempts of tool calls."""
    max_tokens: Count | None = None
    """Most tokens that the model reads and writes."""
    max_cost_usd: Usd | None = None
    """Most money, as ``policies`` and ``model.price`` count it."""
    deadline: Duration | None = None
    """Time to the answer; what is known by then is the answer, and what is missing is said."""
    per_host: Count | None = None
    """Most requests of the web tools at once to one host."""
    host_rate: Rate | None = None
    """Most requests to one host that begin in a second."""
    max_result_bytes: Size = 2_000_000
    """Most bytes of one tool's result; a larger one fails."""


class PrometheusFields(Section):
    """Where a Prometheus finds the metrics while the process runs: ``http://HOST:PORT/metrics``."""

    port: Port = 9464
    """The port they are served at; agents of one process may share it."""
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address they are served at; ``0.0.0.0`` for every one of this machine."""


def _at_url(value: object) -> object:
    """A text alone as the address."""
    return {"url": value} if isinstance(value, str) else value


class JournalFields(Section):
    """Where runs are kept as they go, so that one that broke off is carried on."""

    url: SecretStr
    """``sqlite:///FILE`` beside this one, or ``postgresql://…``."""
    keep: Duration | None = None
    """How long a run is kept after its end, such as ``30d``; by default for ever."""


_OR_ADDRESS = _Or({"type": "string", "description": "The address alone."})


class WatchFields(Section):
    """Who watches the runs besides the record."""

    also = {"opentelemetry": "otel", "metrics": "prometheus"}

    otel: Switch = False
    """Trace runs with OpenTelemetry; its ``OTEL_…`` variables say where the spans go."""
    content: Switch = False
    """Put arguments, results, texts and error messages into the spans as well."""
    prometheus: PrometheusFields | None = None
    """Serve metrics of the runs."""


class AgentFile(Section):
    """An agent: what it can call, which model plans and answers, and within which bounds."""

    model_config = ConfigDict(title="agentpar agent")
    also = {
        "instruction": "instructions",
        "system_prompt": "instructions",
        "llm": "model",
        "default": "defaults",
    }
    later = frozenset({"output_schema"})

    version: Literal[1] = 1
    """Version of this format."""
    name: Annotated[str, Field(min_length=1, max_length=100)] = "agent"
    """What the agent is called on screen and in records."""
    instructions: Annotated[str, _OR_FILE] = ""
    """What the agent should mind, for planner and joiner; or ``file:`` beside this one."""
    model: Annotated[
        Model | None, BeforeValidator(_at_model), BeforeValidator(_no_empty), _OR_MODEL
    ] = None
    """Which model plans and answers: its name or a server's address, or its fields; may be left
    out where the caller brings one."""
    planner: PlannerFields = PlannerFields()
    """How the plan is made."""
    workers: Annotated[WorkerFields | None, BeforeValidator(_at_n), _or_number(8)] = None
    """Several workers who think together before the answer: how many, or their fields. Plans may
    then ``think(…)``, too."""
    teams: Annotated[TeamFields | None, BeforeValidator(_at_n), _or_number(16)] = None
    """Several teams on each question, of whose answers one is taken: how many, or ``n`` and
    ``select``."""
    tools: list[Annotated[ToolEntry, _OR_NAME]] = []
    """What a plan can call, in the order in which the model sees it."""
    policies: list[PolicyFile] = []
    """How single tools are called: retries, rates, caches and more."""
    defaults: Defaults = Defaults()
    """What holds for every tool without a setting of its own."""
    limits: LimitFields = LimitFields()
    """Bounds on one run."""
    permissions: list[PermissionRule] = []
    """Which calls may run, which need approval, which never run."""
    journal: Annotated[
        JournalFields | None, BeforeValidator(_at_url), BeforeValidator(_no_empty), _OR_ADDRESS
    ] = None
    """Where runs are kept as they go: ``sqlite:///FILE`` beside this one, ``postgresql://…``; or
    ``url`` and ``keep``."""
    memory: Annotated[
        MemoryFields | None, BeforeValidator(_at_bank), BeforeValidator(_no_empty), _OR_ADDRESS
    ] = None
    """A bank of what calls have brought, which serves equal calls of other teams and runs; an
    address alone is one that every run keeps for the next."""
    watch: WatchFields = WatchFields()
    """Who watches the runs besides the record."""
    secrets: list[SecretStr] = []
    """Further values that no output may show, such as a key that a Python tool uses."""


def section_in(annotation: Any) -> type[Section] | None:
    """The section that a field's type holds: X for ``X``, ``X | None`` and ``list[X]``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    held = (section_in(argument) for argument in get_args(annotation))
    return next((section for section in held if section is not None), None)


def holds_list(annotation: Any) -> bool:
    """Whether a field's type is a list, or one among others."""
    return get_origin(annotation) is list or any(map(holds_list, get_args(annotation)))


def is_secret(section: type[Section] | None, loc: tuple[str | int, ...]) -> bool:
    """Whether what stands at ``loc`` within ``section`` must never be shown."""
    for step in loc:
        if isinstance(step, int):
            continue
        field = section.model_fields.get(step) if section is not None else None
        if field is None:
            return False
        if "SecretStr" in str(field.annotation):
            return True
        section = section_in(field.annotation)
    return False


@overload
def revealed(secret: SecretStr) -> str: ...


@overload
def revealed(secret: None) -> None: ...


def revealed(secret: SecretStr | None) -> str | None:
    """The text of a credential, for the one who needs it."""
    return None if secret is None else secret.get_secret_value()
