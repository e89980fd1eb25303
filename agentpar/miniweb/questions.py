"""Questions about the mini-web whose answers are known, made from its tables.

Only entities that cannot be taken for others are asked about, and, except where the
conflict is the question, only facts on which both sites agree well enough for one answer.
The same seed gives the same questions. This file never looks at a page: the tests check
that what it says of the pages is true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import cycle
from random import Random
from typing import Literal, get_args

from agentpar.errors import UsageError
from agentpar.miniweb.data import Airport, City, Country, Entry, World, load_world
from agentpar.miniweb.grading import Evidence, Kind, Question, score
from agentpar.miniweb.pages import (
    FEET_TO_METRES,
    airport_path,
    city_path,
    country_path,
    entry_path,
    feet,
    people,
    square_km,
)
from agentpar.miniweb.text import fold

__all__ = ["KINDS", "Evidence", "Kind", "Question", "Split", "make_questions", "score"]

KINDS: tuple[Kind, ...] = get_args(Kind)
Split = Literal["train", "test"]

_CONTESTED = {"EH", "HK", "IL", "PR", "PS", "TW", "XK"}
"""Whether these are countries, or which city is the capital, is not a matter for a quiz."""

INVENTED = (
    "Freedonia", "Ruritania", "Zubrowka", "Genovia", "Wakanda", "Latveria", "Elbonia", "Sokovia",
    "Lilliput", "Laputa", "Brobdingnag", "Borduria", "Syldavia", "San Theodoros", "Grand Fenwick",
    "Molvania", "Panem", "Gondor", "Narnia", "Vulgaria",
)  # fmt: skip

_ABSENT = (
    "Who is the mayor of {city}?",
    "What is the gross domestic product of {country}?",
    "What is the life expectancy in {country}?",
    "What is the literacy rate of {country}?",
    "What is the highest mountain of {country}?",
    "Who is the head of government of {country}?",
    "In which year was {city} founded?",
    "What is the average temperature of {city} in July?",
)


def make_questions(
    n: int, seed: int, kinds: Iterable[Kind] | None = None, *, split: Split = "test"
) -> list[Question]:
    """``n`` different questions, the ``kinds`` (all, unless said) taking turns.

    A question belongs to one ``split`` by its text alone, so no question of "train" is in
    "test", whatever the seeds. Raises `UsageError` for an unknown kind or split, and where
    there are not ``n`` different questions.
    """
    asked = tuple(dict.fromkeys(KINDS if kinds is None else kinds))
    for kind in asked:
        if kind not in KINDS:
            raise UsageError(f"unknown kind of question {kind!r}: there are {', '.join(KINDS)}")
    if split not in get_args(Split):
        raise UsageError(f"unknown split {split!r}: there are 'train' and 'test'")
    if n < 0 or not asked:
        raise UsageError(f"make_questions(n={n!r}, kinds={asked!r}): nothing can be made of that")
    pool, random = _pool(), Random(seed)
    made: dict[str, Question] = {}
    turns = cycle(asked)
    for _ in range(n):
        kind = next(turns)
        for _ in range(1000):
            question = random.choice(_MAKERS[kind])(pool, random)
            if question and question.text not in made and _split(question.text) == split:
                made[question.text] = question
                break
        else:
            raise UsageError(f"only {len(made)} of {n} different questions ({kind}) can be made")
    return list(made.values())


def _split(text: str) -> Split:
    return "train" if blake2b(text.encode(), digest_size=1).digest()[0] % 2 else "test"


# --- what can be asked about -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Known:
    """A well-known country on which the sites agree: name, capital, borders. ``airport`` is
    that of the capital, where there is exactly one."""

    country: Country
    entry: Entry
    capital: City
    airport: Airport | None

    @property
    def name(self) -> str:
        return self.country.name

    @property
    def areas(self) -> tuple[float, float]:
        return self.country.area, self.entry.area or 0.0

    @property
    def populations(self) -> tuple[int, int]:
        return self.country.population, self.entry.population or 0

    @property
    def settled(self) -> bool:
        """Whether both sites give the same area, within 1 %."""
        return _apart(*self.areas) <= 0.01


@dataclass(frozen=True, slots=True)
class _Pool:
    """``known`` by ISO code; ``cities`` have more than a million people and one name."""

    known: dict[str, _Known]
    settled: tuple[_Known, ...]
    airports: tuple[_Known, ...]
    cities: tuple[City, ...]
    surrounded: tuple[tuple[_Known, tuple[_Known, ...]], ...]
    lonely: tuple[tuple[_Known, _Known], ...]


@cache
def _pool() -> _Pool:
    world = load_world()
    known = {
        code: _Known(country, world.entries[code], capitals[0], _only_airport(world, country))
        for code, country in world.countries.items()
        if code in world.entries
        and code not in _CONTESTED
        and len(capitals := world.named(country.capital, code)) == 1
        and _alike(country, world.entries[code])
    }
    names = Counter(fold(c.name) for c in world.cities.values())
    taken = {fold(c.name) for c in world.countries.values()}
    around = [
        (one, tuple(known[code] for code in one.country.neighbours))
        for one in known.values()
        if set(one.country.neighbours) == set(one.entry.borders)
        and all(code in known for code in one.country.neighbours)
    ]
    return _Pool(
        known=known,
        settled=tuple(k for k in known.values() if k.settled),
        airports=tuple(k for k in known.values() if k.airport),
        cities=tuple(
            c
            for c in world.cities.values()
            if c.population >= 1_000_000
            and names[fold(c.name)] == 1
            and fold(c.name) not in taken
            and c.country not in _CONTESTED
        ),
        surrounded=tuple(
            (one, some) for one, some in around if 2 <= len(some) <= 6 and _largest(some)
        ),
        lonely=tuple((one, some[0]) for one, some in around if len(some) == 1),
    )


def _alike(country: Country, entry: Entry) -> bool:
    return (
        fold(country.name) == fold(entry.name)
        and fold(country.capital) == fold(entry.capital)
        and fold(country.capital) != fold(country.name)
        and min(country.population, entry.population or 0) >= 1_000_000
        and bool(entry.area)
    )


def _only_airport(world: World, country: Country) -> Airport | None:
    fields = world.serving(country.capital, country.code)
    # Close to the sea, one foot is more than the tolerance, and 0 may mean "not known".
    return fields[0] if len(fields) == 1 and fields[0].elevation >= 50 else None


def _apart(a: float, b: float) -> float:
    """How far two figures are from each other, as a share of the larger."""
    return abs(a - b) / max(a, b)


def _clearly_more(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether ``a`` is larger than ``b`` by far, on both sites."""
    return min(a) > 1.25 * max(b)


