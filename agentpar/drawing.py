"""A plan as a picture: Mermaid text, SVG, PNG.

Left to right in layers: what stands in one column can run at the same time. The SVG is
drawn here, with no outside program; only `png` needs one. Nothing here knows a run's
times: that is the timeline's business.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from pathlib import Path
from unicodedata import east_asian_width

from agentpar.errors import UsageError
from agentpar.plaintext import one_line
from agentpar.plan import Failed, Ok, Outcome, Skipped, Task, to_graph
from agentpar.story import arguments, call

# name: (fill, border, text), in light and in dark. Failed and skipped also differ by
# border and mark, so that the picture reads without colour.
_LIGHT = {
    "plain": ("#ffffff", "#b9bec9", "#1d2330"),
    "ok": ("#eef4fc", "#3f7fc9", "#173a63"),
    "failed": ("#fdeeee", "#cf3f46", "#7a1a20"),
    "skipped": ("#f4f4f5", "#9b9fa8", "#5d626d"),
    "missing": ("#fff8e6", "#c48a12", "#6e4c05"),
}
_DARK = {
    "plain": ("#1d212b", "#545b6b", "#e7e9ee"),
    "ok": ("#17263a", "#5b9be6", "#d3e5fb"),
    "failed": ("#3a1a1d", "#ea6b72", "#ffd9db"),
    "skipped": ("#24262c", "#767b87", "#b3b7c0"),
    "missing": ("#362a10", "#dba53a", "#f8e3b4"),
}
_MARKS = {"ok": "✓", "failed": "✕", "skipped": "–", "missing": "?"}

_NODE_WIDTH, _NODE_HEIGHT = 216, 46
_COLUMN_GAP, _ROW_GAP, _BEND_HEIGHT, _MARGIN = 64, 16, 10, 20
_LABEL_COLUMNS = 28  # characters of 6.6 px that fit a node's second line
_SANS = "system-ui, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', sans-serif"
_MONO = "ui-monospace, 'SF Mono', Menlo, 'DejaVu Sans Mono', monospace"

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PNG_TIMEOUT = 60.0  # seconds; a cold browser takes a few


def mermaid(tasks: Iterable[Task], outcomes: Mapping[int, Outcome] | None = None) -> str:
    """The plan as a Mermaid flowchart; ``outcomes`` colours the tasks that have one."""
    tasks = _unfolded(tasks)
    known = {task.id for task in tasks}
    kinds: dict[str, list[str]] = {}
    lines = ["flowchart LR"]
    for task in tasks:
        given = one_line(arguments(task), 60)
        label = _mermaid_text(f"{task.label} · {one_line(task.tool, 40)}")
        label += f"<br/>{_mermaid_text(given)}" if given else ""
        lines.append(f'  t{task.id}["{label}"]')
        kinds.setdefault(_kind(task.id, outcomes), []).append(f"t{task.id}")
    missing = dict.fromkeys(need for task in tasks for need in task.needs if need not in known)
    for id in missing:
        lines.append(f'  t{id}["{id} · not in the plan"]')
        kinds.setdefault("missing", []).append(f"t{id}")
    for need, id in _reduced(tasks):
        lines.append(f"  t{need} --> t{id}")
    for kind, names in kinds.items():
        fill, border, text = _LIGHT[kind]
        dash = ",stroke-dasharray:5 4" if kind in ("skipped", "missing") else ""
        lines.append(f"  classDef {kind} fill:{fill},stroke:{border},color:{text}{dash}")
        lines.append(f"  class {','.join(names)} {kind}")
    return "\n".join(lines) + "\n"


def svg(
    tasks: Iterable[Task],
    outcomes: Mapping[int, Outcome] | None = None,
    *,
    embedded: bool = False,
) -> str:
    """The plan as an SVG document that follows the viewer's light or dark mode.

    Arrows that others imply are left out. An arrow from a later task, which can never be
    satisfied, is dashed; a task that is referred to and absent is drawn as missing.

    ``embedded`` leaves out the style element, for a page that styles the classes
    ``node``, ``edge``, ``ok``, ``failed``, ``skipped``, ``missing`` itself.
    """
    tasks = _unfolded(tasks)
    layout = _lay_out(tasks)
    by_id = {task.id: task for task in tasks}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plan" role="img" '
        f'aria-label="Plan of {len(tasks)} tasks" width="{layout.width}" '
        f'height="{layout.height}" viewBox="0 0 {layout.width} {layout.height}">',
        "" if embedded else f"<style>{_standalone_style()}</style>",
        '<defs><marker id="plan-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path class="head" d="M0 0.6 7.4 4 0 7.4z" '
        'fill="#8a91a0"/></marker></defs>',
    ]
    for edge in layout.edges:
        dashed = ' stroke-dasharray="5 4"' if edge.impossible else ""
        parts.append(
            f'<path class="edge" data-from="{edge.need}" data-to="{edge.task}" d="{edge.path}" '
            f'fill="none" stroke="#8a91a0" stroke-width="1.4"{dashed} '
            'marker-end="url(#plan-arrow)"/>'
        )
    for id, (x, y) in layout.places.items():
        parts.append(_svg_node(id, by_id.get(id), x, y, _kind(id, outcomes, by_id)))
    parts.append("</svg>\n")
    return "\n".join(part for part in parts if part)


def png(tasks: Iterable[Task], outcomes: Mapping[int, Outcome] | None = None) -> bytes:
    """The plan as a PNG, at twice the SVG's size, drawn by ``rsvg-convert`` or a Chromium.

    Raises `UsageError` where neither is installed or the drawing program fails.
    """
    tasks = _unfolded(tasks)
    layout = _lay_out(tasks)
    picture = svg(tasks, outcomes)
    if converter := shutil.which("rsvg-convert"):
        return _output([converter, "--zoom=2", "--format=png"], picture.encode())
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise UsageError(
            "drawing a PNG needs 'rsvg-convert' or 'chromium', and neither is installed: "
            "apt install librsvg2-bin (macOS: brew install librsvg), or write an .svg instead"
        )
    # A helper that dies while the folder is emptied may still leave a file in it.
    with tempfile.TemporaryDirectory(prefix="agentpar-png-", ignore_cleanup_errors=True) as folder:
        page, image = Path(folder, "plan.svg"), Path(folder, "plan.png")
        page.write_text(picture, encoding="utf-8")
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            f"--user-data-dir={folder}/profile",
            "--force-device-scale-factor=2",
            f"--window-size={layout.width},{layout.height}",
            f"--screenshot={image}",
        ]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--no-sandbox")  # Chromium's sandbox refuses to start as root
        _output([*command, page.as_uri()])
        if not image.exists():
            raise UsageError(f"{browser} drew no PNG of the plan; write an .svg instead")
        return image.read_bytes()


def _output(command: Sequence[str], stdin: bytes = b"") -> bytes:
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        with child:
            try:
                output, errors = child.communicate(stdin, timeout=_PNG_TIMEOUT)
            finally:
                # A browser's helpers outlive it for a moment, and write to its profile.
                # (A group of which all are dead: macOS says PermissionError.)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise UsageError(f"drawing a PNG: {problem}; write an .svg instead") from problem
    if child.returncode != 0:
        complaint = one_line(errors.decode(errors="replace"), 300)
        raise UsageError(f"drawing a PNG: {command[0]} failed: {complaint}")
    return output


def _kind(
    id: int, outcomes: Mapping[int, Outcome] | None, known: Mapping[int, Task] | None = None
) -> str:
    if known is not None and id not in known:
        return "missing"
    match (outcomes or {}).get(id):
        case Ok():
            return "ok"
        case Failed():
            return "failed"
        case Skipped():
            return "skipped"
    return "plain"


def _mermaid_text(text: str) -> str:
    """``text`` inside a quoted Mermaid label: anything that could mean something is a code."""
    return "".join(
        char if char.isalnum() or char in " .,:=()·…_/-" else f"#{ord(char)};" for char in text
    )


# --- layers -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Edge:
    need: int
    task: int
    path: str
    impossible: bool = False


@dataclass(frozen=True, slots=True)
class _Layout:
    width: int
    height: int
    places: Mapping[int, tuple[float, float]]  # top left corner, by task id
    edges: Sequence[_Edge]


# A place in a layer: a task, or a bend (need, task, layer) that leads a long arrow
# between the tasks of the layers it crosses.
def _unfolded(tasks: Iterable[Task]) -> list[Task]:
    """A task over a list waits, in the picture, for its parts, which stand before it."""
    tasks = list(tasks)
    parts: dict[int, list[Task]] = {}
    for task in tasks:
        if task.part is not None:
            parts.setdefault(task.part[0], []).append(task)
    unfolded: list[Task] = []
    for task in tasks:
        if task.id in parts:
            own = parts[task.id]
            unfolded += [*own, replace(task, needs=tuple(part.id for part in own))]
        elif task.part is None:
            unfolded.append(task)
    return unfolded


_Place = int | tuple[int, int, int]


def _possible(tasks: Sequence[Task]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The arrows, parted into those from an earlier (or absent) task and the others.

    The first kind cannot form a cycle, so that every plan can be drawn.
    """
    position = {task.id: number for number, task in enumerate(tasks)}
    forward: list[tuple[int, int]] = []
    backward: list[tuple[int, int]] = []
    for number, task in enumerate(tasks):
        for need in task.needs:
            (forward if position.get(need, -1) < number else backward).append((need, task.id))
    return forward, backward


