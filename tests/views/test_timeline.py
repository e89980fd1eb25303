"""A run as one HTML page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample import (
    CHANGES,
    NOTE,
    big_events,
    carried_on_events,
    events,
    hostile_events,
    hostile_teams,
    teams_events,
)

from agentpar.events import (
    Answered,
    PlanStarted,
    RunFinished,
    RunStarted,
    Source,
    TaskDone,
    TaskPlanned,
    TaskStarted,
)
from agentpar.memory.evidence import check
from agentpar.plan import Failed, Ok, Task
from agentpar.timeline import render_timeline

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """The page's elements, read as a browser would."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def classes(self, name: str) -> list[dict[str, str | None]]:
        return [at for _, at in self.elements if name in (at.get("class") or "").split()]

    def ids(self) -> set[str]:
        return {at["id"] or "" for _, at in self.elements if "id" in at}


def data(html: str) -> dict[str, dict[str, object]]:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="tasks">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_every_task_has_its_row_and_its_details() -> None:
    """State, critical path, filled arguments, results and errors are on the page."""
    html = render_timeline(events())
    rows = {at["data-task"]: (at["class"] or "").split()[2:] for at in Page(html).classes("task")}
    assert rows == {
        "1": ["ok"], "2": ["ok", "critical"], "3": ["ok"], "4": ["failed", "critical"],
        "5": ["skipped"], "6": ["ok", "critical"], "7": ["ok", "critical"],
    }  # fmt: skip
    tasks = data(html)
    assert tasks["4"]["error"] == "HTTP 404 for http://atlas.example/peru (tool)"
    assert tasks["7"]["result"] == "14723129"
    assert '"a": 34352719' in str(tasks["7"]["filled"])
    assert tasks["2"]["users"] == [4, 6]


def test_citation_marks_lead_to_their_passages() -> None:
    """Each [n] is a link to evidence on the page, where the passage stands in its context."""
    html = render_timeline(events())
    page = Page(html)
    targets = [(at["href"] or "").removeprefix("#") for at in page.classes("cite")]
    assert targets == ["evidence-1", "evidence-2", "evidence-3", "evidence-4"]
    assert set(targets) <= page.ids()
    assert re.search(r'class="unsupported"[^>]*>Most of them live on the coast\.<', html)


def test_evidence_leads_to_the_call_that_read_it() -> None:
    """By its task, whatever its number: task 3 brought two sources, so [5] is of task 6."""
    html = render_timeline(events())
    calls = re.findall(r'<a class="n" href="#task-(\d+)"[^>]*>\[(\d+)\]', html)
    assert calls == [("6", "5"), ("3", "3"), ("3", "4"), ("7", "6")]
    peru = "<mark>The population of Peru is 34,352,719 people as of 2023.</mark>\nIts capital"
    census = "The census of 2023.\n<mark>Chile: 19,629,590 inhabitants.</mark>\nThe next one"
    assert peru in html
    assert census in html


def test_a_passage_is_shown_in_the_page_that_is_cited() -> None:
    """Where two pages of one call have the same line, not in the other one."""
    pages = [
        {"url": f"http://{name}", "title": name, "text": f"{name}\nPopulation | 19\nof {name}"}
        for name in ("atlas", "census")
    ]
    text = "The population is 19 [2]."
    checked = check(text, {2: Source(2, 1, "http://census", "census", pages[1]["text"])})
    run = [
        RunStarted("r", "q"),
        TaskPlanned(1, Task.of(1, "web_lookup", query="x")),
        TaskStarted(1, {"query": "x"}, 0.1),
        TaskDone(1, Ok({**pages[0], "others": pages[1:]}), 0.2),
        Answered(1, text, checked.citations),
    ]
    assert "census\n<mark>Population | 19</mark>\nof census" in render_timeline(run)


