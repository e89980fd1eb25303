"""Untrusted text made fit to be shown: what a model or a page wrote is never obeyed.

Pure. It knows nothing of terminals' colours or of HTML; whoever writes markup escapes
for that markup as well.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Control characters (a terminal would obey them), direction overrides (text that reads
# other than it is), and lone surrogates (which no file can hold).
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)
_SPACE = re.compile(r"\s+")


def visible(text: str) -> str:
    """``text`` with every character that acts instead of showing replaced by a visible one.

    Line breaks stay; an escape becomes ``␛``, so the reader sees that it was there.
    """
    text = text.replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    return _UNSEEN.sub(_picture, text).replace("\t", "    ")


def one_line(text: str, limit: int = 0) -> str:
    """``visible(text)`` on one line, cut to ``limit`` characters with ``…`` (0: not cut)."""
    # A page of megabytes is not worth reading for one line.
    head = text[: limit * 8] if limit else text
    line = _SPACE.sub(" ", visible(head)).strip()
    if len(head) < len(text):
        line += "…"  # also where a thousand blanks keep the rest out of sight
    return cut(line, limit) if limit else line


def as_json(data: Any) -> str:
    """``data`` as indented JSON for people and programs: what acts instead of showing stands as
    ``\\u009b``, which reads back as it was."""
    text = json.dumps(data, ensure_ascii=False, indent=2)
    return _UNSEEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def cut(text: str, limit: int) -> str:
    """At most ``limit`` characters of ``text``; the last is ``…`` where more are left out."""
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


def seconds(value: float) -> str:
    """A duration for people: ``0.42 s``, ``12.3 s``, ``2 min 05 s``."""
    if value >= 100:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"


def _picture(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else "\ufffd"
