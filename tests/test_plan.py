"""References: they lead to values and to parts of them, never to letters of a text."""

from __future__ import annotations

import pytest

from agentpar.errors import PlanError
from agentpar.plan import Ok, Ref, resolve


def test_a_path_leads_into_lists_and_mappings() -> None:
    """To the value that stands there, whatever it is."""
    outcomes = {1: Ok({"hits": [{"url": "http://a"}]})}
    assert resolve(Ref(1, ("hits", 0, "url")), outcomes) == "http://a"


@pytest.mark.parametrize(
    ("value", "path", "told"),
    [
        ("Lima", (0,), r"\$1\[0\]: \$1 is str, which has no parts"),
        ({"value": "Lima"}, ("value", 0), r"\$1\.value\[0\]: \$1\.value is str"),
        (["Lima"], (1,), r"\$1\[1\]: \$1 is a list of 1"),
        ({"value": 3}, ("name",), r"\$1\.name: \$1 has the fields 'value'"),
        (19, (0,), r"\$1\[0\]: \$1 is int"),
    ],
)
def test_a_path_that_leads_nowhere_is_told(
    value: object, path: tuple[str | int, ...], told: str
) -> None:
    """With the step that is missing and what is there instead: a text has no parts either."""
    with pytest.raises(PlanError, match=told):
        resolve(Ref(1, path), {1: Ok(value)})