def _largest(some: tuple[_Known, ...]) -> _Known | None:
    """The one with the largest area by far, where there is one."""
    first, second = sorted(some, key=lambda k: -k.country.area)[:2]
    return first if _clearly_more(first.areas, second.areas) else None


def _distinct_names(names: Iterable[str]) -> bool:
    """Whether no name is a part of another: Guinea and Guinea-Bissau are told apart badly."""
    folded = [fold(name) for name in names]
    return not any(a in b for i, a in enumerate(folded) for b in folded[:i] + folded[i + 1 :])


# --- evidence --------------------------------------------------------------------------


def _population(known: _Known) -> tuple[Evidence, ...]:
    says = [people(p) for p in known.populations]
    return _both(known, says, f"population of {known.name}")


def _area(known: _Known) -> tuple[Evidence, ...]:
    says = [f"{square_km(a)} square kilometres" for a in known.areas]
    return _both(known, says, f"area of {known.name}")


def _both(known: _Known, says: list[str], search: str) -> tuple[Evidence, ...]:
    return (
        Evidence(country_path(known.country), says[0], search),
        Evidence(entry_path(known.entry), says[1], search),
    )


def _capital(known: _Known) -> Evidence:
    says = f"The capital of {known.name} is {known.capital.name}"
    return Evidence(country_path(known.country), says, f"capital of {known.name}")


