"""Plain-letter forms of names, for addresses and for comparing. Knows nothing of pages."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Letters that carry no combining mark, so that normalising leaves them as they are.
_LETTERS = str.maketrans(
    {"ł": "l", "ø": "o", "đ": "d", "ð": "d", "ß": "ss", "æ": "ae", "œ": "oe", "ı": "i", "þ": "th"}
    | dict.fromkeys("’‘ʻʼ`´", "'")
)


@lru_cache(maxsize=1 << 16)  # building all pages compares the same few thousand names often
def fold(text: str) -> str:
    """``text`` in lower case and without accents: ``Bogotá`` becomes ``bogota``."""
    marked = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in marked if not unicodedata.combining(c)).translate(_LETTERS)


def slug(text: str) -> str:
    """``text`` as one part of an address: ``N'Djamena`` becomes ``n-djamena``."""
    return re.sub(r"[^a-z0-9]+", "-", fold(text)).strip("-")
