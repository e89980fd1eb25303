"""Citations: what stands in a source is supported, whatever else is found out and named."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentpar.events import Source
from agentpar.memory.evidence import (
    MARK,
    as_text,
    check,
    sources,
    spans,
    split_sentences,
    unmarked,
)
from agentpar.plan import EACH, Failed, Ok, Pick, Ref, Skipped, Task

CHILE = (
    "Chile\nCapital | Santiago\nPopulation | 19,116,201 (2020 estimate)\nArea | 756,102 km²\n"
    "The Atacama in the north is the driest desert; it can reach −5 degrees at night.\n"
    "About 88.6% of the people live in cities. Its highest mountain is the Ojos del Salado."
)
PERU = "Peru\nCapital | Lima\nPopulation | 32,971,854\nSpanish, Quechua and Aymará are spoken."
KNOWN = {
    1: Source(1, 4, "http://atlas/chile", "Chile - Atlas", CHILE),
    2: Source(2, 5, "http://atlas/peru", "Peru - Atlas", PERU),
}


def problems(text: str) -> list[str]:
    """What is wrong with each citation, and the unsupported sentences."""
    checked = check(text, KNOWN)
    return [c.problem for c in checked.citations if c.problem] + list(checked.unsupported)


@pytest.mark.parametrize(
    "sentence",
    [
        "Chile has 19,116,201 people [1].",
        "Chile has 19116201 people [1].",
        "Chile has about 19.1 million people [1].",
        "Chile has around 19 million people [1].",
        "Chile has 0.019 billion people [1].",
        "Chile has 19.1 mn people, or 0.019 bn [1].",
        "Chile's population is 19,116,201 [1].",
        "The population of Chile was 19,116,201 in 2020. [1]",
        "In cities live 88.6% of the people of Chile [1].",
        "At night the Atacama reaches -5 degrees [1].",
        "At night the Atacama reaches −5 degrees [1].",
        "The capital of Peru is Lima [2].",
        "In Peru, Quechua and Aymará are spoken [2].",
        "In PERU QUECHUA is spoken [2].",
        "Chile's capital is Santiago, and Peru's is Lima [1, 2].",
        "Chile's capital is Santiago [1], and Peru's is Lima [2].",
        "1. Chile has 19,116,201 people [1].",
        "- **Peru** has 32,971,854 people [2].",
        "Answer: Chile [1]",
    ],
)
def test_what_stands_in_the_source_is_supported(sentence: str) -> None:
    """However it is written: rounded, grouped, declined, in a list."""
    assert problems(sentence) == []


@pytest.mark.parametrize(
    ("sentence", "problem"),
    [
        ("Chile has 19,116,202 people [1].", "the number 19,116,202 is not"),
        ("Chile has about 19.2 million people [1].", "the number 19,200,000 is not"),
        ("Chile has 18 million people [1].", "the number 18,000,000 is not"),
        ("Chile has 756,102 people and 4 deserts [1].", "the number 4 is not"),
        ("In cities live 89% of the people of Chile [1].", "the number 89 is not"),
        ("At night the Atacama reaches 5 degrees [1].", "the number 5 is not"),
        ("The population of Chile was 19,116,201 in 2021 [1].", "the number 2,021 is not"),
        ("The capital of Chile is Lima [1].", "the name 'Lima' is not"),
        ("Lima is the capital and the population is 19,116,201 [1].", "the name 'Lima' is not"),
        ("Peru's population is 19,116,201, an estimate of 2020 [1].", "the name 'Peru' is not"),
        ("Answer: Peru has the population of 19,116,201 [1].", "the name 'Peru' is not"),
        ("Peru exports copper [2].", "does not mention 'copper', 'exports'"),
        ("The capital of Chile is Santiago [9].", "this run has no result [9]"),
        ("The driest desert is the Atacama [1, 2].", "nothing of this sentence"),
    ],
)
def test_what_does_not_is_found_out(sentence: str, problem: str) -> None:
    """The problem names what is missing; the sentence is unsupported as it was written."""
    found = problems(sentence)
    assert problem in found[0]
    assert found[-1] == sentence


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (Failed("not approved: not on Sundays", "denied"),
         "call 9 was denied, so there is no result [9] (not approved: not on Sundays)"),
        (Failed("KeyError: 'x'"), "call 9 failed, so there is no result [9] (KeyError: 'x')"),
        (Skipped(3), "call 9 was skipped as call 3 has no result"),
    ],
)  # fmt: skip
def test_a_citation_of_a_call_without_a_result_says_what_became_of_it(
    outcome: Failed | Skipped, problem: str
) -> None:
    """ "Denied" is not "no result": the reader learns that it was not allowed."""
    [citation] = check("The report was sent [9].", KNOWN, {9: outcome}).citations
    assert citation.problem == problem
    assert not citation.supported


def test_a_large_number_must_match_to_the_last_digit() -> None:
    """Eight billion with one wrong digit is another number; rounded on purpose it is not."""
    known = {1: Source(1, 1, "", "World", "Population 8,045,311,447")}
    assert check("The population is 8,045,311,448 [1].", known).unsupported
    assert not check("The population is 8,045,311,447 [1].", known).unsupported
    assert not check("The population is 8.05 billion [1].", known).unsupported


@pytest.mark.parametrize("space", ["\u00a0", "\u202f", "\u2009", "'", "’", ","])
def test_thousands_in_groups(space: str) -> None:
    """Grouped as in many countries, on both sides."""
    known = {1: Source(1, 1, "", "Chile", f"Population 19{space}116{space}201")}
    assert not check("The population is 19,116,201 [1].", known).unsupported
    known = {1: Source(1, 1, "", "Chile", "Population 19116201")}
    assert not check(f"The population is 19{space}116{space}201 [1].", known).unsupported


@pytest.mark.parametrize("digits", ["1" * 400, "1" * 10_000])
def test_a_monstrous_number_supports_nothing(digits: str) -> None:
    """More digits than a float can hold: neither an error nor a match for every number."""
    known = {1: Source(1, 1, "", "Chile", f"Population {digits}")}
    assert check("The population is 5 [1].", known).unsupported
    assert check(f"The population is {digits} [1].", {1: KNOWN[1]}).unsupported


def test_each_mark_is_a_citation_with_its_passage() -> None:
    """In reading order, with the source's address, task and title, and the line that carries it."""
    first, second = check("Chile's capital is Santiago, Peru's is Lima [1][2].", KNOWN).citations
    assert (first.n, first.task_id, first.source) == (1, 4, "http://atlas/chile")
    assert (first.passage, second.passage) == ("Capital | Santiago", "Capital | Lima")
    assert (second.title, second.supported) == ("Peru - Atlas", True)
    assert first.sentence == "Chile's capital is Santiago, Peru's is Lima."


