"""How often the nearest of many questions is the one that says the same in other words.

    python -m bench.embeddings

Each embedder gets the same keys, as a bank's entries have them, and the same paraphrases, written
by hand, none with the words of its key in their order. Many keys share a place or a property, so
that the nearest wrong one is near. Top-1: share of paraphrases whose nearest key is theirs. The
area under the curve asks of all pairs at once whether likeness alone tells a paraphrase from a
hard negative (same property, another place, or the reverse). ``words`` is the plain baseline: the
share of words in common.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence

from agentpar.errors import MissingPackage
from agentpar.memory.embed import Embedder, Vector, open_embedder

PAIRS = (
    ("web_lookup: Lima, population", "How many people live in Lima?"),
    ("web_lookup: Lima, area", "How large is the city of Lima in square kilometres?"),
    ("web_lookup: Lima, mayor", "Who governs Lima as its mayor?"),
    ("web_lookup: Peru, population", "number of inhabitants of Peru"),
    ("web_lookup: Peru, capital", "What is Peru's capital city?"),
    ("web_lookup: Peru, currency", "With which money does one pay in Peru?"),
    ("web_lookup: Chile, population", "How many inhabitants has Chile?"),
    ("web_lookup: Chile, capital", "Which city is the capital of Chile?"),
    ("web_lookup: Chile, area", "surface of Chile in km2"),
    ("web_lookup: Santiago, population", "people living in Santiago"),
    ("web_lookup: Santiago, elevation", "How high above the sea lies Santiago?"),
    ("web_lookup: Bolivia, capital", "seat of government of Bolivia"),
    ("web_lookup: Bolivia, population", "Bolivia's number of people"),
    ("web_lookup: La Paz, elevation", "height of La Paz above sea level"),
    ("web_lookup: Lake Titicaca, depth", "How deep is Titicaca at most?"),
    ("web_lookup: Lake Titicaca, area", "What surface does Lake Titicaca cover?"),
    ("web_lookup: Mauritius, population", "How many Mauritians are there?"),
    ("web_lookup: Mauritania, population", "How many people live in Mauritania?"),
    ("web_lookup: Mauritius, capital", "capital city of the island of Mauritius"),
    ("web_lookup: Mauritania, capital", "main city of Mauritania"),
    ("web_lookup: Niger, population", "inhabitants of the state of Niger"),
    ("web_lookup: Nigeria, population", "How populous is Nigeria?"),
    ("web_lookup: Niger river, length", "How long is the river Niger?"),
    ("web_lookup: Amazon river, length", "length in kilometres of the Amazon"),
    ("web_lookup: Nile, length", "How many kilometres does the Nile run?"),
    ("web_lookup: Danube, source", "Where does the Danube rise?"),
    ("web_lookup: Danube, mouth", "Into which sea does the Danube flow?"),
    ("web_lookup: Rhine, length", "How long is the Rhine?"),
    ("web_lookup: Rhine, source", "Where does the Rhine begin?"),
    ("web_lookup: Mont Blanc, height", "How tall is Mont Blanc?"),
    ("web_lookup: Mont Blanc, first ascent", "Who climbed Mont Blanc first?"),
    ("web_lookup: Matterhorn, height", "elevation of the Matterhorn's summit"),
    ("web_lookup: Matterhorn, first ascent", "When was the Matterhorn first climbed?"),
    ("web_lookup: Everest, height", "How many metres high is Mount Everest?"),
    ("web_lookup: Everest, first ascent", "first people on top of Everest"),
    ("web_lookup: K2, height", "How high is the mountain K2?"),
    ("web_lookup: France, president", "Who is head of state in France?"),
    ("web_lookup: France, population", "number of French people"),
    ("web_lookup: Germany, chancellor", "Who leads the German government?"),
    ("web_lookup: Germany, population", "How many inhabitants does Germany have?"),
    ("web_lookup: Germany, area", "How big is Germany's territory?"),
    ("web_lookup: Berlin, population", "How many Berliners are there?"),
    ("web_lookup: Hamburg, population", "How many people live in Hamburg?"),
    ("web_lookup: Hamburg, port, containers", "How many containers pass the port of Hamburg?"),
    ("web_lookup: Rotterdam, port, containers", "container traffic in Rotterdam's harbour"),
    ("web_lookup: Python, release year", "In which year did Python first appear?"),
    ("web_lookup: Python, creator", "Who made the language Python?"),
    ("web_lookup: Rust, creator", "Who invented the Rust language?"),
    ("web_lookup: Rust, release year", "When did Rust come out?"),
    ("web_lookup: Go, creator", "designers of the Go language"),
    ("web_lookup: Marie Curie, birthplace", "Where was Marie Curie born?"),
    ("web_lookup: Marie Curie, Nobel prizes", "How many Nobel prizes did Marie Curie win?"),
    ("web_lookup: Albert Einstein, birthplace", "In what town was Einstein born?"),
    ("web_lookup: Albert Einstein, year of death", "When did Albert Einstein die?"),
    ("web_lookup: Niels Bohr, year of death", "In which year did Bohr pass away?"),
    ("web_lookup: Niels Bohr, birthplace", "town where Niels Bohr came into the world"),
    ("web_lookup: gold, melting point", "At which temperature does gold melt?"),
    ("web_lookup: gold, density", "How heavy is gold per cubic centimetre?"),
    ("web_lookup: silver, melting point", "temperature at which silver becomes liquid"),
    ("web_lookup: silver, density", "How dense is silver?"),
    ("web_lookup: iron, melting point", "When does iron melt, in degrees?"),
    ("web_lookup: copper, price per tonne", "What does a tonne of copper cost?"),
    ("web_lookup: aluminium, price per tonne", "cost of a tonne of aluminium"),
    ("web_lookup: speed of light", "How fast does light travel?"),
)
ROUNDS = 20


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def overlap(a: str, b: str) -> float:
    return len(words(a) & words(b)) / len(words(a) | words(b))


def cosine(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def by(embedder: Embedder) -> list[list[float]]:
    """How near each paraphrase (row) is to each key."""
    keys = embedder.embed([key for key, _ in PAIRS])
    said = embedder.embed([text for _, text in PAIRS])
    return [[cosine(text, key) for key in keys] for text in said]


def top_1(near: Sequence[Sequence[float]]) -> float:
    """A tie counts as wrong."""
    hits = sum(
        all(row[own] > value for at, value in enumerate(row) if at != own)
        for own, row in enumerate(near)
    )
    return hits / len(near)


def area(near: Sequence[Sequence[float]]) -> float:
    """Chance that a paraphrase is nearer to its key than a hard negative is to another."""
    parts = [frozenset(key.partition(": ")[2].split(", ")) for key, _ in PAIRS]
    right = [row[own] for own, row in enumerate(near)]
    wrong = [
        value
        for own, row in enumerate(near)
        for at, value in enumerate(row)
        if at != own and parts[at] & parts[own]
    ]
    wins = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
    return wins / (len(right) * len(wrong))


def speed(embedder: Embedder) -> float:
    """Texts a second, the best of three."""
    texts = [text for pair in PAIRS for text in pair] * ROUNDS

    def once() -> float:
        began = time.perf_counter()
        embedder.embed(texts)
        return len(texts) / (time.perf_counter() - began)

    return max(once() for _ in range(3))


def main(say: Callable[[str], None] = print) -> None:
    say(f"{len(PAIRS)} keys, {len(PAIRS)} paraphrases")
    say(f"{'embedder':16} {'top-1':>6} {'area':>6} {'texts/s':>9}")
    near = [[overlap(text, key) for key, _ in PAIRS] for _, text in PAIRS]
    say(f"{'words':16} {top_1(near):6.2f} {area(near):6.2f} {'':>9}")
    for spec in ("hashed", "wordllama"):
        try:
            embedder = open_embedder(spec)
        except MissingPackage as error:
            say(f"{spec:16} {error}")
            continue
        near = by(embedder)
        say(f"{embedder.name:16} {top_1(near):6.2f} {area(near):6.2f} {speed(embedder):9,.0f}")


if __name__ == "__main__":
    main()
