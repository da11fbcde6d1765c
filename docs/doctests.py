"""Show the doctests of docstrings as code: Markdown alone would take `>>>` for a quotation."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?m)^>>> .*(?:\n(?!\s*$).*)*")
"""From a prompt to the next empty line."""


class Doctests(griffe.Extension):
    """Put each doctest in a fence."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
