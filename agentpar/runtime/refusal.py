"""What a model server's no is about: the request's grammar, or anything else.

Pure, and the same for a server behind HTTP and an engine in this process.
"""

from __future__ import annotations

from agentpar.errors import GrammarRefused, ModelServerError
from agentpar.ports import ModelRequest


def refusal(request: ModelRequest, text: str, *, begun: bool) -> ModelServerError:
    """The error for ``request``, to which the server has said ``text``.

    `GrammarRefused` where the request has a grammar and the text speaks of one; but not once
    the answer has ``begun``, since then the grammar was taken.
    """
    about_grammar = request.grammar is not None and "grammar" in text.lower()
    return (GrammarRefused if about_grammar and not begun else ModelServerError)(text)
