"""For MkDocs: docstrings as its reader of Google's style takes them, and reStructuredText's roles as links."""

from __future__ import annotations

import re
from typing import Any

import griffe

# :func:`fai_fast.load`, :meth:`~fai_fast.Model.infer`, :class:`Detections`
ROLE = re.compile(r":(?:func|meth|class|mod|attr|data|exc|obj):`~?([\w.]+)`")

# The plural is the section whose doctests are shown as code.
EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)


def links(text: str, scope: str) -> str:
    """The text with a link in place of each role, or plain code where the site has no place for it."""

    def link(match: re.Match[str]) -> str:
        name = match[1]
        place = name if name.startswith("fai_fast") else f"{scope}.{name}"
        return f'<autoref optional identifier="{place}"><code>{name}</code></autoref>'

    return ROLE.sub(link, text)


class Roles(griffe.Extension):
    """Changes every docstring when it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            scope = obj.path if obj.is_class or obj.is_module or obj.parent is None else obj.parent.path
            obj.docstring.value = EXAMPLE.sub(r"\1Examples:", links(obj.docstring.value, scope))
