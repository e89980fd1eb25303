"""Several teams on one question: how they differ, run, end, and whose answer it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentpar import (
    Agent,
    Answer,
    ModelServerError,
    Ok,
    RunFailed,
    ScriptedRuntime,
    Teams,
    UsageError,
    tool,
)
from agentpar.events import (
    Answered,
    Citation,
    FromTeam,
    ModelUsed,
    RunFinished,
    RunStarted,
    TaskDone,
    TeamChosen,
    TeamEnded,
    TeamStarted,
    Usage,
)
from agentpar.executor.journal import open_journal
from agentpar.executor.record import read_record, replay
from agentpar.memory.settings import Memory
from agentpar.plan import Failed
from agentpar.ports import Capability, ModelRequest
from agentpar.rivals import TeamsLog
from agentpar.teams import (
    SAMPLED,
    Ended,
    best,
    distinct,
    first,
    folded,
    judged,
    variation,
    vote,
)


@tool
async def population(country: str) -> int:
    """Population of a country. country: English name."""
    return {"Chile": 19, "Peru": 33}[country]


CHILE = '1. population(country="Chile")\njoin()'
RIGHT = "Chile has 19 people [1].\nAnswer: 19 [1]"
WRONG = "Chile has 91 people [1].\nAnswer: 91 [1]"
HANG = 60.0


class Model:
    """Answers by the team that asks: each planner's prompt has the team's outline, and the joiner
    has the seed. ``say(team, joining)`` gives a text, an error, or seconds to hang and then one.
    """

    def __init__(
        self,
        say: Callable[[int, bool], str | Exception | tuple[float, str]],
        *,
        judge: str | Exception | float = "1",
        able: frozenset[Capability] = frozenset(),
    ) -> None:
        self.say = say
        self.judge = judge
        self.able = able
        self.requests: list[ModelRequest] = []
        self.open = 0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        self.requests.append(request)
        system, asked = request.messages[0].content, request.messages[-1].content
        self.open += 1
        try:
            if "number of the best answer" in asked:
                if isinstance(self.judge, Exception):
                    raise self.judge
                if isinstance(self.judge, float):
                    await asyncio.sleep(self.judge)
                yield str(self.judge)
            else:
                joining = "You answer a question" in system
                said = self.say((request.seed or 0) + 1, joining)
                if isinstance(said, tuple):
                    await asyncio.sleep(said[0])
                    said = said[1]
                if isinstance(said, Exception):
                    raise said
                yield said
            yield Usage(10, 1, calls=1)
        finally:
            self.open -= 1

    async def capabilities(self) -> frozenset[Capability]:
        return self.able

    async def aclose(self) -> None:
        pass


def answers(*texts: str | Exception | tuple[float, str]) -> Model:
    """Team n plans to ask for Chile and answers ``texts[n - 1]``."""
    return Model(lambda team, joining: texts[team - 1] if joining else CHILE)


ALONE = Memory(admission="none", lease=None)
"""Teams that share nothing: what they do does not depend on who was first."""


def agent_of(model: Any, **options: Any) -> Agent:
    return Agent([population], runtime=model, seed=0, memory=ALONE, **options)


# Asking


async def test_the_answer_that_most_teams_came_to() -> None:
    """Two of three: theirs is the answer, with its citations, and all three are there."""
    answer = await agent_of(answers(WRONG, RIGHT, RIGHT)).ask("Chile?", teams=3)
    assert (answer.text, answer.status, answer.chosen) == (RIGHT, "answered", 2)
    assert answer.why == "2 of 3 came to it"
    assert [team.conclusion for team in answer.teams] == ["91 [1]", "19 [1]", "19 [1]"]
    assert [team.run_id for team in answer.teams] == [f"{answer.run_id}.{n}" for n in (1, 2, 3)]
    assert answer.outcomes == {1: Ok(19)}
    assert all(citation.supported for citation in answer.citations)


async def test_usage_is_that_of_all_teams() -> None:
    """Two model calls and one tool call each."""
    answer = await agent_of(answers(RIGHT, RIGHT)).ask("Chile?", teams=Teams(2))
    assert (answer.usage.calls, answer.usage.prompt_tokens, answer.usage.steps) == (4, 40, 2)
    assert [team.usage.calls for team in answer.teams] == [2, 2]
    data = json.loads(json.dumps(answer.as_dict()))
    assert (data["chosen"], data["why"], len(data["teams"])) == (1, "2 of 2 came to it", 2)
    assert data["usage"]["calls"] == 4


async def test_one_team_is_a_plain_run() -> None:
    """Also of an agent that has teams; and without any, nothing of teams is said."""
    model = answers(RIGHT)
    answer = await agent_of(model, teams=3).ask("Chile?", teams=1)
    assert (answer.chosen, answer.why, answer.teams) == (0, "", ())
    assert len(model.requests) == 2


def test_ask_sync_with_teams() -> None:
    """The agent's own teams, without an event loop."""
    answer = agent_of(answers(RIGHT, RIGHT), teams=2).ask_sync("Chile?")
    assert (answer.chosen, len(answer.teams)) == (1, 2)