def _residents(city: City) -> Evidence:
    return Evidence(city_path(city), people(city.population), f"population of {city.name}")


def _borders(known: _Known) -> Evidence:
    count = len(known.country.neighbours)
    says = f"borders {count} countries" if count > 1 else "borders one country"
    return Evidence(country_path(known.country), says, f"neighbours of {known.name}")


def _elevation(known: _Known, airport: Airport) -> Evidence:
    says = f"{feet(airport.elevation)} feet"
    return Evidence(airport_path(airport), says, f"{known.capital.name} airport elevation")


def _heights(airport: Airport) -> tuple[float, ...]:
    return airport.elevation, airport.elevation * FEET_TO_METRES


# --- comparison ------------------------------------------------------------------------


def _versus(
    text: str, a: str, b: str, more: bool, evidence: tuple[Evidence, ...], hops: int = 1
) -> Question | None:
    if not _distinct_names((a, b)):
        return None
    winner, loser = (a, b) if more else (b, a)
    return Question(
        text.format(a=a, b=b),
        "comparison",
        winner,
        accepted=(winner,),
        rejected=(loser,),
        evidence=evidence,
        hops=hops,
    )


def _more_people(pool: _Pool, random: Random) -> Question | None:
    a, b = random.sample(tuple(pool.known.values()), 2)
    if not (
        _clearly_more(a.populations, b.populations) or _clearly_more(b.populations, a.populations)
    ):
        return None
    more = a.country.population > b.country.population
    evidence = _population(a) + _population(b)
    return _versus("Which country has more people, {a} or {b}?", a.name, b.name, more, evidence)


def _more_land(pool: _Pool, random: Random) -> Question | None:
    a, b = random.sample(pool.settled, 2)
    if not (_clearly_more(a.areas, b.areas) or _clearly_more(b.areas, a.areas)):
        return None
    more = a.country.area > b.country.area
    text = "Which country has the larger area, {a} or {b}?"
    return _versus(text, a.name, b.name, more, _area(a) + _area(b))


def _larger_city(pool: _Pool, random: Random) -> Question | None:
    a, b = random.sample(pool.cities, 2)
    if _apart(a.population, b.population) < 0.2:
        return None
    evidence = (_residents(a), _residents(b))
    more = a.population > b.population
    return _versus("Which city has more people, {a} or {b}?", a.name, b.name, more, evidence)


def _larger_capital(pool: _Pool, random: Random) -> Question | None:
    a, b = random.sample(tuple(pool.known.values()), 2)
    if _apart(a.capital.population, b.capital.population) < 0.2:
        return None
    evidence = (_capital(a), _capital(b), _residents(a.capital), _residents(b.capital))
    more = a.capital.population > b.capital.population
    text = "Which country's capital city has more people, that of {a} or that of {b}?"
    return _versus(text, a.name, b.name, more, evidence, hops=2)


# --- multi-hop -------------------------------------------------------------------------


def _hops(
    text: str, answer: str, numbers: tuple[float, ...], *evidence: Evidence, hops: int
) -> Question:
    return Question(text, "multi-hop", answer, numbers=numbers, evidence=evidence, hops=hops)


def _people_of_capital(pool: _Pool, random: Random) -> Question:
    known = random.choice(tuple(pool.known.values()))
    return _hops(
        f"How many people live in the capital of {known.name}?",
        people(known.capital.population),
        (known.capital.population,),
        _capital(known),
        _residents(known.capital),
        hops=2,
    )


def _height_of_capital(pool: _Pool, random: Random) -> Question | None:
    known = random.choice(pool.airports)
    if known.airport is None:
        return None
    return _hops(
        f"What is the elevation, in feet, of the airport that serves the capital of {known.name}?",
        f"{feet(known.airport.elevation)} feet",
        _heights(known.airport),
        _capital(known),
        _elevation(known, known.airport),
        hops=2,
    )


