"""Rows of tables, and the rules that say what their values stand for.

A row is a mapping of names to values. A rule is a mapping, too: where the row fits its `if`, the
other entries become values of the row, unless the row has them already. So the first rule that
sets a name decides. A value may be

- a text, in which `<name>` stands for a value of the row; after "= " it is arithmetic;
- a mapping with `macs`, `images`, `epochs`: the time that a training takes, in words;
- a list of such values, or a number;
- in a rule, a mapping with `of: name`, from what the row has there to a value; with `replace:`,
  what the row has there after replacing parts of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

Row = dict[str, Any]
_NAME = re.compile(r"<(\w+)>")
_RATE = 10e12  # FLOPs a second that hours are computed with
_LISTS = frozenset({"settings", "seeds"})  # values that are lists themselves


def fits(row: Mapping[str, Any], patterns: Mapping[str, Any]) -> bool:
    """Tell whether each named value of a row matches its pattern, or one of several."""
    return all(
        any(_matches(row, name, pattern) for pattern in listed(several))
        for name, several in patterns.items()
    )


def _matches(row: Mapping[str, Any], name: str, pattern: Any) -> bool:
    try:
        return fnmatchcase(text_of(row.get(name, ""), row), text_of(pattern, row))
    except KeyError:  # a value or a pattern names what the row has not
        return False


def listed(value: Any) -> list[Any]:
    """Return a list as it is, and anything else as a list of one."""
    return value if isinstance(value, list) else [value]


def resolved(row: Mapping[str, Any], rules: Iterable[Mapping[str, Any]]) -> Row:
    """Return the row with the values that rules set, in their order."""
    whole = dict(row)
    for rule in rules:
        if fits(whole, rule.get("if", {})):
            whole |= {
                name: value
                for name, spec in rule.items()
                if name not in ("if", *whole) and (value := _looked_up(spec, whole)) is not None
            }
    return {name: _filled(value, whole) for name, value in whole.items()}


def _filled(value: Any, row: Row) -> Any:
    """Return a text with values of the row put in, if the row has them all."""
    if not isinstance(value, str):
        return value
    try:
        return text_of(value, row)
    except KeyError:
        return value


def _looked_up(spec: Any, row: Row) -> Any:
    """Return the value that a rule gives a row, None if it has none for this row."""
    if not isinstance(spec, Mapping) or "of" not in spec:
        return spec
    if spec["of"] not in row:
        return None
    key = text_of(row[spec["of"]], row)
    if "replace" not in spec:
        return spec.get(key)
    for old, new in spec["replace"].items():
        key = key.replace(old, new)
    return key


def text_of(value: Any, row: Mapping[str, Any]) -> str:
    """Return a value as text, with others of the row put in; KeyError where the row has none."""
    if isinstance(value, Mapping):
        return training_time(**{key: text_of(one, row) for key, one in value.items()})
    text = _NAME.sub(lambda name: text_of(row[name[1]], row), str(value))
    return f"{arithmetic(text[2:].split()):.6g}" if text.startswith("= ") else text


def arithmetic(words: Sequence[str | float]) -> float:
    """Return the value of numbers with + - * / between them; ValueError for other words."""
    terms = [float(words[0])]
    for sign, word in zip(words[1::2], words[2::2], strict=True):
        number = float(word)
        if sign in ("+", "-"):
            terms.append(number if sign == "+" else -number)
        else:
            terms[-1] = terms[-1] * number if sign == "*" else terms[-1] / number
    return sum(terms)


def training_time(data: str, macs: str, images: str, epochs: str) -> str:
    """Say what training for so many epochs takes; the hours are computed, nothing was timed."""
    work = 3 * 2 * float(macs) * float(images) * float(epochs)  # backward is twice forward
    hours = f"{work / _RATE / 3600:.1f} h at {_RATE / 1e12:.0f} TFLOP/s"
    return f"{data}, a GPU: {work:.1e} FLOPs a run, {hours}"


def expanded(entries: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Yield a row for every combination of the values that entries list, the last varying most."""
    for entry in entries:
        axes = [[value] if name in _LISTS else listed(value) for name, value in entry.items()]
        for values in product(*axes):
            yield dict(zip(entry, values, strict=True))


def head_of(spec: Any, row: Row) -> Row:
    """Return columns of text; "-" where the row has no such value, or none was published.

    `spec` is a template by title, or "paper" for all that was published.
    """
    if spec == "paper":
        return {f"paper: {column}": value or "-" for column, value in row["fact"].items()}
    return {title: _cell(template, row) for title, template in spec.items()}


def _cell(template: str, row: Row) -> Any:
    """Return a template as text; a number that stands alone in it as it is."""
    name = template[1:-1]
    if template == f"<{name}>":
        is_blank = name not in row or (row[name] == "" and name in row.get("fact", {}))
        return "-" if is_blank else row[name]
    try:
        text = text_of(template, row)
    except KeyError:
        return "-"
    return f"{float(text):.2f}" if template.startswith("= ") else text