def test_the_passage_of_a_long_line_is_the_part_that_matters() -> None:
    """Not its first 300 characters."""
    line = "word " * 2000 + "Chile has 19,116,201 people. " + "word " * 2000
    (citation,) = check(
        "Chile has 19,116,201 people [1].", {1: Source(1, 1, "", "", line)}
    ).citations
    assert "Chile has 19,116,201 people." in citation.passage
    assert len(citation.passage) <= 300


def test_marks_behind_the_stop_belong_to_the_sentence() -> None:
    """And a mark that opens the next line to that line."""
    text = "Lima is in Peru. [2] Santiago is in Chile.[1]\n[2] Quechua is spoken."
    assert split_sentences(text) == [
        "Lima is in Peru. [2]",
        "Santiago is in Chile.[1]",
        "[2] Quechua is spoken.",
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "It has 19.1 million people.",
        "The U.S. is larger.",
        "J. F. Smith wrote it.",
        "St. Louis is near Mt. Elbert, says Dr. Ray.",
        "It is large, e.g. 5 km, i.e. very (approx. 3 mi).",
        "1. Chile is long.",
        "Version 1.2.3 is out!",
        "Is it?",
    ],
)
def test_stops_that_end_nothing(sentence: str) -> None:
    """Decimals, initials, abbreviations and the numbers of a list do not cut a sentence."""
    assert split_sentences(f"{sentence} And so on.") == [sentence, "And so on."]


