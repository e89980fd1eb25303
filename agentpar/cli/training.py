"""``agentpar memory train`` and ``eval``: a controller of one's own, and what one is worth.

It says which data were used and what they cannot show; it writes a controller only where it is
told to, and over nothing.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentpar.cli.memory import AgentFile, BankUrl, opened
from agentpar.cli.runs import RunsFolder
from agentpar.errors import UsageError

if TYPE_CHECKING:  # learning loads when something is learned
    from agentpar.memory.learning import Controller, Logged
    from agentpar.memory.learning.training import Replay

Data = Annotated[
    str | None,
    typer.Argument(
        metavar="DATA",
        help="Logged decisions (JSON lines), or a regime of the simulator such as 'default'.",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Equal seeds give equal results.")]
_RUNS = Path("runs")


def train(
    data: Data = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the controller there."),
    ] = None,
    bank: BankUrl = None,
    agent: AgentFile = None,
    runs: RunsFolder = _RUNS,
    seed: Seed = 0,
    effort: Annotated[
        float, typer.Option(metavar="X", help="Of the simulator: 1 takes a minute or less.")
    ] = 1.0,
) -> None:
    """Train an admission controller: on recorded runs, on logged decisions, or in the simulator.

    Without DATA it learns from the runs in --runs and the ledger of their --bank. It is promoted
    over the rule only by episodes played under both: simulated ones, or, where teams have worked on
    enough questions, every second of those, replayed with a second for each call that is made. One
    that was learned from fewer runs or from logs is not, and leaves the decisions to the rule.
    """
    from agentpar.memory.learning import evaluate as tried
    from agentpar.memory.learning import train as learn

    if output is None:
        raise UsageError("say where the controller goes: -o controller.json")
    if output.exists():
        raise UsageError(
            f"{str(output)!r} is there already, and nothing is overwritten: name another file"
        )
    if not output.parent.is_dir():
        raise UsageError(f"there is no folder {str(output.parent)!r} to write a controller to")
    _known(data)
    if data is not None and (bank is not None or agent is not None):
        raise UsageError("give DATA or a bank, not both: they are two kinds of data")
    if data is not None:
        trained = learn(data, seed=seed, effort=effort, say=_say)
    else:
        logged = _of_runs(bank, agent, runs)
        replay, replayed = _replay_of(runs)
        kept = [one for one in logged if one.run_id.rpartition(".")[0] not in replayed]
        trained = learn(kept, seed=seed, replay=replay, say=_say)
    if data is None:
        _told_estimates(trained)
    else:
        for line in tried(trained, data, seed=seed).lines():
            typer.echo(line)
    trained.save(output)
    why = trained.record.get("promotion")
    if trained.promoted:
        typer.echo(f"promoted over the rule; written to {output}", err=True)
    else:
        reason = why if isinstance(why, str) else "it was not ahead of the rule for certain"
        typer.echo(
            f"not promoted ({reason}), so with it the rule decides; written to {output}", err=True
        )


def evaluate(
    controller: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONTROLLER.json", help="By default the one that comes with agentpar."
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="DATA",
            help="Logged decisions or a regime; by default the simulator's seven regimes.",
        ),
    ] = None,
    bank: BankUrl = None,
    agent: AgentFile = None,
    runs: RunsFolder = _RUNS,
    seed: Seed = 0,
    episodes: Annotated[
        int, typer.Option(metavar="N", help="Simulated, for each regime and policy.")
    ] = 300,
) -> None:
    """Try a controller beside no bank, admit all, the rule and the oracle.

    With --bank it is estimated on the runs in --runs. In the simulator teams and pages are made
    up: what it shows there is no promise about real runs.
    """
    from agentpar.memory.learning import evaluate as tried
    from agentpar.memory.learning import load, shipped

    chosen = shipped() if controller is None else load(controller)
    if bank is not None or agent is not None:
        if on is not None:
            raise UsageError("give --on or a bank, not both: they are two kinds of data")
        from agentpar.memory.learning.training import LEAST_DECISIONS, estimate, guarded

        logged = _of_runs(bank, agent, runs)
        typer.echo(f"Seconds of credit a decision, estimated from {len(logged)} decisions in runs.")
        typer.echo(f"rule        {estimate(chosen.rule.admits, logged):+.3f}")
        typer.echo(f"controller  {estimate(guarded(chosen), logged):+.3f}")
        if len(logged) < LEAST_DECISIONS:
            typer.echo(f"from fewer than {LEAST_DECISIONS} decisions this says little", err=True)
    else:
        _known(on)
        for line in tried(chosen, on, seed=seed, episodes=episodes, say=_say).lines():
            typer.echo(line)
    if not chosen.promoted:
        typer.echo("this controller was not promoted: with it the rule decides", err=True)


def _known(data: str | None) -> None:
    """Raise `UsageError` where ``data`` is neither a file nor a regime."""
    from agentpar.memory.learning import OTHERS, REGIMES

    regimes = [one.name for one in (*REGIMES, *OTHERS)]
    if data is not None and data not in regimes and not Path(data).is_file():
        known = ", ".join(map(repr, regimes))
        raise UsageError(f"{data!r} is no file of logged decisions and no regime ({known})")


def _of_runs(bank: str | None, agent: Path | None, runs: Path) -> list[Logged]:
    """The decisions of all recorded runs below ``runs``."""
    from agentpar.cli.records import RECORD
    from agentpar.executor.record import read_record
    from agentpar.memory.learning.runs import decisions

    if bank is None and agent is None:
        raise UsageError(
            "say what to learn from: DATA (logged decisions, or a regime such as 'default'), or "
            "recorded runs by their bank, --bank sqlite:///bank.db --runs runs"
        )
    records = sorted(runs.glob(f"**/{RECORD}"))
    if not records:
        raise UsageError(f"there are no recorded runs in {str(runs)!r}: --runs names another")
    with opened(bank, agent) as store:
        return list(decisions((list(read_record(path).events) for path in records), store))


def _replay_of(runs: Path) -> tuple[Replay | None, frozenset[str]]:
    """Every second question on which several teams have worked, as episodes to be played under any
    gate, and the names of their runs; nothing where they are too few to promote by."""
    from agentpar.cli.records import RECORD
    from agentpar.executor.record import read_record
    from agentpar.memory.learning.promotion import LEAST
    from agentpar.memory.learning.recorded import recorded_team
    from agentpar.memory.learning.replay import together, trial

    teams = []
    for path in sorted(runs.glob(f"**/{RECORD}")):
        if path.parent.name.rpartition(".")[2].isdigit():  # R.2, a team of R
            with suppress(UsageError):  # it has not ended
                teams.append(recorded_team(read_record(path).events))
    several = [group for group in together(teams) if len(group) > 1][1::2]
    if len(several) < LEAST:
        return None, frozenset()
    _say(f"paired replay of {len(several)} questions, which are not learned from")
    return trial(several, call=1.0), frozenset(group[0].group for group in several)


def _told_estimates(controller: Controller) -> None:
    estimated = controller.record["estimated"]
    typer.echo(
        f"learned from {controller.record['decisions']} decisions, "
        f"{controller.record['credited']} of them with a credit"
    )
    typer.echo(f"rule        {estimated['rule']:+.3f} s a decision, estimated")
    typer.echo(f"controller  {estimated['controller']:+.3f} s a decision, estimated")


def _say(line: str) -> None:
    typer.echo(line, err=True)
