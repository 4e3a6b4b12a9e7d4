"""Html from plain strings: whatever is not markup already is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_EMPTY = frozenset({"meta", "img", "br"})


class Markup(str):
    """Text that is html already."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | None) -> Markup:
    """One element; children that are no `Markup` are escaped, attributes always.

    `class_` stands for class, and an attribute of None is left out.
    """
    said = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    inside = "" if tag in _EMPTY else f"{join(children)}</{tag}>"
    return Markup(f"<{tag}{said}>{inside}")


def join(children: Iterable[str]) -> Markup:
    """Several pieces as one."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children))


def grid(
    headings: Sequence[str], lines: Iterable[Sequence[str]], numeric: Sequence[bool] = ()
) -> Markup:
    """A table that scrolls by itself where it is wider than the page."""
    looks = ["num" if right else None for right in numeric] or [None] * len(headings)
    body = [row("td", line, looks) for line in lines]
    head = element("thead", row("th", headings, looks))
    return element("div", element("table", head, element("tbody", *body)), class_="wide")


def row(tag: str, cells: Sequence[str], looks: Sequence[str | None]) -> Markup:
    """One line of a table; `looks` are classes of its cells."""
    pairs = zip(cells, looks, strict=True)
    return element("tr", *(element(tag, cell, class_=look) for cell, look in pairs))
