"""What a tool's value looks like where it is a page of the web.

`web_fetch` and `web_lookup` make such values; citations and prompts read them. A tool of your
own may return one too and is then cited by the page's address. It must never know how a page
is fetched or shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypeGuard

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12


class Unread(TypedDict):
    """A page that could not be read, and why."""

    url: str
    error: str


class Page(TypedDict):
    """A page as far as it was read.

    ``url`` is its address after redirects, ``text`` the passages that were looked for,
    ``value`` the number or short text that answers, or None. ``others`` are pages that were
    read for the same fact, ``unread`` those that were to be.
    """

    url: str
    title: str
    text: str
    value: Any
    others: NotRequired[list[Page]]
    unread: NotRequired[list[Unread]]


def is_page(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether ``value`` counts as a page: it has a ``text``, other fields may be missing."""
    return isinstance(value, Mapping) and isinstance(value.get("text"), str)


def unread_of(value: object) -> list[str]:
    """``address: error`` of each page that should have been part of ``value`` and is not."""
    if isinstance(value, list):
        return [text for item in value for text in unread_of(item)]
    listed = value.get("unread") if is_page(value) else None
    found = (item for item in listed or () if isinstance(item, Mapping))
    return [f"{item.get('url')}: {item.get('error')}" for item in found]


def pages_of(value: object) -> list[Mapping[str, Any]]:
    """The page that ``value`` is and then its ``others``; of a list of pages, those of each.

    Empty where it is neither. Citations and prompts number pages by their place in this list,
    so both must use it.
    """
    if isinstance(value, list) and all(map(is_page, value)):  # a call for each element
        return [page for item in value for page in pages_of(item)]
    if not is_page(value):
        return []
    others = value.get("others")
    listed = others if isinstance(others, list) else []
    return [value, *(other for other in listed if isinstance(other, Mapping))]