@pytest.mark.parametrize(
    ("teams", "told"),
    [
        (0, "n is 0; 1 to 16"),
        (17, "n is 17"),
        (True, "n is True"),
        ("3", "teams must be a number or Teams"),
    ],
)
async def test_what_is_no_number_of_teams_is_refused(teams: Any, told: str) -> None:
    """At once, in both places."""
    with pytest.raises(UsageError, match=told):
        agent_of(answers(), teams=teams)
    with pytest.raises(UsageError, match=told):
        await agent_of(answers()).ask("Chile?", teams=teams)
    with pytest.raises(UsageError, match="select is 'luck'; there are vote, first, judge, best"):
        Teams(3, "luck")  # type: ignore[arg-type]


async def test_teams_get_no_tool_that_writes() -> None:
    """Each would call it: the message says which, and what to do."""

    @tool(effect="write")
    async def send(text: str) -> str:
        """Send. text: what."""
        return text

    agent = Agent([send], runtime=answers(), teams=2)
    with pytest.raises(UsageError, match="the tool 'send' writes or sends, and each of 2 teams"):
        await agent.ask("Chile?")


# How teams differ


def test_team_one_is_the_agent_as_it_is() -> None:
    """Its temperature, seed, instructions, and order of tools."""
    one = variation(1, temperature=0.0, seed=None)
    assert (one.temperature, one.seed, one.how) == (0.0, None, "")
    assert one.instructed("Be brief.") == "Be brief."
    assert list(one.ordered({"a": 1, "b": 2})) == ["a", "b"]


def test_further_teams_differ_in_all_that_counts() -> None:
    """Under greedy decoding a seed changes nothing, so they are sampled; each has a seed, an
    outline and an order of tools of its own."""
    teams = [variation(team, temperature=0.0, seed=7) for team in (2, 3, 4)]
    assert [team.temperature for team in teams] == [SAMPLED] * 3
    assert [team.seed for team in teams] == [8, 9, 10]
    assert len({team.outline for team in teams}) == 3
    assert [next(iter(team.ordered(dict.fromkeys("abcd")))) for team in teams] == ["b", "c", "d"]
    assert variation(2, temperature=0.9, seed=None).temperature == 0.9
    assert variation(2, temperature=0.9, seed=None).seed is None


def test_equal_seeds_give_equal_variations() -> None:
    """However often they are asked for; without a seed, too, where the agent is greedy."""
    for seed in (None, 0, 5):
        for team in range(17):
            one = variation(team, temperature=0.0, seed=seed)
            assert one == variation(team, temperature=0.0, seed=seed)
            assert team < 2 or one.seed is not None