def test_a_mark_leads_to_what_was_found_for_its_sentence() -> None:
    """Two sentences that cite one source have a passage each; a repeated one is marked twice."""
    text = "Chile has 19 people [1].\nPeru wins. Chile has 3 rivers [1]. Lima [1]. Peru wins."
    checked = check(text, {1: Source(1, 1, "u", "Chile", "People | 19\nRivers | 3")})
    run = [RunStarted("r", "q"), Answered(1, text, checked.citations, checked.unsupported)]
    page = Page(html := render_timeline(run))
    assert [at["href"] for at in page.classes("cite")] == [
        "#evidence-1", "#evidence-2", "#evidence-3",
    ]  # fmt: skip
    assert html.count(">Peru wins.</span>") == 2


def test_a_mark_that_was_not_checked_leads_nowhere() -> None:
    """A number behind what is no claim has no evidence, and is not that of a task."""
    text = "The population was not found [3]."
    run = [*events()[:-3], Answered(2, text, at=7.65)]
    page = Page(render_timeline(run))
    (mark,) = page.classes("cite")
    assert "href" not in mark
    assert "unchecked" in (mark["class"] or "")


def test_what_cites_no_result_has_no_call_to_lead_to() -> None:
    """Every link inside the page has a target."""
    text = "Chile has 9 rivers [9]."
    run = [RunStarted("r", "q"), Answered(1, text, check(text, {}).citations)]
    for page in map(Page, map(render_timeline, (run, events(), hostile_events()))):
        inside = {at["href"] or "" for tag, at in page.elements if tag == "a"}
        assert {href[1:] for href in inside if href.startswith("#")} <= page.ids()


def test_the_page_begins_with_what_is_simulated() -> None:
    """A reader who gets the page alone must not take the mini-web's times for the web's."""
    head = render_timeline(events()).split("</header>")[0]
    assert f'<p class="note">{NOTE}</p>' in head
    assert 'class="note"' not in render_timeline(events()[1:])


def test_a_label_stands_where_there_is_room() -> None:
    """Behind its bar, before one that ends at the edge, within one that fills the width."""

    def label(start: float, end: float) -> str:
        run = [
            RunStarted("r", "q"),
            TaskPlanned(1, Task.of(1, "a")),
            TaskStarted(1, {}, start),
            TaskDone(1, Ok(None), end),
            RunFinished("failed", at=10.0),
        ]
        row = render_timeline(run).split('id="task-1"')[1].split("</svg>")[0]
        return row.split("<text ")[1].split(">")[0]

    assert label(1, 5) == 'x="50.0%" dx="6" y="17"'
    assert label(5, 9.5) == 'x="50.0%" dx="-6" y="17" text-anchor="end"'
    assert label(1, 9.5) == 'class="within" x="95.0%" dx="-6" y="17" text-anchor="end"'


def test_a_call_that_was_refused_is_not_drawn_as_one_that_ran() -> None:
    """It waited until somebody said no; its row says so, and its bar has no length."""
    task = Task.of(1, "send", text="hello")
    told = [
        RunStarted("r", "Say hello"),
        PlanStarted(1),
        TaskPlanned(1, task, 0.5),
        TaskDone(1, Failed("not approved: no", "denied"), 4.0),
        RunFinished("answered", at=4.5),
    ]
    page = render_timeline(told)
    row = page[page.index('id="task-1"') :].split("</svg>")[0]
    assert 'class="wait"' in row
    assert ">denied<" in row
    wait, bar = (float(width) for width in re.findall(r'width="([\d.]+)%?"', row)[:2])
    assert bar < wait / 10


def test_both_rounds_faults_and_totals_are_shown() -> None:
    """A replan is a second plan lane with its reason before it."""
    html = render_timeline(events())
    for text in ("Plan 1", "Join 1", "Plan 2", "Join 2", "↻ the page on Peru is gone"):
        assert text in html
    assert "tool &#x27;serach&#x27; is not known" in html
    assert "4.90 s of calls in 3.69 s" in html
    assert "3,561 read, 1,952 cached, 245 written" in html


def test_the_page_asks_nothing_of_the_network() -> None:
    """No element loads anything; links are http(s) or inside the page."""
    for html in (render_timeline(events()), render_timeline(hostile_events())):
        for tag, at in Page(html).elements:
            assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
            assert not {"src", "srcset", "style"} & set(at)
            assert not any(name.startswith("on") for name in at)
            assert re.match(r"#|https?://", at.get("href") or "#")
        assert "default-src 'none'" in html
        assert "unsafe" not in html.split("<title>")[0]