def test_an_uncited_conclusion_may_use_what_was_supported() -> None:
    """It needs no mark of its own; a number or a name from nowhere is found out all the same."""
    facts = "Chile has 19,116,201 people [1]. Peru has 32,971,854 people [2].\n"
    assert problems(f"{facts}Answer: Peru has more people than Chile") == []
    assert problems(f"{facts}Answer: Peru, by 13,855,653") == ["Answer: Peru, by 13,855,653"]
    assert problems(f"{facts}The larger of the two is Bolivia.")


def test_an_unsupported_sentence_supports_nothing_after_it() -> None:
    """A made-up number does not become known by being said twice."""
    made_up = "Chile has 99 million people [1]."
    assert problems(f"{made_up} So 99 million people live in Chile.")[1:] == [
        made_up,
        "So 99 million people live in Chile.",
    ]


def test_that_nothing_was_found_is_no_claim() -> None:
    """There is nothing to look up; but a number beside it is checked."""
    assert problems("Answer: not found") == []
    assert problems("The results do not say who wrote the anthem [1].") == []
    assert problems("Chile has 99 million people; the area is not known [1].") != []


def test_text_without_content_is_passed_over() -> None:
    """Marks alone, blanks and punctuation are no claims."""
    assert check("[1]\n\n ... \n- [2]", KNOWN) == check("", KNOWN)


def test_unicode_names() -> None:
    """Letters are letters in every script; only capitals open a name."""
    known = {1: Source(1, 1, "", "", "Ísafjörður, Þórshöfn; 東京 東京都; Київ; élan vital")}
    assert not check("In Iceland lies Ísafjörður, also Þórshöfn [1].", known).citations[0].supported
    assert not check("There lies Ísafjörður, also Þórshöfn [1].", known).unsupported
    assert not check("Київ, 東京 [1].", known).unsupported
    assert check("There lies Ólafsvík [1].", known).unsupported
    assert check("There is Львів [1].", known).unsupported


# What a tool has worked out


def worked_out() -> dict[int, Source]:
    """The rivers of the quickstart, a shop's stock, and sums and choices over pages."""
    length = "'Nile' if a > b else 'Danube'"
    pages = {
        "Togo": "Area | 56,785 square kilometres",
        "Mali": "Area | 1,240,000 square kilometres\nPopulation | 19,077,690",
    }
    tasks = {
        1: Task.of(1, "length", river="Nile"),
        2: Task.of(2, "length", river="Danube"),
        3: Task.of(3, "calc", expression=length, a=Ref(1), b=Ref(2)),
        4: Task.of(4, "stock", item="bolt"),
        5: Task.of(5, "stock", item="nut"),
        6: Task.of(6, "calc", expression="a + b", a=Ref(4), b=Ref(5)),
        7: Task.of(7, "web_lookup", query="Togo", find="area"),
        8: Task.of(8, "web_lookup", query="Mali", find="area"),
        9: Task.of(9, "calc", expression="a + b", a=Ref(7, ("value",)), b=Ref(8, ("value",))),
        10: Task.of(10, "calc", expression="a / 2", a=Ref(9)),
        11: Task.of(
            11,
            "calc",
            expression="argmax({'Togo': a, 'Mali': b})",
            a=Ref(7, ("value",)),
            b=Ref(8, ("value",)),
        ),
        12: Task.of(12, "calc", expression="a * 0.6214", a=Ref(1)),
        13: Task.of(13, "exceeds", one="Mali", other="Chad"),
        14: Task.of(14, "calc", expression="argmin({'Togo': 5, 'Mali': 6, 'Chad': 7})"),
    }
    found = {1: 6650, 2: 2850, 3: "Nile", 4: 40, 5: 50, 6: 90, 9: 1_296_785, 10: 648_392.5}
    outcomes = {
        **{id: Ok(value) for id, value in found.items()},
        7: Ok({"url": "http://a/t", "title": "Togo: area - Atlas", "text": pages["Togo"],
               "value": 56_785}),
        8: Ok({"url": "http://a/m", "title": "Mali: area - Atlas", "text": pages["Mali"],
               "value": 1_240_000}),
        11: Ok("Mali"),
        12: Ok(4132.31),
        13: Ok(False),
        14: Ok("Togo"),
    }  # fmt: skip
    return sources(tasks, outcomes)