def _reduced(tasks: Sequence[Task]) -> list[tuple[int, int]]:
    """Every arrow that no chain of others implies; impossible arrows stay."""
    import networkx as nx

    forward, backward = _possible(tasks)
    graph = to_graph(tasks)
    graph.remove_edges_from(backward)
    return [*nx.transitive_reduction(graph).edges, *backward] if forward else backward


def _lay_out(tasks: Sequence[Task]) -> _Layout:
    """Columns by generation, rows by the barycentre heuristic (Sugiyama et al., 1981)."""
    import networkx as nx

    _, backward = _possible(tasks)
    arrows = [edge for edge in _reduced(tasks) if edge not in set(backward)]
    graph = nx.DiGraph(arrows)
    graph.add_nodes_from(task.id for task in tasks)
    graph.add_nodes_from(id for edge in backward for id in edge)
    columns: list[list[_Place]] = [sorted(layer) for layer in nx.topological_generations(graph)]
    column_of = {id: number for number, column in enumerate(columns) for id in column}
    before: dict[_Place, list[_Place]] = {}
    after: dict[_Place, list[_Place]] = {}
    chains: dict[tuple[int, int], list[_Place]] = {}
    for need, task in arrows:
        bends: list[_Place] = [
            (need, task, number) for number in range(column_of[need] + 1, column_of[task])
        ]
        for bend, column in zip(bends, columns[column_of[need] + 1 :], strict=False):
            column.append(bend)
        chain: list[_Place] = [need, *bends, task]
        chains[need, task] = chain
        for place, following in pairwise(chain):
            after.setdefault(place, []).append(following)
            before.setdefault(following, []).append(place)
    rows = _rows(columns, before, after)
    top = min(rows.values(), default=0.0)
    middle = {place: row - top + _MARGIN + _NODE_HEIGHT / 2 for place, row in rows.items()}
    left = {
        place: _MARGIN + number * (_NODE_WIDTH + _COLUMN_GAP)
        for number, column in enumerate(columns)
        for place in column
    }
    edges = [_Edge(*ends, _curve(chain, left, middle)) for ends, chain in chains.items()]
    edges += [_Edge(*ends, _curve(list(ends), left, middle), impossible=True) for ends in backward]
    return _Layout(
        width=2 * _MARGIN + max(1, len(columns)) * (_NODE_WIDTH + _COLUMN_GAP) - _COLUMN_GAP,
        height=round(max(middle.values(), default=_MARGIN) + _NODE_HEIGHT / 2 + _MARGIN),
        places={
            place: (left[place], middle[place] - _NODE_HEIGHT / 2)
            for place in middle
            if isinstance(place, int)
        },
        edges=edges,
    )