def test_hostile_text_adds_no_element() -> None:
    """Two scripts, ours; nothing of a page's text is read as markup or as a slot."""
    html = render_timeline(hostile_events())
    page = Page(html)
    assert [at.get("type") for tag, at in page.elements if tag == "script"] == [
        "application/json",
        None,
    ]
    assert "{{js}}{{answer}}" in html
    html.encode()  # no lone surrogates: it can be written to a file
    assert not set("\x1b\x07\x00\u202e") & set(html)
    assert str(data(html)["1"]["thought"]).startswith("</script><script>")


@pytest.mark.parametrize("length", range(0, len(events()), 5))
def test_a_run_that_broke_off_still_gives_a_page(length: int) -> None:
    """Any prefix of a record renders."""
    assert "</html>" in render_timeline(events()[:length])


def test_long_results_are_cut_and_say_so() -> None:
    """The page holds the first 4,000 characters and the count of the others."""
    run = [
        RunStarted("r", "q"),
        PlanStarted(1),
        TaskPlanned(1, Task.of(1, "web_fetch", url="x")),
        TaskStarted(1, {"url": "x"}, 0.1),
        TaskDone(1, Ok("z" * 10_000), 0.2),
    ]
    result = str(data(render_timeline(run))["1"]["result"])
    assert result.startswith("z" * 4000 + "\n")
    assert "6,000 characters more" in result


def test_a_thousand_tasks_render_within_two_seconds_of_work() -> None:
    """Large runs stay readable: every task has its row."""
    run = big_events(1000)
    began = time.process_time()
    html = render_timeline(run)
    assert time.process_time() - began < 2
    assert html.count('class="row task') == 1000


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[str, str], str]:
    """Open a page from disk in a real browser; gives the DOM after its script has run."""

    def open_page(html: str, fragment: str) -> str:
        assert CHROMIUM
        file = tmp_path / "timeline.html"
        file.write_text(html, encoding="utf-8")
        command = [CHROMIUM, "--headless", "--disable-gpu", "--no-first-run", "--dump-dom"]
        command += [f"--user-data-dir={tmp_path}/profile", "--proxy-server=127.0.0.1:9"]
        if os.geteuid() == 0:
            command.append("--no-sandbox")
        done = subprocess.run(
            [*command, f"{file.as_uri()}{fragment}"], capture_output=True, timeout=60, check=True
        )
        return done.stdout.decode()

    return open_page


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_runs_the_page_offline(browse: Callable[[str, str], str]) -> None:
    """With every connection refused the script runs and shows the task that the link names."""
    dom = browse(render_timeline(events()), "#task-4")
    assert 'data-ready="yes"' in dom
    details = dom.split('id="details"')[1].split("</aside>")[0]
    assert "HTTP 404 for http://atlas.example/peru" in details
    assert "2 web_search" in details
    arrows = dom.split('id="arrows"')[1].split("</svg>")[0]
    assert arrows.count("<path") == 2  # from task 2, to task 5


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_hostile_text_is_inert_in_a_browser(browse: Callable[[str, str], str]) -> None:
    """Nothing of it runs, and the policy would stop it even if our escaping had a hole."""
    tell = "document.documentElement.dataset.pwned='yes'"
    hostile = render_timeline(hostile_events()).replace("window.pwned=1", tell)
    dom = browse(hostile, "#task-1")
    assert 'data-ready="yes"' in dom
    assert "data-pwned" not in dom
    assert "<img" not in dom
    assert "&lt;/script&gt;" in dom.split('id="details"')[1]
    injected = f'<main><script>{tell}</script><img src=x onerror="{tell}">'
    holed = render_timeline(events()).replace("<main>", injected, 1)
    assert "data-pwned" not in browse(holed, "")
    assert "data-pwned" in browse(holed.replace("Content-Security-Policy", "x-nothing"), "")


# Several teams


