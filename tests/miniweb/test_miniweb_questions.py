"""The questions: deterministic, true to the pages, and right about their own answers."""

from collections import Counter

import pytest

from agentpar.errors import UsageError
from agentpar.miniweb.index import Library
from agentpar.miniweb.questions import INVENTED, KINDS, Question, make_questions, score

MANY = make_questions(300, seed=11)


def test_the_same_seed_makes_the_same_questions() -> None:
    """And another seed makes others."""
    assert make_questions(40, seed=3) == make_questions(40, seed=3)
    assert make_questions(40, seed=3) != make_questions(40, seed=4)
    assert make_questions(40, seed=3)[:10] == make_questions(10, seed=3)


def test_the_kinds_take_turns() -> None:
    """As many of each, none twice, and paths of two, three and four hops among them."""
    assert Counter(q.kind for q in MANY) == dict.fromkeys(KINDS, 60)
    assert len({q.text for q in MANY}) == len(MANY)
    assert {q.hops for q in MANY if q.kind == "multi-hop"} == {2, 3, 4}
    only = make_questions(10, seed=1, kinds=["conflicting"])
    assert {q.kind for q in only} == {"conflicting"}


def test_training_never_sees_a_test_question() -> None:
    """Whatever the seeds."""
    tested = {q.text for seed in range(6) for q in make_questions(100, seed)}
    trained = {q.text for seed in range(6) for q in make_questions(100, seed, split="train")}
    assert len(tested) > 200
    assert len(trained) > 200
    assert tested.isdisjoint(trained)


def test_every_fact_is_on_the_page_that_is_said_to_hold_it(library: Library) -> None:
    """So the answer can be had from the pages alone."""
    for question in MANY:
        assert bool(question.evidence) == (question.kind != "unanswerable")
        for evidence in question.evidence:
            page = library.page(evidence.page)
            assert page is not None, evidence
            assert evidence.says in page.text, evidence


def test_the_canonical_answer_scores_and_another_question_s_does_not() -> None:
    """No question accepts everything: nearly all refuse nearly all of the others' answers."""
    accepted = refused = 0
    for number, question in enumerate(MANY):
        assert score(question, question.answer), question
        assert score(question, f"I looked it up. Answer: {question.answer}"), question
        for other in MANY[number + 1 : number + 20]:
            if other.answer != question.answer:
                good = score(question, other.answer)
                accepted, refused = accepted + good, refused + (not good)
    assert accepted < 0.02 * refused


def test_a_comparison_refuses_the_other_entity() -> None:
    """The loser is never the answer."""
    for question in MANY:
        for other in question.rejected:
            assert not score(question, other), question


def test_one_site_s_figure_is_no_answer_to_a_conflict() -> None:
    """Both have to be reported, or the conflict named."""
    for question in (q for q in MANY if q.kind == "conflicting"):
        one, two = question.numbers
        assert abs(one - two) >= 0.08 * max(one, two)
        assert not score(question, f"{one:,.0f}")
        assert score(question, f"{one:,.0f} on one page, {two:,.0f} on the other")
        assert score(question, f"{two:,.0f}, but the sources disagree")


def test_unanswerable_questions_ask_for_what_no_page_has(library: Library) -> None:
    """An invented place has no page; a fact that is asked for has no row."""
    rows = ("mayor", "gross domestic product", "life expectancy", "literacy", "founded")
    for path in ("/atlas/country/chile", "/gazetteer/country/chile", "/atlas/city/santiago-cl"):
        page = library.page(path)
        assert page is not None
        assert not any(row in page.text.lower() for row in rows)
    for place in INVENTED:
        assert not any(place.lower() in hit.title.lower() for hit in library.search(place))


@pytest.mark.parametrize(
    "arguments",
    [
        {"n": 5, "seed": 1, "kinds": ["riddle"]},
        {"n": 5, "seed": 1, "kinds": []},
        {"n": -1, "seed": 1},
        {"n": 5, "seed": 1, "split": "validation"},
        {"n": 5000, "seed": 1, "kinds": ["conflicting"]},
    ],
)
def test_what_cannot_be_made_is_refused(arguments: dict[str, object]) -> None:
    """With the reason."""
    with pytest.raises(UsageError):
        make_questions(**arguments)  # type: ignore[arg-type]


def test_a_question_names_its_pages() -> None:
    """Once each, in the order in which they are needed."""
    question = next(q for q in MANY if q.hops == 3)
    assert isinstance(question, Question)
    assert len(question.pages) == len(set(question.pages)) >= 3
