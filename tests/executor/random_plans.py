"""Random plans for hypothesis, and a world of tools whose calls can go wrong in every way.

Every call's outcome is a function of its arguments, so plans can be compared by what they come
to. Values are small and shaped alike, so that paths, stars and equal calls meet often.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from agentpar.plan import EACH, Failed, Ok, Outcome, Pick, Ref, Step, Task

READS = ("get", "list", "join", "fail")
WRITE = "send"
PATHS: tuple[tuple[Step, ...], ...] = ((), ("v",), (0,), (0, "v"), ("gone",))
STARS: tuple[tuple[Step, ...], ...] = ((EACH,), (EACH, "v"), ("v", EACH))


def call(tool: str, args: Mapping[str, Any]) -> Outcome:
    """What the tool gives for these arguments, always the same."""
    seen = json.dumps(args, sort_keys=True)
    match tool:
        case "list":
            return Ok([{"v": n, "of": seen[:40]} for n in range(len(seen) % 4)])
        case "join":
            return Ok({"v": [1, 2], "of": seen[:40]})
        case "fail":
            return Failed(f"no {seen[:40]}") if len(seen) % 2 else Ok({"v": 1})
    return Ok({"v": seen[:40]})


@st.composite
def plans(draw: st.DrawFn, *, picks: bool = True, stars: bool = True) -> list[Task]:
    """A plan of up to twelve tasks, with gaps in its numbers, that refer to earlier ones."""
    tasks: list[Task] = []
    id = 0
    for _ in range(draw(st.integers(1, 12))):
        id += draw(st.integers(1, 2))
        tool = draw(st.sampled_from((*READS, WRITE)))
        earlier = [task.id for task in tasks]
        names = draw(st.lists(st.sampled_from("abc"), max_size=3, unique=True))
        args = {name: draw(arguments(earlier, picks)) for name in names}
        if stars and earlier and draw(st.integers(0, 4)) == 0:
            over, star = draw(st.sampled_from(earlier)), draw(st.sampled_from(STARS))
            args["each"] = Ref(over, star)
            if star[0] is EACH and draw(st.booleans()):
                args["more"] = [Ref(over, (EACH, "of"))]
        tasks.append(Task.of(id, tool, **args))
    return tasks


@st.composite
def arguments(draw: st.DrawFn, earlier: list[int], picks: bool) -> Any:
    """A literal, a reference, several in a list or dict, or a pick of some."""
    kind = draw(st.integers(0, 6)) if earlier else 0
    if kind == 0:
        return draw(st.sampled_from((1, True, "x", None)))
    refs = st.builds(Ref, st.sampled_from(earlier), st.sampled_from(PATHS))
    if kind <= 3:
        return draw(refs)
    if kind == 4:
        return [draw(refs), {"deep": draw(refs)}]
    if not picks:
        return draw(refs)
    several = tuple(draw(st.lists(refs, min_size=1, max_size=4)))
    return Pick(several, draw(st.none() | st.integers(1, len(several))))
