"""Verdicts: which rows of a table beat which others, paired over seeds and test images.

Keys of a sheet of verdicts, beside those of others: rows are compared whose values of `same` are
equal. Each of `pairs` takes those whose `label` is one of `of` and none of `without`, `against`
others, by these labels, for each of the `networks` of a run, or of its own. `against` is what the
title of the difference calls them. `primary` is the comparison that the sheet is about, with the
keys `of`, `against` and, if there are several, `network`, or `where`: values of the row. It is
decided by itself, all others as one family: the chance that any of them is decided between equal
methods is 5 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from prunekit.reporting.significance import Comparison, Hits, SeedVariance, holm, paired
from scripts.reproduce.hits import KeptHits
from scripts.reproduce.rows import Row, fits, head_of
from scripts.reproduce.tables import Table

Sheet = Mapping[str, Any]
PRIMARY, OTHERS = "primary", "one of {count}"


@dataclass(frozen=True)
class _Pair:
    """Two rows that are compared, by their labels, on a network of their runs."""

    row: Row
    label: str
    against: str
    network: str | None
    result: Comparison


def verdicts(
    table: Table, sheet: Sheet, rows: Sequence[Row], hits: KeptHits
) -> Iterator[dict[str, Any]]:
    """Yield what beats what, for one after another of the groups of rows that are compared."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        key = tuple(row.get(name) for name in sheet.get("same", ()))
        groups.setdefault(key, {})[row[sheet["label"]]] = row
    pairs = [pair for group in groups.values() for pair in _compared(table, sheet, group, hits)]
    is_primary = [_is_primary(sheet, pair) for pair in pairs]
    families = {
        kind: holm(
            [pair.result for pair, own in zip(pairs, is_primary, strict=True) if own is kind]
        )
        for kind in (True, False)
    }
    results = {kind: iter(family) for kind, family in families.items()}
    for pair, own in zip(pairs, is_primary, strict=True):
        compared = {**pair.row, "tested": pair.network, "against": pair.against}
        family = PRIMARY if own else OTHERS.format(count=len(families[False]))
        cells = cells_of(next(results[own]), sheet.get("against", ""), sheet.get("digits", 3))
        yield head_of(sheet["head"], compared) | cells | {"family": family}


def _compared(
    table: Table, sheet: Sheet, group: Mapping[str, Row], hits: KeptHits
) -> Iterator[_Pair]:
    """Yield the pairs of a group whose hits are known, with one variance for each network."""
    known: dict[str | None, dict[str, Hits]] = {}
    for network, label, against in _pairs(sheet, [*group]):
        if network not in known:
            known[network] = {
                name: hits_of(table, row, hits, network) for name, row in group.items()
            }
        both = known[network][label], known[network][against]
        if {*both[0]} & {*both[1]}:
            result = paired(*both, SeedVariance.pooled(known[network].values()))
            yield _Pair(group[label], label, against, network, result)


def _pairs(sheet: Sheet, labels: Sequence[str]) -> Iterator[tuple[str | None, str, str]]:
    """Yield a network of a run and the labels of two rows, in the order of the sheet.

    Two rows are compared once, whichever is named first.
    """
    seen: set[tuple[str | None, frozenset[str]]] = set()
    for network, pair in product(sheet.get("networks", [None]), sheet["pairs"]):
        first = [
            label
            for label in labels
            if fits({"label": label}, {"label": pair.get("of", "*")})
            and label not in pair.get("without", ())
        ]
        if network in pair.get("networks", [network]):
            for label, against in product(first, pair["against"]):
                both = (network, frozenset((label, against)))
                if against in labels and label != against and both not in seen:
                    seen.add(both)
                    yield network, label, against


def _is_primary(sheet: Sheet, pair: _Pair) -> bool:
    primary = sheet.get("primary", {})
    return bool(primary) and (
        {pair.label, pair.against} == {primary["of"], primary["against"]}
        and primary.get("network", pair.network) == pair.network
        and fits(pair.row, primary.get("where", {}))
    )


def hits_of(table: Table, row: Row, hits: KeptHits, network: str | None = None) -> Hits:
    """Return which test images a row recognises, for each seed where that is known."""
    runs = table.runs_by_seed(row)
    found = {seed: hits.of(one, network) for seed, one in runs.items()}
    return {seed: right for seed, right in found.items() if right is not None}


def cells_of(result: Comparison, against: str = "", digits: int = 3) -> dict[str, Any]:
    """Return the cells of a comparison; `against` is what the second rows are called."""
    form = f"{{:+.{digits}f}}".format
    title = f"error minus {against}, points" if against else "error difference, points"
    return {
        "seeds": result.seeds,
        title: form(result.difference),
        "95 % interval": f"{form(result.low)} to {form(result.high)}",
        "p, corrected": f"{result.corrected:.3f}",
        "verdict": result.verdict,
    }
