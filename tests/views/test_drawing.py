"""Plans as Mermaid, SVG and PNG."""

from __future__ import annotations

import os
import re
import select
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample import HOSTILE, TASKS, events

from agentpar.drawing import mermaid, png, svg
from agentpar.errors import UsageError
from agentpar.plan import Ok, Ref, Skipped, Task
from agentpar.story import Story

SVG = "{http://www.w3.org/2000/svg}"


def nodes(picture: str) -> dict[int, tuple[str, float, float]]:
    """Kind and place of each node in an SVG."""
    found = {}
    for group in ElementTree.fromstring(picture).iter(f"{SVG}g"):
        x, y = re.findall(r"-?[\d.]+", group.attrib["transform"])
        kind = group.attrib["class"].removeprefix("node ")
        found[int(group.attrib["data-task"])] = (kind, float(x), float(y))
    return found


def edges(picture: str) -> set[tuple[int, int]]:
    """Which task leads to which in an SVG."""
    paths = ElementTree.fromstring(picture).iter(f"{SVG}path")
    return {
        (int(path.attrib["data-from"]), int(path.attrib["data-to"]))
        for path in paths
        if path.attrib["class"] == "edge"
    }


def test_mermaid_names_each_task_its_needs_and_outcome() -> None:
    """The text is the plan: nodes, arrows, a class per outcome."""
    text = mermaid(TASKS.values(), Story.of(events()).outcomes())
    assert text.startswith("flowchart LR\n")
    assert 't1["1 · web_search<br/>query=#34;Chile population#34;"]' in text
    assert "t4 --> t5" in text
    assert "class t4 failed" in text
    assert "class t5 skipped" in text


def test_mermaid_labels_hold_no_syntax() -> None:
    """Quotes, brackets, backticks, newlines and tags of an argument become codes."""
    text = mermaid([Task.of(1, HOSTILE, url=HOSTILE + '"]\nclick t1 href "javascript:x"')])
    (label,) = re.findall(r'^  t1\["(.*)"\]$', text, re.MULTILINE)
    label = label.replace("<br/>", "", 1)
    assert re.fullmatch(r"(#\d+;|[\w .,:=()·…/-])*", label)
    assert "click" not in [line.split()[0] for line in text.splitlines()]


def test_arrows_that_others_imply_are_left_out() -> None:
    """3 needs 1 and 2, 2 needs 1: the arrow 1 to 3 says nothing new."""
    tasks = [Task.of(1, "a"), Task.of(2, "b", x=Ref(1)), Task.of(3, "c", x=Ref(1), y=Ref(2))]
    assert edges(svg(tasks)) == {(1, 2), (2, 3)}
    assert "t1 --> t3" not in mermaid(tasks)


def test_columns_are_what_can_run_together() -> None:
    """A task stands right of everything it needs."""
    picture = nodes(svg(TASKS.values()))
    assert picture[1][1] == picture[2][1] < picture[3][1] == picture[6][1] < picture[5][1]


def test_a_missing_task_and_an_impossible_arrow_are_drawn() -> None:
    """A broken plan still gives a picture that shows what is broken."""
    tasks = [Task.of(1, "a", x=Ref(2), y=Ref(9)), Task.of(2, "b", x=Ref(1)), Task.of(3, "c")]
    picture = svg(tasks)
    assert nodes(picture)[9][0] == "missing"
    assert edges(picture) == {(9, 1), (1, 2), (2, 1)}
    assert "t9" in mermaid(tasks)


def test_hostile_text_stays_text_in_svg() -> None:
    """The picture is well-formed XML with no element or attribute of the text's making."""
    picture = svg([Task.of(1, HOSTILE, **{HOSTILE: HOSTILE})], {1: Ok(1)})
    tree = ElementTree.fromstring(picture)
    assert {element.tag.removeprefix(SVG) for element in tree.iter()} <= {
        "svg", "style", "defs", "marker", "path", "g", "title", "rect", "text", "tspan",
    }  # fmt: skip
    assert not any(name.startswith("on") for element in tree.iter() for name in element.attrib)


@st.composite
def plans(draw: st.DrawFn) -> list[Task]:
    """Plans of up to 14 tasks, references to absent and later tasks included."""
    ids = draw(st.lists(st.integers(1, 20), unique=True, max_size=14))
    needs = st.lists(st.integers(1, 21), max_size=4, unique=True).map(tuple)
    return [Task(id, "t", {}, draw(needs)) for id in ids]


@given(plans())
def test_every_plan_is_drawn_without_overlap(tasks: list[Task]) -> None:
    """Each task once, no two boxes on top of each other, all inside the picture."""
    picture = svg(tasks, {task.id: Skipped(1) for task in tasks[::2]})
    root, placed = ElementTree.fromstring(picture), nodes(picture)
    assert {task.id for task in tasks} <= set(placed)
    boxes = [(x, y) for _, x, y in placed.values()]
    for number, (x, y) in enumerate(boxes):
        assert 0 <= x <= float(root.attrib["width"]) - 216
        assert 0 <= y <= float(root.attrib["height"]) - 46
        assert all(abs(x - x2) >= 216 or abs(y - y2) >= 46 for x2, y2 in boxes[number + 1 :])
    mermaid(tasks)


def test_png_without_a_program_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error names the programs, the command, and the way without."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"rsvg-convert.*apt install.*\.svg"):
        png(TASKS.values())


def test_png_tells_why_the_program_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A failing program's own words are in the error."""
    program = tmp_path / "rsvg-convert"
    program.write_text("#!/bin/sh\necho 'no fonts' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(UsageError, match="rsvg-convert failed: no fonts"):
        png(TASKS.values())


def test_png_leaves_no_process_of_the_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A browser's helpers would still write to the folder that is being removed."""
    held = tmp_path / "held"  # by the helper, as its descriptor 3, as long as it lives
    os.mkfifo(held)
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    program = tmp_path / "rsvg-convert"
    helper = f'exec 3>"{held}"\nsleep 60 >/dev/null 2>&1 </dev/null &\nexec 3>&-'
    program.write_text(f"#!/bin/sh\n{helper}\ncat >/dev/null\necho drawn\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    try:
        assert png(TASKS.values()) == b"drawn\n"
        ended, _, _ = select.select([reader], [], [], 5)
        assert ended
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


@pytest.mark.browser
@pytest.mark.skipif(
    not (shutil.which("rsvg-convert") or shutil.which("chromium")), reason="no program draws PNG"
)
def test_png_is_an_image_of_the_plan() -> None:
    """A PNG of twice the SVG's size."""
    image = png(TASKS.values())
    assert image.startswith(b"\x89PNG\r\n")
    width = int(ElementTree.fromstring(svg(TASKS.values())).attrib["width"])
    assert int.from_bytes(image[16:20], "big") == 2 * width