def trouble(text: str) -> str:
    """The first problem of an answer that rests on `worked_out`, "" if it has none."""
    checked = check(text, worked_out())
    return next((c.problem for c in checked.citations if c.problem), "".join(checked.unsupported))


@pytest.mark.parametrize(
    "sentence",
    [
        "The Nile is 6,650 km long [1].",
        "The river Nile has a length of 6,650 km [1].",
        "Answer: the Nile is longer [3]",
        "Answer: the Nile is the longest [3]",
        "The Nile (6,650 km) is longer than the Danube (2,850 km) [3].",
        "The Danube is shorter than the Nile [3].",
        "The Danube is not longer than the Nile [3].",
        "Of the Nile and the Danube, the Nile is longer [3].",
        "The longer of the Nile and the Danube is the Nile [3].",
        "The Nile is 4,132.3 miles long [12].",
        "We have 40 bolts [4].",
        "There are 40 bolts and 50 nuts in stock [4, 5].",
        "The total of bolts and nuts is 90 [6].",
        "Togo and Mali have a combined area of 1,296,785 square kilometres [9].",
        "Answer: 1,296,785 square kilometres [9]",
        "The average area of Togo and Mali is 648,392.5 square kilometres [10].",
        "Answer: Mali has the larger area [11]",
        "Mali has a larger area (1,240,000 square kilometres) than Togo [11].",
        "Another source says 1,240,000 [8].",
        "Togo has a smaller area than Mali [11].",
        "Togo is the smallest [14].",
        "Mali does not exceed Chad [13].",
        "The sources disagree: 56,785 [7] or 1,240,000 [8].",
    ],
)
def test_what_a_tool_has_worked_out_is_supported(sentence: str) -> None:
    """By the words of its call, of what went into it, and whatever says what a sum does."""
    assert trouble(sentence) == ""


@pytest.mark.parametrize(
    ("sentence", "problem"),
    [
        ("The Nile is 6,651 km long [1].", "the number 6,651"),
        ("The Nile is 6,650 km wide [1].", "does not mention 'wide'"),
        ("The Danube is 6,650 km long [1].", "the name 'Danube'"),
        ("The Nile is 6,650 km long [2].", "the number 6,650"),
        ("The Nile is not 6,650 km long [1].", "denies nothing"),
        ("The Nile isn't 6,650 km long [1].", "denies nothing"),
        ("Answer: the Danube is longer [3]", "the cited result is 'Nile'"),
        ("Answer: the Danube [3]", "the cited result is 'Nile'"),
        ("The Danube is longer than the Nile [3].", "the cited result is 'Nile'"),
        ("Answer: the Nile is shorter [3]", "does not mention 'shorter'"),
        ("Answer: the Danube is shorter [3]", "does not mention 'shorter'"),
        ("Mali has a smaller area than Togo [11].", "the cited result is 'Mali'"),
        ("Mali does not have a larger area than Togo [11].", "the cited result is 'Mali'"),
        ("The Nile is short [1].", "does not mention 'short'"),
        ("The Nile is not longer than the Danube [3].", "the cited result is 'Nile'"),
        ("The longer of the Nile and the Danube is the Danube [3].", "the cited result is 'Nile'"),
        ("Answer: the Rhine is longer [3]", "the name 'Rhine'"),
        ("The Nile is 4,132.3 miles wide [12].", "does not mention 'miles', 'wide'"),
        ("The Danube is 4,132.3 miles long [12].", "the name 'Danube'"),
        ("We have 41 bolts [4].", "the number 41"),
        ("We have 40 nuts [4].", "does not mention 'nuts'"),
        ("We do not have 40 bolts [4].", "denies nothing"),
        ("The total of bolts is 90 [6].", "does not mention 'bolts'"),
        ("We have 90 screws [6].", "does not mention 'screws'"),
        ("Togo has an area of 1,296,785 square kilometres [9].", "the name 'Togo'"),
        ("The area of Togo and Chad together is 1,296,785 [9].", "the name 'Togo'"),
        ("Mali has more than Togo, by 1,296,785 [9].", "the name 'Mali'"),
        ("The combined population of Togo and Mali is 1,296,785 [9].",
         "does not mention 'population'"),
        ("Answer: Togo has the larger area [11]", "the cited result is 'Mali'"),
        ("Togo has a larger area [11] than Mali [8].", "the cited result is 'Mali'"),
        ("Mali is the smallest [14].", "the cited result is 'Togo'"),
        ("Togo is the largest [14].", "the cited result is 'Togo'"),
        ("Mali does exceed Chad [13].", "the cited result is false"),
        ("The sources disagree [7, 8].", "does not mention 'disagree'"),
    ],
)  # fmt: skip
def test_the_opposite_of_what_a_tool_has_worked_out_is_found_out(
    sentence: str, problem: str
) -> None:
    """Wrong figures, names, measures, the sum for a part of it, the loser for the winner."""
    assert problem in trouble(sentence)
    assert trouble(sentence)