def test_teams_are_lanes_on_one_axis() -> None:
    """Each team's rows stand together under its name, on the time of the whole run."""
    html = render_timeline(teams_events())
    page = Page(html)
    order = [at.get("id") for _, at in page.elements if (at.get("class") or "").startswith("row t")]
    assert order == [
        name
        for team in (1, 2, 3)
        for name in (f"team-{team}", *(f"task-{team}.{id}" for id in (1, 2, 3)))
    ]
    chosen = [at["id"] for at in page.classes("chosen") if "id" in at]
    assert chosen == ["team-1"]
    first = {
        team: float(re.search(rf'task-{team}\.1".*?x="([\d.]+)%"', html, re.DOTALL)[1])  # type: ignore[index]
        for team in (1, 2)
    }
    # Team 1 began at 0.01 s and started its call 0.3 s later, team 2 at 0.02 s and 0.4 s.
    assert first == pytest.approx({1: 0.31 / 3.6 * 100, 2: 0.42 / 3.6 * 100}, abs=0.01)


def test_a_reuse_leads_to_the_task_that_found_it() -> None:
    """For the arrow, and in words for who sees none."""
    html = render_timeline(teams_events())
    tasks = data(html)
    assert {id: task["from"] for id, task in tasks.items() if "from" in task} == {
        "2.1": "1.2", "3.1": "1.2",
    }  # fmt: skip
    assert tasks["2.1"]["whose"] == "from team 1, task 2"
    assert tasks["2.3"]["needs"] == ["2.1", "2.2"]
    assert html.count("s, from team 1</text>") == 2
    assert "found by another" in html
    assert "found by another" not in render_timeline(events())


def test_the_page_says_who_was_chosen_and_why() -> None:
    """Votes, each team's end, and the evidence with a link to the chosen team's call."""
    html = render_timeline(teams_events())
    assert "Team 1 was chosen (vote): 2 of 2 came to it." in html
    assert "<b>2</b> Peru <small>team 1, 2</small>" in html
    assert "failed: the server is gone" in html
    assert 'href="#task-1.2" title="The call that read it"' in html
    assert "Plan of team 1" in html


def test_a_host_that_asks_for_less_stands_at_its_call() -> None:
    """When, for how long, and in its details who; and the legend says what the mark means."""
    html = render_timeline(carried_on_events())
    assert len(Page(html).classes("throttled")) == 2 + 1
    assert len(Page(html).classes("peace")) == 1 + 1
    assert "asks for less" not in render_timeline(events())
    assert data(html)["4"]["hosts"] == "1.70 s: atlas.example asks for less for 1.50 s"
    assert data(html)["6"]["hosts"] == "4.60 s: atlas.example asks for less"
    assert data(html)["3"]["hosts"] == ""


def test_where_a_run_was_carried_on_is_drawn_and_what_had_changed_is_said() -> None:
    """A line across all lanes, and in words above them."""
    html = render_timeline(carried_on_events())
    assert len(Page(html).classes("resumed")) == 1 + 1 + 1  # line, words, legend
    assert f"carried on at 2.20 s: {escape('; '.join(CHANGES))}" in html
    assert "carried on" not in render_timeline(events())


def test_what_a_host_is_called_is_escaped() -> None:
    """A page may have named it."""
    html = render_timeline(carried_on_events("<img src=x>"))
    assert "<img" not in html


def test_every_prefix_of_a_run_of_teams_is_a_page() -> None:
    """Whatever has been told by then."""
    told = teams_events()
    for end in range(0, len(told), 3):
        assert "</html>" in render_timeline(told[:end])


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_draws_every_reuse(browse: Callable[[str, str], str]) -> None:
    """An arrow for each, without anything being selected."""
    dom = browse(render_timeline(teams_events()), "")
    assert dom.split('id="reuse"')[1].split("</svg>")[0].count('class="head"') == 2
    dom = browse(render_timeline(teams_events()), "#task-2.1")
    details = dom.split('id="details"')[1].split("</aside>")[0]
    assert "its result is there, from team 1, task 2" in details


def test_what_teams_say_is_escaped() -> None:
    """Names, reasons, conclusions and votes are text."""
    html = render_timeline(hostile_teams())
    assert "<img" not in html
    assert html.count("</script>") == 2