async def test_the_model_is_asked_in_each_teams_way() -> None:
    """The planner's requests have it; the joiner's have the agent's own instructions."""
    model = answers(RIGHT, RIGHT, RIGHT)

    @tool
    async def area(country: str) -> int:
        """Area of a country. country: English name."""
        return 1

    agent = Agent([population, area], runtime=model, seed=0, instructions="Be brief.", teams=3)
    await agent.ask("Chile?")
    plans = {r.seed: r for r in model.requests if "You plan" in r.messages[0].content}
    joins = [r for r in model.requests if "You answer" in r.messages[0].content]
    assert {seed: r.temperature for seed, r in plans.items()} == {0: 0.0, 1: SAMPLED, 2: SAMPLED}
    prompts = [plans[seed].messages[0].content for seed in (0, 1, 2)]
    assert prompts[0].endswith("Be brief.")
    assert "from the last to the first" in prompts[1]
    assert prompts[0].index("population(") < prompts[0].index("area(")
    assert prompts[1].index("area(") < prompts[1].index("population(")
    assert {r.temperature for r in joins} == {0.0}
    assert len({r.messages[0] for r in joins}) == 1


# Whose answer it is


def answered(
    team: int, text: str, *, supported: Sequence[bool] = (True,), status: Any = "answered"
) -> Ended:
    citations = tuple(Citation(1, "s", "x", supported=ok) for ok in supported)
    lacking = () if all(supported) else ("s",)
    return Ended(
        team, Answer(f"r.{team}", "q", text, citations, lacking, status=status, error="gone")
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2,073 km [3]", "2073 kilometres."),
        ("The Nile [1]", "the nile"),
        ("19.60 million people", "19,600,000 inhabitants [2]"),
        ("$5 million", "5,000,000 dollars"),
        ("about 5.0 %", "5 percent"),
        ("\N{MINUS SIGN}3", "-3"),
        ("19 600 000", "19'600'000"),
    ],
)
def test_equal_conclusions_are_one(one: str, other: str) -> None:
    """Whatever separators, units, marks, case and articles they are written with."""
    assert folded(one) == folded(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5 km", "5 miles"),
        ("5 km", "50 km"),
        ("Peru is larger than Chile", "Chile is larger than Peru"),
        ("-3", "3"),
        ("19.6 million", "19.6"),
        ("1.2", "12"),
    ],
)
def test_different_conclusions_are_two(one: str, other: str) -> None:
    """Folding loses nothing that counts."""
    assert folded(one) != folded(other)


def test_a_bare_number_votes_with_its_unit() -> None:
    """With the unit that most have."""
    ended = [
        answered(1, "Answer: 7 miles"),
        answered(2, "Answer: 5 km"),
        answered(3, "Answer: 5"),
    ]
    choice = vote(ended)
    assert choice is not None
    assert (choice.team, choice.votes) == (2, {"5 km": (2, 3), "7 miles": (1,)})


def test_ties_go_to_the_better_supported_then_to_the_earlier() -> None:
    """One vote each: what is supported wins; where that is equal, the order of ending does."""
    doubtful = answered(1, "Answer: 5", supported=[False])
    choice = vote([doubtful, answered(2, "Answer: 7"), answered(3, "Answer: 8")])
    assert choice is not None
    assert choice.team == 2
    assert choice.why.startswith("1 of 3 came to it; of those with as many votes")
    again = vote([answered(3, "Answer: 8"), answered(2, "Answer: 7")])
    assert again is not None
    assert again.team == 3


def test_who_found_nothing_abstains() -> None:
    """Two that found nothing do not outvote one that did; three of them agree."""
    nothing = [answered(team, "Answer: not found") for team in (1, 2)]
    choice = vote([*nothing, answered(3, "Answer: 5 km")])
    assert choice is not None
    assert (choice.team, choice.why) == (3, "1 of 1 came to it, 2 found nothing")
    only = vote(nothing)
    assert only is not None
    assert only.why == "2 of 2 came to it"
    assert vote([answered(1, "", status="failed")]) is None