def test_the_names_of_arguments_count_as_read() -> None:
    """What a tool was asked for may stand in no other place."""
    known = sources({1: Task.of(1, "get", altitude_of="Quito")}, {1: Ok(2850)})
    assert not check("Altitude of Quito: 2,850 [1]", known).unsupported
    assert check("Depth of Quito: 2,850 [1]", known).unsupported


def test_a_result_with_a_text_of_its_own_borrows_nothing() -> None:
    """Only what is one short value speaks by what it was made of."""
    tasks = {
        1: Task.of(1, "stock", item="bolt"),
        2: Task.of(2, "report", number=Ref(1)),
    }
    for text, borrows in (("40 in all", True), ("40 in all. " + "Nothing else. " * 9, False)):
        known = sources(tasks, {1: Ok(40), 2: Ok(text)})
        assert (not check("Bolts in stock: 40 [2]", known).unsupported) is borrows


def test_a_denial_needs_one_that_was_read() -> None:
    """Beside what the sentence speaks of, not somewhere on the page; uncited, anywhere."""
    page = "Peru is not in Europe.\n" + "Other things are said. " * 20 + "\nChile is in America."
    known = {1: Source(1, 1, "http://a", "Atlas", page)}
    assert not check("Peru is not in Europe [1].", known).unsupported
    assert check("Chile is not in America [1].", known).unsupported
    assert not check("Peru isn't in Europe.", known).unsupported
    known = {1: Source(1, 1, "http://a", "Atlas", "Chile is in America.")}
    assert check("Chile is not in America.", known).unsupported
    known = {1: Source(1, 1, "calc(not a, 0)", "calc(not a, 0)", "true")}
    assert not check("calc(not a, 0): true [1]", known).unsupported


@pytest.mark.parametrize(
    ("said", "read", "same"),
    [
        ("Mauritius", "Mauritania", False),
        ("Slovenia", "Slovakia", False),
        ("Niger", "Nigeria", False),
        ("Johannesburg", "Johannes", False),
        ("Wales", "Wale", False),
        ("Brazilian", "Brazil", True),
        ("Argentine", "Argentina", True),
        ("Uzbekistani", "Uzbekistan", True),
    ],
)
def test_names_that_begin_alike_are_not_the_same(said: str, read: str, same: bool) -> None:
    """An ending of a few letters is no other name; another rest of a name is."""
    known = {1: Source(1, 1, "", "", f"In {read} there are 5 rivers")}
    assert (not check(f"There are 5 rivers in {said} [1].", known).unsupported) is same


