"""Show names and values as they are, wherever a terminal or a program would interpret them."""

from __future__ import annotations

import unicodedata

_UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, halves of pairs, line ends
_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes spreadsheets take a cell for a formula
_NOTHING = ("-", "+")  # in a cell of its own, such as a dash for "not published"
_GUARD = "'"


def visible(text: str, keep: str = "") -> str:
    r"""Return text with control characters as escapes, such as \x1b, except those in `keep`.

    These are the characters that move the cursor, colour or clear a terminal, break a line, or
    turn the direction of writing.
    """
    if text.isprintable():
        return text
    hidden = (sign not in keep and _is_control(sign) for sign in text)
    return "".join(_escaped(s) if hide else s for s, hide in zip(text, hidden, strict=True))


def guard_formula(text: str) -> str:
    """Return text with an apostrophe in front where a spreadsheet would compute it; not numbers."""
    harmless = text in _NOTHING or _is_number(text)
    return _GUARD + text if text.startswith(_FORMULA) and not harmless else text


def unguarded(text: str) -> str:
    """Return text without the apostrophe that `guard_formula` puts in front."""
    return text[1:] if text.startswith(_GUARD) and guard_formula(text[1:]) == text else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_control(sign: str) -> bool:
    return unicodedata.category(sign) in _UNSEEN or sign in _TURNING


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode()