def test_first_is_the_first_that_is_verified() -> None:
    """Nothing unsupported, something cited, something found, no limit met."""
    uncited = answered(2, "Answer: 5", supported=[])
    nothing = answered(3, "Answer: not found")
    doubtful = answered(1, "Answer: 5", supported=[True, False])
    assert first([doubtful, uncited, nothing]) is None
    choice = first([doubtful, uncited, nothing, answered(4, "Answer: 5"), answered(5, "5")])
    assert choice is not None
    assert choice.team == 4


def test_best_has_most_support() -> None:
    """Then the fewest failed calls, then the earlier."""
    half = answered(1, "One. Answer: 5", supported=[True, False])
    failing = Ended(2, Answer("r.2", "q", "Answer: 5", outcomes={1: Failed("no")}))
    whole = Ended(3, Answer("r.3", "q", "Answer: 5", outcomes={1: Ok(1)}))
    choice = best([half, failing, whole])
    assert choice is not None
    assert choice.team == 3
    assert best([half, failing]) == best([failing, half])
    assert best([answered(1, "", status="failed")]) is None


def test_a_best_that_is_poor_is_called_so() -> None:
    """No share of sentences hides that no citation holds."""
    poor = best([answered(1, "One. Answer: 5", supported=[False, False])])
    assert poor is not None
    assert poor.why == "it cites nothing that holds, and none is better supported"
    fair = best([answered(1, "One. Answer: 5", supported=[True, False])])
    assert fair is not None
    assert fair.why == "what was read carries 50% of its sentences and citations"


def test_the_judges_word() -> None:
    """A number of an answer, whatever stands around it."""
    assert judged("2", 3) == judged('{"best": 2}', 3) == judged("Answer 2.", 3) == 2
    assert judged("4", 3) is judged("0", 3) is judged("none", 3) is judged("9" * 99, 3) is None


def test_the_judge_reads_each_answer_once() -> None:
    """Equal conclusions stand for one, by their best supported answer."""
    ended = [answered(2, "Answer: 5", supported=[False]), answered(1, "Answer: 5"),
             answered(3, "Answer: 6")]  # fmt: skip
    assert [one.team for one in distinct(ended)] == [1, 3]


# first


async def test_first_stops_the_others() -> None:
    """The slow team and its request are gone when the answer is there."""
    model = answers((HANG, RIGHT), RIGHT, (HANG, RIGHT))
    async with asyncio.timeout(5):
        answer = await agent_of(model).ask("Chile?", teams=Teams(3, "first"))
    assert (answer.chosen, answer.text) == (2, RIGHT)
    assert answer.why == "the first answer that what was read carries in full"
    assert [team.status for team in answer.teams] == ["cancelled", "answered", "cancelled"]
    assert answer.teams[0].error == "team 2 was first"
    assert answer.teams[0].outcomes == {1: Ok(19)}
    assert model.open == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_vote_that_is_decided_waits_for_nobody() -> None:
    """Two of three agree: what the third comes to changes nothing, and it is stopped."""
    model = answers((HANG, WRONG), RIGHT, RIGHT)
    async with asyncio.timeout(5):
        answer = await agent_of(model).ask("Chile?", teams=3)
    assert (answer.chosen, answer.text) == (2, RIGHT)
    assert answer.teams[0].error == "2 of 3 teams came to one answer"
    assert answer.why == "2 of 3 came to it, 1 could change nothing and was stopped"
    assert model.open == 0


async def test_half_is_no_majority() -> None:
    """Two of four agree: the other two may agree on something else."""
    model = answers(RIGHT, RIGHT, (0.05, WRONG), (0.05, WRONG))
    answer = await agent_of(model).ask("Chile?", teams=4)
    assert [team.status for team in answer.teams] == ["answered"] * 4