@pytest.mark.parametrize("pair", ["bolts bolt", "cities city", "boxes box", "lives live"])
def test_a_plural_is_the_same_word(pair: str) -> None:
    """Short words too, in both directions; "glass" is no plural."""
    for said, read in (pair.split(), pair.split()[::-1]):
        known = {1: Source(1, 1, "", "", f"5 {read}")}
        assert not check(f"we have 5 {said} [1]", known).unsupported
    assert check("we have 5 glas [1]", {1: Source(1, 1, "", "", "5 glass")}).unsupported


# What counts as read


def test_sources_are_numbered_page_by_page() -> None:
    """A page by its address, the others beside it too, any other value by its call."""
    pages = {"url": "http://a", "title": "A", "text": "alpha"}
    others = [{"url": "http://b", "title": "B", "text": "beta"}]
    tasks = {
        7: Task.of(7, "population", country="Chile"),
        3: Task.of(3, "web_lookup", query="a"),
        5: Task.of(5, "broken"),
        6: Task.of(6, "never", a=Ref(5)),
    }
    outcomes = {
        3: Ok({**pages, "others": others}),
        5: Failed("x"),
        6: Skipped(5),
        7: Ok(19_116_201),
    }
    found = sources(tasks, outcomes)
    assert [(s.n, s.task_id, s.origin) for s in found.values()] == [
        (1, 3, "http://a"),
        (2, 3, "http://b"),
        (3, 7, "population(Chile)"),
    ]
    assert not check("Chile has 19,116,201 people [3].", found).unsupported


def test_the_pages_of_a_call_over_a_list_are_sources_of_their_own() -> None:
    """A citation names the page, not the call that read them all; and picks show what they took."""
    pages = [{"url": f"http://{name}", "title": name, "text": "alpha"} for name in "ab"]
    tasks = {
        1: Task.of(1, "web_search", query="x"),
        2: Task.of(2, "web_fetch", url=Ref(1, (EACH, "url"))),
        3: Task.of(3, "count", of=Pick((Ref(9), Ref(1, (1, "url"))))),
    }
    hits = [{"url": "http://a"}, {"url": "http://b"}]
    found = sources(tasks, {9: Failed("x"), 1: Ok(hits), 2: Ok(pages), 3: Ok(7)})
    assert [(s.task_id, s.origin) for s in found.values()][1:] == [
        (2, "http://a"),
        (2, "http://b"),
        (3, "count(http://b)"),
    ]


def test_an_address_states_nothing() -> None:
    """The numbers and names in a page's address are not read, nor shown as what it says."""
    page = {"url": "http://127.0.0.1:8080/peru/lima", "title": "Peru", "text": "High", "value": 3}
    known = sources({1: Task.of(1, "web_fetch", url="x")}, {1: Ok(page)})
    assert known[1].text == "High\nvalue: 3"
    assert check("Peru has 8,080 people [1].", known).unsupported
    assert check("Its capital is Lima [1].", known).unsupported


def test_a_calls_references_count_as_the_values_they_had() -> None:
    """``$1`` is no number 1, and what it pointed to may be cited."""
    tasks = {
        1: Task.of(1, "area"),
        2: Task.of(2, "larger", a=Ref(1, ("km2",)), b=[Ref(1, ("km2",))]),
    }
    outcomes = {1: Ok({"km2": 756_102}), 2: Ok("Chile")}
    known = sources(tasks, outcomes)
    assert known[2].origin == "larger(756102, 756102)"
    assert not check("Chile has 756,102 [2].", known).unsupported
    assert check("Chile has 1 desert [2].", known).unsupported


def test_records_read_as_lines() -> None:
    """A small record is a line, so that it is a passage; newlines in strings stay newlines."""
    value = [{"name": "Chile", "people": 19}, {"name": "Peru", "note": "line\nLima"}]
    assert as_text(value) == "name: Chile, people: 19\nname: Peru, note: line\nLima"
    assert as_text({"a": {"b": [1, 2]}, "c": None, "d": True}) == "a: b: 1\n2\nc: null\nd: true"
    known = sources({1: Task.of(1, "table")}, {1: Ok(value)})
    (citation,) = check("Chile has 19 people [1].", known).citations
    assert citation.passage == "name: Chile, people: 19"
    assert not check("In Peru there is Lima [1].", known).unsupported