def _rows(
    columns: list[list[_Place]],
    before: Mapping[_Place, list[_Place]],
    after: Mapping[_Place, list[_Place]],
) -> dict[_Place, float]:
    """The middle of each place, in px: near its neighbours' mean, nothing overlapping."""
    rows: dict[_Place, float] = {}
    for column in columns:
        rows.update(_stack(column, dict.fromkeys(column, 0.0)))
    for sweep in range(8):
        forward = sweep % 2 == 0
        neighbours = before if forward else after
        for column in columns if forward else reversed(columns):
            wish = {place: _mean(neighbours.get(place), rows, rows[place]) for place in column}
            column.sort(key=wish.__getitem__)  # stable: ties stay as they were
            rows.update(_stack(column, wish))
    return rows


def _mean(places: list[_Place] | None, rows: Mapping[_Place, float], otherwise: float) -> float:
    return sum(rows[place] for place in places) / len(places) if places else otherwise


def _stack(column: Sequence[_Place], wish: Mapping[_Place, float]) -> dict[_Place, float]:
    """Places in order, none closer than its height, the whole as near to ``wish`` as can be."""
    rows: dict[_Place, float] = {}
    floor = float("-inf")
    for place in column:
        half = _half(place)
        rows[place] = max(wish[place], floor + half)
        floor = rows[place] + half + _ROW_GAP
    shift = sum(wish[place] - rows[place] for place in column) / max(1, len(column))
    return {place: row + shift for place, row in rows.items()}