async def test_first_waits_for_one_that_is_verified() -> None:
    """An answer with a number from nowhere is not it, however early."""
    answer = await agent_of(answers(WRONG, (0.05, RIGHT))).ask("Chile?", teams=Teams(2, "first"))
    assert (answer.chosen, answer.text) == (2, RIGHT)


async def test_where_none_is_verified_first_takes_the_best() -> None:
    """And says so."""
    agent = agent_of(answers(WRONG, "Answer: not found"))
    answer = await agent.ask("Chile?", teams=Teams(2, "first"))
    assert answer.chosen == 1
    assert answer.why.startswith("no answer is carried in full by what was read; taken as")


# judge


async def test_the_judge_picks_by_number() -> None:
    """Its tokens count, its request is constrained where the server can."""
    model = answers(WRONG, RIGHT)
    model.judge, model.able = '{"best": 2}', frozenset({"json_schema"})
    answer = await agent_of(model).ask("Chile?", teams=Teams(2, "judge"))
    assert (answer.chosen, answer.usage.calls) == (2, 5)
    assert answer.why == "the model took it for the best of 2 different answers"
    schema = model.requests[-1].json_schema
    assert schema is not None
    assert schema["properties"]["best"]["enum"] == [1, 2]


async def test_a_grammar_does_where_there_is_no_schema() -> None:
    """The number alone can be written."""
    model = answers(WRONG, RIGHT)
    model.judge, model.able = "2", frozenset({"grammar"})
    answer = await agent_of(model, grammar=False).ask("Chile?", teams=Teams(2, "judge"))
    assert answer.chosen == 2
    assert model.requests[-1].grammar == 'root ::= "1" | "2"'


@pytest.mark.parametrize(
    ("judge", "why"),
    [
        ("neither", "the judge wrote 'neither', which is no answer's number, so by vote: "),
        (ModelServerError("it is gone"), "the judge could not be asked (it is gone), so by vote"),
    ],
)
async def test_without_a_judge_it_is_the_vote(judge: Any, why: str) -> None:
    """The run has its answer all the same, and says why it is this one."""
    model = answers(WRONG, RIGHT, RIGHT)
    model.judge = judge
    answer = await agent_of(model).ask("Chile?", teams=Teams(3, "judge"))
    assert answer.chosen == 2
    assert answer.why.startswith(why)
    assert answer.why.endswith("2 of 3 came to it")


async def test_one_answer_needs_no_judge() -> None:
    """All came to the same: the model is not asked."""
    model = answers(RIGHT, RIGHT)
    answer = await agent_of(model).ask("Chile?", teams=Teams(2, "judge"))
    assert answer.usage.calls == 4
    assert answer.why == "there is one answer to judge: 2 of 2 came to it"


# Trouble


async def test_a_team_that_fails_fails_no_other() -> None:
    """Its error is with it."""
    agent = agent_of(answers(ModelServerError("the server is gone"), RIGHT, RIGHT))
    answer = await agent.ask("Chile?", teams=3)
    assert (answer.status, answer.chosen) == ("answered", 2)
    assert (answer.teams[0].status, answer.teams[0].error) == ("failed", "the server is gone")


async def test_where_all_fail_each_says_why() -> None:
    """In the error, and in the answer that it carries."""
    agent = agent_of(answers(ModelServerError("no power"), ModelServerError("no network")))
    with pytest.raises(RunFailed) as raised:
        await agent.ask("Chile?", teams=2)
    assert str(raised.value) == ("no team has answered: team 1: no power; team 2: no network")
    answer = raised.value.answer
    assert isinstance(answer, Answer)
    assert (answer.status, answer.chosen, len(answer.teams)) == ("failed", 0, 2)
    assert answer.usage.steps == 2


