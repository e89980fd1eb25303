"""What counts as a right answer: strict, and fair to every way of writing it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentpar.miniweb.grading import Question, numbers_in, score

POPULATION = Question("How many?", "multi-hop", "18,729,160", numbers=(18_729_160,))
HEIGHT = Question("How high?", "multi-hop", "1,555 feet", numbers=(1555, 473.96))
COUNT = Question("How many borders?", "aggregation", "3", numbers=(3,), tolerance=0.0)
MORE = Question("Peru or Chile?", "comparison", "Peru", accepted=("Peru",), rejected=("Chile",))
NIGER = Question("?", "comparison", "Nigeria", accepted=("Nigeria",), rejected=("Niger",))
AREA = Question("Area?", "conflicting", "both", numbers=(547_030, 640_679))
NAME = Question("Capital?", "multi-hop", "Bogotá", accepted=("Bogotá",))
LARGEST = Question("?", "aggregation", "Peru", accepted=("Peru",), rejected=("Chile", "Cuba"))
NOTHING = Question("Mayor?", "unanswerable", "The sources do not say.")

RIGHT = [
    (POPULATION, "18,729,160"),
    (POPULATION, "Santiago, with 18729160 people [2]."),
    (POPULATION, "18 729 160"),
    (POPULATION, "18.729.160 Einwohner"),
    (POPULATION, "18'729'160"),
    (POPULATION, "about 18.7 million people"),
    (POPULATION, "18.73M"),
    (POPULATION, "Some 2 million in 1900.\n**Answer:** 18.7 million [1][2]"),
    (HEIGHT, "1,555 ft"),
    (HEIGHT, "474 m above the sea"),
    (HEIGHT, "It lies at 474 metres."),
    (COUNT, "Chile borders 3 countries: Peru, Bolivia, Argentina [1]."),
    (COUNT, "three"),
    (MORE, "Peru"),
    (MORE, "Answer: Peru"),
    (MORE, "Peru has more people than Chile [1][2]."),
    (MORE, "Chile has fewer people than Peru."),
    (MORE, "Chile does not have more people than Peru."),
    (MORE, "Chile has 18,729,160 people and Peru 31,989,256.\n\nAnswer: Peru, with 31,989,256."),
    (MORE, "Of Chile and Peru, Peru has the larger population."),
    (MORE, "Peru has 31,989,256 people, compared with Chile's 18,729,160."),
    (MORE, "Peru. It has 31,989,256 people; Chile has 18,729,160."),
    (MORE, "Chile has 18 million. Peru has 31 million. So Peru has more people."),
    (NIGER, "Nigeria has more people than Niger."),
    (AREA, "The atlas says 547,030 km², the gazetteer 640,679 km²."),
    (AREA, "About 547,030 square kilometres, though the sources disagree."),
    (NAME, "The capital is Bogota."),
    (NAME, "BOGOTÁ"),
    (LARGEST, "Peru is the largest of the three, ahead of Chile and Cuba."),
    (LARGEST, "Answer: Peru"),
    (NOTHING, "The sources do not say."),
    (NOTHING, "I could not find the mayor of Lima on any page."),
    (NOTHING, "Answer: unknown"),
    (NOTHING, "There is no information about Freedonia."),
    (NOTHING, "The mayor isn’t mentioned in the pages I read [1]."),
]

WRONG = [
    (POPULATION, "17,819,054"),
    (POPULATION, "19.2 million"),
    (POPULATION, "I do not know."),
    (POPULATION, ""),
    (POPULATION, "18,729,160 at first sight.\nAnswer: 17 million"),
    (POPULATION, " ".join(str(n * 1_000_000) for n in range(1, 40)) + " 18729160"),
    (HEIGHT, "1,600 feet"),
    (COUNT, "Chile borders four countries [3]."),
    (COUNT, "30"),
    (MORE, "Chile"),
    (MORE, "Chile has more people than Peru."),
    (MORE, "Peru has fewer people than Chile."),
    (MORE, "Peru does not have more people than Chile."),
    (MORE, "Chile and Peru are both countries in South America."),
    (MORE, "Peru is nice. Answer: Chile"),
    (MORE, "I cannot determine whether Peru or Chile has more people."),
    (MORE, ""),
    (NIGER, "Niger"),
    (AREA, "547,030 km²"),
    (AREA, "The sources disagree."),
    (NAME, "Bogotano"),
    (NAME, "Medellín"),
    (LARGEST, "Chile is the largest, ahead of Peru and Cuba."),
    (LARGEST, "Chile, Peru and Cuba."),
    (NOTHING, "The mayor of Lima is Rafael López Aliaga."),
    (NOTHING, "Freedonia is not listed, but its population is about 5 million."),
    (NOTHING, ""),
]


@pytest.mark.parametrize(("question", "text"), RIGHT)
def test_right_answers_score(question: Question, text: str) -> None:
    """However they are written."""
    assert score(question, text)


@pytest.mark.parametrize(("question", "text"), WRONG)
def test_wrong_answers_do_not_score(question: Question, text: str) -> None:
    """However near they come."""
    assert not score(question, text)


@given(
    st.integers(min_value=1000, max_value=10**10), st.sampled_from([",", " ", "'", "", "\u202f"])
)
def test_a_number_is_read_with_any_separator(number: int, separator: str) -> None:
    """In the middle of a sentence."""
    written = f"{number:,}".replace(",", separator)
    assert (float(number),) in numbers_in(f"There are {written} of them.")


@given(st.text())
def test_any_text_can_be_scored(text: str) -> None:
    """A model may write anything at all."""
    for question in (POPULATION, MORE, AREA, NAME, NOTHING):
        score(question, text)