def _half(place: _Place) -> float:
    return (_NODE_HEIGHT if isinstance(place, int) else _BEND_HEIGHT) / 2


def _curve(
    chain: Sequence[_Place], left: Mapping[_Place, float], middle: Mapping[_Place, float]
) -> str:
    """A smooth path through the chain, level wherever it passes a column."""
    x, y = left[chain[0]] + _NODE_WIDTH, middle[chain[0]]
    path = [f"M{x:.0f} {y:.1f}"]
    for place in chain[1:]:
        next_x, next_y = left[place], middle[place]
        reach = max(24.0, abs(next_x - x) / 2)
        path.append(
            f"C{x + reach:.0f} {y:.1f} {next_x - reach:.0f} {next_y:.1f} {next_x:.0f} {next_y:.1f}"
        )
        x, y = next_x, next_y
        if not isinstance(place, int):
            x += _NODE_WIDTH
            path.append(f"H{x:.0f}")
    return "".join(path)


# --- strokes ----------------------------------------------------------------------------


def _svg_node(id: int, task: Task | None, x: float, y: float, kind: str) -> str:
    fill, border, text = _LIGHT[kind]
    number = str(id) if task is None else task.label
    dash = ' stroke-dasharray="5 4"' if kind in ("skipped", "missing") else ""
    if task is None:
        name, given, title = "not in the plan", "", f"task {id} is referred to and absent"
    else:
        name, given = one_line(task.tool, 22), _fit(one_line(arguments(task), 80))
        title = one_line(call(task), 600)
    first_line = 19 if given else 28
    mark = _MARKS.get(kind, "")
    return (
        f'<g class="node {kind}" data-task="{id}" transform="translate({x:.0f} {y:.1f})">'
        f"<title>{number} · {escape(title)}</title>"
        f'<rect width="{_NODE_WIDTH}" height="{_NODE_HEIGHT}" rx="9" fill="{fill}" '
        f'stroke="{border}" stroke-width="1.4"{dash}/>'
        f'<text x="12" y="{first_line}" font-family="{_SANS}" font-size="13" font-weight="600" '
        f'fill="{text}"><tspan opacity="0.6">{number}</tspan> {escape(name)}</text>'
        f'<text x="{_NODE_WIDTH - 12}" y="{first_line}" text-anchor="end" font-family="{_SANS}" '
        f'font-size="12" font-weight="700" fill="{border}" class="mark">{mark}</text>'
        f'<text x="12" y="36" font-family="{_MONO}" font-size="11" fill="{text}" '
        f'opacity="0.75" xml:space="preserve">{escape(given)}</text></g>'
    )


def _fit(text: str) -> str:
    """``text`` cut to a node's width; wide (East Asian) characters count twice."""
    used = 0
    for index, char in enumerate(text):
        used += 2 if east_asian_width(char) in "WF" else 1
        if used > _LABEL_COLUMNS:
            return text[: max(0, index - 1)] + "…"
    return text


def _standalone_style() -> str:
    """Dark colours for an SVG that is viewed by itself; style wins over the attributes."""
    rules = ["svg.plan{background:#14171e}.edge{stroke:#7c8496}.head{fill:#7c8496}"]
    for kind, (fill, border, text) in _DARK.items():
        rules.append(
            f".{kind} rect{{fill:{fill};stroke:{border}}}.{kind} text{{fill:{text}}}"
            f".{kind} .mark{{fill:{border}}}"
        )
    return "@media (prefers-color-scheme: dark){" + "".join(rules) + "}"