async def test_a_team_that_cannot_be_recorded_fails_alone(tmp_path: Path) -> None:
    """Where its record lies already, say: the others go on."""
    (tmp_path / "r.1").mkdir()
    (tmp_path / "r.1" / "events.jsonl").write_text("taken\n")
    agent = agent_of(answers(RIGHT, RIGHT), runs=tmp_path)
    answer = await agent.ask("Chile?", run_id="r", teams=2)
    assert answer.chosen == 2
    assert "there is a record of a run 'r.1' already" in answer.teams[0].error
    with pytest.raises(UsageError, match="a record of a run 'r' already"):
        await agent.ask("Chile?", run_id="r", teams=2)


async def test_a_deadline_holds_for_all() -> None:
    """Those that are too slow answer from what they have."""
    model = answers((HANG, RIGHT), RIGHT)
    async with asyncio.timeout(5):
        answer = await agent_of(model).ask("Chile?", teams=2, deadline=1.0)
    assert answer.chosen == 2
    assert answer.teams[0].usage.stopped_by == "deadline=1 s"
    assert answer.usage.stopped_by == ""
    assert model.open == 0


async def test_a_judge_with_no_time_left_is_not_waited_for() -> None:
    """The deadline is that of the whole run."""
    model = answers(WRONG, RIGHT)
    model.judge = HANG
    async with asyncio.timeout(5):
        answer = await agent_of(model).ask("Chile?", teams=Teams(2, "judge"), deadline=1.5)
    assert answer.why.startswith("there was no time left for the judge, so by vote")
    assert model.open == 0


async def test_leaving_the_run_stops_all_of_it(tmp_path: Path) -> None:
    """No task, no request; every record ends, and says that it was cancelled."""
    model = answers((HANG, RIGHT), (HANG, RIGHT))
    agent = agent_of(model, runs=tmp_path)
    async with agent.run("Chile?", run_id="r", teams=2) as run:
        async for event in run:
            if isinstance(event, FromTeam) and isinstance(event.told, TaskDone):
                break
    assert model.open == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    with pytest.raises(RunFailed, match="cancelled by the caller") as raised:
        _ = run.answer
    answer = raised.value.answer
    assert isinstance(answer, Answer)
    assert [team.status for team in answer.teams] == ["cancelled", "cancelled"]
    for name in ("r", "r.1", "r.2"):
        *_, last = read_record(tmp_path / name / "events.jsonl").events
        assert isinstance(last, RunFinished)
        assert last.status == "cancelled"


# Events and records


async def test_what_a_run_of_teams_tells(tmp_path: Path) -> None:
    """Its own events are about all teams, and stand in its record; each team's stand in its own,
    and are told as `FromTeam` with times of the whole run."""
    agent = agent_of(answers(WRONG, RIGHT, RIGHT), runs=tmp_path)
    async with agent.run("Chile?", run_id="r", teams=3) as run:
        told = [event async for event in run]
    own = [event for event in told if not isinstance(event, FromTeam)]
    kinds = [type(event) for event in own]
    assert kinds[0] is RunStarted
    assert kinds[-3:] == [TeamChosen, Answered, RunFinished]
    assert sorted(event.team for event in own if isinstance(event, TeamStarted)) == [1, 2, 3]
    assert list(read_record(tmp_path / "r" / "events.jsonl").events) == own
    chosen = next(event for event in own if isinstance(event, TeamChosen))
    assert (chosen.team, chosen.select) == (2, "vote")
    assert chosen.votes == {"19": (2, 3), "91": (1,)}
    for team in (1, 2, 3):
        heard = [e.told for e in told if isinstance(e, FromTeam) and e.team == team]
        record = read_record(tmp_path / f"r.{team}" / "events.jsonl")
        assert list(record.events) == heard
        assert replay(record).difference == ""
    times = [event.at for event in told]
    assert all(event.at >= 0 for event in told)
    assert max(times) == times[-1] == run.answer.seconds


