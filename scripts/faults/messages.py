"""What a person can read: one line that names what is wrong and a way out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from scripts.faults.children import Ended

LONGEST = 700  # characters of a line
_CODES = (0, 1, 2, 130, 143)
_SPILLED = {  # patterns that only a programmer can read
    "a traceback": r"Traceback \(most recent call last\)|^  File \"",
    "an address": r"0x[0-9a-f]{6,}",
    "a word of torch": r"PytorchStreamReader|Missing key\(s\)|size mismatch for|enforce fail|"
    r"RuntimeError|shape '\[|storage has|torch\.\w+\.\w+\(|weights_only|Unpickl",
    "a word of PIL": r"PIL\.|cannot identify image|_io\.|UnidentifiedImage|DecompressionBomb",
    "a word of Hydra": r"hydra\.|omegaconf|HYDRA_FULL_ERROR|LexerNoViableAlt|mismatched input",
    "the name of an error": r"\b(Type|Value|Key|Index|Attribute|OS|Recursion|Memory|Overflow)Error",
}
_WAY_OUT = re.compile(
    r";|\bor \w+=|\bchoose\b|\bgive\b|\brun\b|\bset\b|\blower\b|\bdelete\b|\bdid you mean\b|"
    r"\bmust be\b|\baccepted\b|\bis not an?\b|\bwait\b|\bwrite\b|\bneeds?\b|\bcontinues\b"
)


def find_fault(ended: Ended, mentions: Sequence[str] = ()) -> str:
    """Return what is bad about the message of a command; "" if it can be read.

    A command that failed must name one of `mentions` in its last line.
    """
    if ended.code not in _CODES:
        return f"exit status {ended.code}"
    for name, pattern in _SPILLED.items():
        if re.search(pattern, ended.err, re.MULTILINE):
            return name
    if ended.code == 0:
        return ""
    line = ended.last_line
    if len(line) > LONGEST:
        return f"{len(line)} characters"
    if not line.startswith(("prunekit: ", "usage: ", "prunekit ")):
        return "no line of prunekit"
    if [text for text in ended.err.splitlines() if text.startswith("prunekit: ")] != [line]:
        return "several lines"
    if not _WAY_OUT.search(line):
        return "no way out"
    if mentions and not any(word in line for word in mentions):
        return f"does not name {mentions[0]!r}"
    return ""