def found(text: str, sentences: list[str]) -> list[str]:
    """``text`` from each span on: a repeated sentence is told by what follows it."""
    where = spans(text, sentences)
    assert sorted(text[start:end] for start, end in where) == sorted(sentences)
    return [text[start:] for start, _ in where]


def test_sentences_are_found_where_they_stand() -> None:
    """In the text's order, whatever the order they are given in."""
    text = "Chile is long [1]. Peru is high.\nChile is wide [1]."
    assert found(text, ["Chile is wide [1].", "Peru is high."]) == [text[19:], text[33:]]


def test_a_sentence_inside_another_is_not_taken_for_it() -> None:
    """Only whole sentences count: "Lima is large." is not "Only Lima is large."."""
    text = "Only Lima is large. Lima is large."
    assert found(text, ["Lima is large."]) == ["Lima is large."]
    assert spans(text, ["Lima is large", "is large."]) == []


def test_a_sentence_said_twice_is_found_as_often_as_it_is_given() -> None:
    """From the first on: unsupported at first, it may be supported by what is said later."""
    text = "Peru wins. Peru wins.\n\nPeru wins."
    assert spans(text, ["Peru wins."]) == [(0, 10)]
    assert spans(text, ["Peru wins."] * 3) == [(0, 10), (11, 21), (23, 33)]
    assert spans(text, ["Peru wins."] * 4) == [(0, 10), (11, 21), (23, 33)]


@given(st.text("aB1. []\n-", max_size=60))
def test_what_a_check_finds_is_found_in_the_text(answer: str) -> None:
    """Every unsupported sentence has its place, and each citation its sentence."""
    checked = check(answer, {})
    assert len(spans(answer, checked.unsupported)) == len(checked.unsupported)
    bare = {unmarked(sentence) for sentence in split_sentences(answer)}
    assert {citation.sentence for citation in checked.citations} <= bare


# Hostile text

HOSTILE: dict[str, Callable[[int], str]] = {
    "letters": lambda n: "a" * n,
    "digits": lambda n: "1" * n,
    "stops": lambda n: "." * n,
    "blanks": lambda n: f"word{' ' * n}word",
    "blanks before a mark": lambda n: f"word.{' ' * n}[1",
    "blanks in a mark": lambda n: f"word [1{' ' * n}word",
    "open marks": lambda n: "[1," * (n // 3),
    "groups": lambda n: "1" + ",111" * (n // 4),
    "apostrophes": lambda n: "1" + "'" * n,
    "colons": lambda n: f"word: {': ' * (n // 2)}word",
    "punctuation": lambda n: f"word: {'!' * n}word",
    "sentences": lambda n: "Chile has 19 million. " * (n // 22),
    "capitals": lambda n: "Aa " * (n // 3),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_page_is_read_in_linear_time(name: str) -> None:
    """200 KB in one line, made to send a regular expression back and forth: in under a second."""
    known = {1: Source(1, 1, "", "", f"{HOSTILE[name](200_000)} Chile has 9 rivers")}
    start = time.process_time()
    check("Chile has 9 rivers [1].", known)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_checked_in_linear_time(name: str) -> None:
    """A model that repeats itself for 50 KB."""
    start = time.process_time()
    check(HOSTILE[name](50_000), KNOWN)
    assert time.process_time() - start < 1


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_can_be_checked(answer: str, page: str) -> None:
    """No text raises, and every unsupported sentence is one of the answer's."""
    checked = check(answer, {1: Source(1, 1, "", "", page)})
    assert all(sentence in answer for sentence in checked.unsupported)


@given(st.text("aA1.[ ]\n,-’", max_size=60))
def test_what_was_read_supports_itself(page: str) -> None:
    """A page's own text, uncited, is never unsupported."""
    assume(not MARK.search(page))
    assert not check(page, {1: Source(1, 1, "", "", page)}).unsupported