async def test_a_single_run_tells_nothing_of_teams() -> None:
    """Its events are what they were."""
    async with agent_of(answers(RIGHT)).run("Chile?") as run:
        told = [event async for event in run]
    assert not [e for e in told if isinstance(e, FromTeam | TeamStarted | TeamEnded | TeamChosen)]


async def test_secrets_are_hidden_in_what_is_about_all() -> None:
    """As in each team."""
    agent = agent_of(answers("Answer: hunter2-hunter2"), secrets=["hunter2-hunter2"], teams=2)
    agent._runtime.say = lambda team, joining: (  # type: ignore[union-attr]
        "Answer: hunter2-hunter2" if joining else CHILE
    )
    async with agent.run("Is it hunter2-hunter2?") as run:
        told = [event async for event in run]
    assert "hunter2" not in str(told)
    assert "hunter2" not in str(run.answer.as_dict()["teams"])


# The journal


async def test_a_run_of_teams_that_ended_is_read(tmp_path: Path) -> None:
    """The same answer, and nobody is asked."""
    url = f"sqlite:///{tmp_path}/j.db"
    before = await agent_of(answers(WRONG, RIGHT, RIGHT), journal=url).ask(
        "Chile?", run_id="r", teams=3
    )
    silent = ScriptedRuntime([])
    for again in (
        await Agent([population], runtime=silent, seed=0, journal=url).ask("Chile?", run_id="r"),
        await Agent([population], runtime=silent, seed=0, journal=url).resume("r"),
    ):
        assert (again.text, again.chosen, again.why) == (before.text, 2, "2 of 3 came to it")
        assert [team.text for team in again.teams] == [WRONG, RIGHT, RIGHT]
        assert again.usage == before.usage
    assert silent.requests == []


async def test_a_run_of_teams_is_carried_on(tmp_path: Path) -> None:
    """What a team has answered stands, no call that has a result is made again, and the others
    go on as the teams that they were."""
    calls: list[str] = []

    @tool
    async def population(country: str) -> int:
        """Population of a country. country: English name."""
        calls.append(country)
        return 19

    url = f"sqlite:///{tmp_path}/j.db"
    model = answers(RIGHT, (HANG, RIGHT), (HANG, RIGHT))
    agent = Agent([population], runtime=model, seed=0, journal=url, runs=tmp_path, memory=ALONE)
    async with agent.run("Chile?", run_id="r", teams=Teams(3, "best")) as run:
        async for event in run:
            if isinstance(event, TeamEnded):
                await asyncio.sleep(0.1)
                break
    assert len(calls) == 3
    rest = answers("never asked", RIGHT, WRONG)
    agent = Agent([population], runtime=rest, seed=0, journal=url, runs=tmp_path, memory=ALONE)
    answer = await agent.resume("r")
    assert len(calls) == 3
    assert len(rest.requests) == 2
    assert (answer.chosen, len(answer.teams), answer.changes) == (1, 3, ())
    assert [team.text for team in answer.teams] == [RIGHT, RIGHT, WRONG]
    events = list(read_record(tmp_path / "r" / "events.jsonl").events)
    assert next(event.team for event in events if isinstance(event, TeamEnded)) == 1
    assert len([event for event in events if isinstance(event, TeamStarted)]) == 3
    assert [event.at for event in events] == sorted(event.at for event in events)
    async with open_journal(url) as journal:
        assert {run.id: run.status for run in await journal.runs()} == dict.fromkeys(
            ["r", "r.1", "r.2", "r.3"], "answered"
        )