def _money_of_capital(pool: _Pool, random: Random) -> Question | None:
    known = random.choice(tuple(pool.known.values()))
    code, name = known.country.currency_code, known.country.currency
    if known.entry.currencies != (code,):
        return None
    city = known.capital
    return Question(
        f"What is the currency of the country whose capital is {city.name}?",
        "multi-hop",
        f"{name} ({code})",
        accepted=(code, name, f"{name}s"),
        evidence=(
            Evidence(city_path(city), f"is the capital of {known.name}", city.name),
            Evidence(country_path(known.country), f"({code})", f"currency of {known.name}"),
        ),
        hops=2,
    )


def _past_the_only_border(pool: _Pool, random: Random) -> Question:
    known, other = random.choice(pool.lonely)
    return _hops(
        f"{known.name} borders a single country. How many people live in that country's capital?",
        people(other.capital.population),
        (other.capital.population,),
        _borders(known),
        _capital(other),
        _residents(other.capital),
        hops=3,
    )


def _largest_neighbour(pool: _Pool, random: Random) -> Question | None:
    known, some = random.choice(pool.surrounded)
    largest = _largest(some)
    if largest is None:
        return None
    areas = tuple(e for one in some for e in _area(one))
    return _hops(
        f"Of the countries that border {known.name}, take the one with the largest area. "
        "How many people live in its capital?",
        people(largest.capital.population),
        (largest.capital.population,),
        _borders(known),
        *areas,
        _capital(largest),
        _residents(largest.capital),
        hops=3,
    )


def _airport_of_largest_neighbour(pool: _Pool, random: Random) -> Question | None:
    known, some = random.choice(pool.surrounded)
    largest = _largest(some)
    if largest is None or largest.airport is None:
        return None
    areas = tuple(e for one in some for e in _area(one))
    city = known.capital
    return _hops(
        f"{city.name} is the capital of a country. Of the countries that border it, take the one "
        "with the largest area. What is the elevation, in feet, of the airport that serves the "
        "capital of that neighbour?",
        f"{feet(largest.airport.elevation)} feet",
        _heights(largest.airport),
        Evidence(city_path(city), f"is the capital of {known.name}", city.name),
        _borders(known),
        *areas,
        _capital(largest),
        _elevation(largest, largest.airport),
        hops=4,
    )


# --- aggregation -----------------------------------------------------------------------


def _sum_of_areas(pool: _Pool, random: Random) -> Question:
    some = random.sample(pool.settled, random.choice((2, 3)))
    totals = tuple(sum(areas) for areas in zip(*(one.areas for one in some), strict=True))
    return Question(
        f"What is the combined area of {_listed(k.name for k in some)} in square kilometres?",
        "aggregation",
        f"{square_km(totals[0])} square kilometres",
        numbers=totals,
        evidence=tuple(e for one in some for e in _area(one)),
    )


def _sum_of_cities(pool: _Pool, random: Random) -> Question:
    some = random.sample(pool.cities, random.choice((2, 3)))
    total = sum(c.population for c in some)
    return Question(
        f"How many people live in {_listed(c.name for c in some)} together?",
        "aggregation",
        people(total),
        numbers=(total,),
        evidence=tuple(_residents(c) for c in some),
    )


def _difference_of_cities(pool: _Pool, random: Random) -> Question | None:
    a, b = sorted(random.sample(pool.cities, 2), key=lambda c: -c.population)
    if _apart(a.population, b.population) < 0.3:
        return None
    return Question(
        f"How many more people live in {a.name} than in {b.name}?",
        "aggregation",
        people(a.population - b.population),
        numbers=(a.population - b.population,),
        evidence=(_residents(a), _residents(b)),
    )