async def test_who_was_stopped_is_not_carried_on(tmp_path: Path) -> None:
    """Its run has ended in the journal: it is no run that broke off, and can be pruned."""
    url = f"sqlite:///{tmp_path}/j.db"
    agent = agent_of(answers((HANG, RIGHT), RIGHT), journal=url)
    await agent.ask("Chile?", run_id="r", teams=Teams(2, "first"))
    async with open_journal(url) as journal:
        assert {run.id: run.ended for run in await journal.runs()} == {
            "r": True, "r.1": True, "r.2": True,
        }  # fmt: skip
    silent = Agent([population], runtime=ScriptedRuntime([]), seed=0, journal=url)
    again = await silent.resume("r")
    assert [team.status for team in again.teams] == ["cancelled", "answered"]
    with pytest.raises(RunFailed, match="team 2 was first"):
        await silent.resume("r.1")
    assert await silent.resume_orphan() is None


async def test_a_run_of_teams_that_died_at_its_very_end_is_held_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last event is in the journal, and that it has ended is not: who reads it says so."""
    url = f"sqlite:///{tmp_path}/j.db"
    with monkeypatch.context() as dying:
        dying.setattr(TeamsLog, "close", lambda self, status: self._leave())
        await agent_of(answers(RIGHT, RIGHT), journal=url).ask("Chile?", run_id="r", teams=2)
    async with Agent([population], runtime=ScriptedRuntime([]), seed=0, journal=url) as agent:
        assert (await agent.resume("r")).text == RIGHT
        async with open_journal(url) as journal:
            assert {run.id: (run.status, run.held) for run in await journal.runs()} == (
                dict.fromkeys(["r", "r.1", "r.2"], ("answered", False))
            )


async def test_a_team_that_never_began_has_not_changed(tmp_path: Path) -> None:
    """The process died before its turn came: a strict resume begins it."""
    url = f"sqlite:///{tmp_path}/j.db"
    agent = agent_of(answers((HANG, RIGHT), (HANG, RIGHT)), journal=url)
    begin = agent._session

    async def one_only(run_id: str, *args: Any, team: int = 0, **fields: Any) -> Any:
        if team == 2:
            await asyncio.sleep(HANG)
        return await begin(run_id, *args, team=team, **fields)

    agent._session = one_only  # type: ignore[method-assign]
    async with agent.run("Chile?", run_id="r", teams=2) as run:
        async for event in run:
            if isinstance(event, FromTeam) and isinstance(event.told, TaskDone):
                break
    again = await agent_of(answers(RIGHT, RIGHT), journal=url).resume("r", strict=True)
    assert [team.text for team in again.teams] == [RIGHT, RIGHT]


async def test_one_team_is_carried_on_by_itself(tmp_path: Path) -> None:
    """As the team that it was, with its seed, and without the others."""
    url = f"sqlite:///{tmp_path}/j.db"
    model = answers((HANG, RIGHT), (HANG, RIGHT))
    async with agent_of(model, journal=url).run("Chile?", run_id="r", teams=2) as run:
        async for event in run:
            if isinstance(event, FromTeam) and isinstance(event.told, TaskDone):
                await asyncio.sleep(0.05)
                break
    rest = answers(WRONG, RIGHT)
    answer = await agent_of(rest, journal=url).resume("r.2")
    assert (answer.text, answer.teams, answer.changes) == (RIGHT, (), ())
    assert [request.seed for request in rest.requests] == [1]


# A real model


@pytest.mark.vllm
@pytest.mark.timeout(300)
async def test_teams_on_a_real_server(vllm_url: str) -> None:
    """Three teams at once: each has a plan of its own from a model, all of them end, and what is
    said of them adds up."""
    agent = Agent(
        [population], model=vllm_url, seed=1, max_plan_lines=3, max_plan_tokens=96,
        max_answer_tokens=48, max_replans=0,
    )  # fmt: skip
    async with agent, agent.run("How many people live in Chile?", teams=3) as run:
        told = [event async for event in run]
    answer = run.answer
    assert answer.chosen in (1, 2, 3)
    assert answer.usage.prompt_tokens == sum(team.usage.prompt_tokens for team in answer.teams)
    used = [e for e in told if isinstance(e, FromTeam) and isinstance(e.told, ModelUsed)]
    assert {event.team for event in used} == {1, 2, 3}