def _largest_of_three(pool: _Pool, random: Random) -> Question | None:
    some = tuple(random.sample(pool.settled, 3))
    largest = _largest(some)
    if largest is None or not _distinct_names(one.name for one in some):
        return None
    return Question(
        f"Which has the largest area: {', '.join(one.name for one in some[:2])} or {some[2].name}?",
        "aggregation",
        largest.name,
        accepted=(largest.name,),
        rejected=tuple(one.name for one in some if one is not largest),
        evidence=tuple(e for one in some for e in _area(one)),
    )


def _count_of_borders(pool: _Pool, random: Random) -> Question:
    known, some = random.choice(pool.surrounded)
    return Question(
        f"How many countries share a land border with {known.name}?",
        "aggregation",
        str(len(some)),
        numbers=(len(some),),
        tolerance=0.0,
        evidence=(
            _borders(known),
            Evidence(
                entry_path(known.entry),
                f"borders {len(some)} countries",
                f"neighbours of {known.name}",
            ),
        ),
    )


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}"


# --- unanswerable ----------------------------------------------------------------------

_NOWHERE = "The sources do not say."


def _invented(pool: _Pool, random: Random) -> Question:
    known = random.choice(tuple(pool.known.values()))
    place = random.choice(INVENTED)
    text = random.choice(
        (
            "What is the population of {place}?",
            "What is the capital of {place}?",
            "What is the area of {place} in square kilometres?",
            "Which country has more people, {place} or {name}?",
        )
    )
    return Question(text.format(place=place, name=known.name), "unanswerable", _NOWHERE)


def _absent(pool: _Pool, random: Random) -> Question:
    known = random.choice(tuple(pool.known.values()))
    text = random.choice(_ABSENT).format(country=known.name, city=known.capital.name)
    return Question(text, "unanswerable", _NOWHERE)


# --- conflicting -----------------------------------------------------------------------

_CONFLICT = 0.08
"""Figures this far apart (a share of the larger) are a conflict, not two ways of rounding."""


def _two_areas(pool: _Pool, random: Random) -> Question | None:
    known = random.choice(tuple(pool.known.values()))
    if _apart(*known.areas) < _CONFLICT:
        return None
    text = random.choice(
        (
            "What is the area of {name} in square kilometres, according to each source?",
            "How large is {name} in square kilometres? Say so if the sources disagree.",
            "Which figures do the sources give for the area of {name}?",
            "Do the sources agree on the area of {name}? Give the figures.",
        )
    )
    return Question(
        text.format(name=known.name),
        "conflicting",
        " or ".join(f"{square_km(a)} square kilometres" for a in known.areas),
        numbers=known.areas,
        evidence=_area(known),
    )


def _two_populations(pool: _Pool, random: Random) -> Question | None:
    known = random.choice(tuple(pool.known.values()))
    if _apart(*known.populations) < _CONFLICT:
        return None
    text = random.choice(
        (
            "What is the population of {name}, according to each source?",
            "How many people live in {name}? Say so if the sources disagree.",
            "Which figures do the sources give for the population of {name}?",
            "Do the sources agree on how many people live in {name}? Give the figures.",
        )
    )
    return Question(
        text.format(name=known.name),
        "conflicting",
        " or ".join(people(p) for p in known.populations),
        numbers=known.populations,
        evidence=_population(known),
    )


_Maker = Callable[[_Pool, Random], Question | None]

_MAKERS: dict[Kind, tuple[_Maker, ...]] = {
    "comparison": (_more_people, _more_land, _larger_city, _larger_capital),
    "multi-hop": (
        _people_of_capital,
        _height_of_capital,
        _money_of_capital,
        _past_the_only_border,
        _largest_neighbour,
        _airport_of_largest_neighbour,
    ),
    "aggregation": (
        _sum_of_areas,
        _sum_of_cities,
        _difference_of_cities,
        _largest_of_three,
        _count_of_borders,
    ),
    "unanswerable": (_invented, _absent),
    "conflicting": (_two_areas, _two_populations),
}
