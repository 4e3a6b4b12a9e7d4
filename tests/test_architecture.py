"""The rules of docs/architecture.md that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "prunekit"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    {
        *(
            "errors",
            "registry",
            "validate",
            "schema",
            "comments",
            "build",
            "console",
            "atomic_write",
        ),
        *("torch_io", "config", "modes", "outputs", "reasons", "renamed", "termination", "text"),
    },
    {"rows", "penalties", "graph", "models", "data", "export"},
    {"targets", "solvers", "surgery", "measure"},
    {"training", "criteria", "selection"},
    {"engine"},
    {"methods", "pruning"},
    {"runs", "attachment"},
    {"reporting"},
    {"stages"},
    {"cli"},
    {"__main__"},
)
LAYER = {name: depth for depth, names in enumerate(LAYERS) for name in names}
ONLY = {  # narrower than the layer: the whole list of what these may import
    "solvers": {"rows", "penalties", "errors", "registry", "validate", "schema"},
    "penalties": {"errors", "registry", "validate", "schema"},
    "models": {"errors", "reasons", "validate", "schema"},
}
THIRD_PARTY = {
    "hydra": {"cli", "cli.explain", "cli.jobs", "cli.sweep"},
    "omegaconf": {"config", "cli.explain"},
    "rich": {"console"},
    "fvcore": {"measure.cost"},
    "jinja2": {"reporting.page.document"},
    "markupsafe": {"reporting.page.figures"},
    "tensorboard": set(),  # by name in runs.tracking, where they are asked for
    "mlflow": set(),
    "matplotlib": {
        *("reporting.figures", "reporting.plots", "reporting.tradeoff", "reporting.embedding"),
        *("reporting.sensitivity", "reporting.pareto", "reporting.page.figures"),
    },
}


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def top(name: str) -> str:
    return name.split(".")[0]


def imports(file: Path) -> list[tuple[str, bool]]:
    """Imported module names, and whether the import is only for type checkers."""
    tree = ast.parse(file.read_text())
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = node.module == "prunekit"
            names = [f"prunekit.{alias.name}" for alias in node.names] if whole else [node.module]
            found.extend((name, id(node) in typing_only) for name in names if "__" not in name)
        elif isinstance(node, ast.Import):
            found.extend((alias.name, id(node) in typing_only) for alias in node.names)
    return found


def inner(file: Path) -> set[str]:
    names = {name for name, typing in imports(file) if not typing and name.startswith("prunekit.")}
    return {name.removeprefix("prunekit.") for name in names}


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_imports_point_down(file: Path) -> None:
    name = top(dotted(file))
    if name == "__init__" or not dotted(file):
        return
    for imported in inner(file):
        other = top(imported)
        assert other in LAYER, f"{imported} has no layer"
        if name in ONLY:
            assert other == name or other in ONLY[name], f"{name} may not import {imported}"
        if other != name and LAYER[name] > 0:
            assert LAYER[other] < LAYER[name], f"{name} may not import {imported}"


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("methods/*/**/*.py")), ids=dotted)
def test_methods_do_not_know_each_other(file: Path) -> None:
    own = ".".join(dotted(file).split(".")[:2])
    others = {name for name in inner(file) if name.startswith("methods.")}
    assert all(f"{name}.".startswith(f"{own}.") for name in others)


def test_the_channel_graph_has_no_circles() -> None:
    """Neither at run time nor for types; the package itself only gathers what is public."""
    files = {dotted(file): file for file in FILES if dotted(file).startswith("graph.")}
    needs = {name: gathered(file, files) - {name} for name, file in files.items()}
    assert len([*TopologicalSorter(needs).static_order()]) == len(files)


def gathered(file: Path, known: Collection[str]) -> set[str]:
    """The modules among the known ones that a file imports, or imports from."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunekit.graph"):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = {name.removeprefix("prunekit.") for name in (node.module or "", *inside)}
            found |= names & {*known}
    return found


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_third_party_packages_stay_at_their_edge(file: Path) -> None:
    for imported, _ in imports(file):
        allowed = THIRD_PARTY.get(top(imported))
        assert allowed is None or dotted(file) in allowed, f"{imported} in {dotted(file)}"


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_files_are_short_and_plain(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except at line {node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            assert dotted(file) == "console", f"print at line {node.lineno}"
        if isinstance(node, ast.FunctionDef):
            defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
            mutable = (ast.List, ast.Dict, ast.Set)
            assert not any(isinstance(d, mutable) for d in defaults), (
                f"{node.name}: mutable default"
            )


UNUSED = {"scipy", "sklearn", "pandas", "matplotlib"}  # by a run without figures, on digits
PLAIN = f"""
import sys
from prunekit.cli import main
main(["run", "schedule=smoke", "runtime.threads=1", "latency.runs=5", "latency.warmup=1"])
print("loaded:", *sorted({UNUSED} & sys.modules.keys()))
"""


def test_a_plain_run_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:", done.stdout


def test_every_module_has_a_layer() -> None:
    modules = {top(dotted(file)) for file in FILES} - {""}
    assert modules - {"__init__"} == set(LAYER)


def test_the_library_works_without_the_command_line_and_the_configs() -> None:
    """Nothing below the stages imports cli or config."""
    for file in FILES:
        if top(dotted(file)) not in {"cli", "__main__", "config"}:
            assert not {"cli", "config"} & {top(name) for name in inner(file)}, dotted(file)


def test_the_tests_of_numbers_exist() -> None:
    """Otherwise pytest stops before the first test of `make numbers`."""
    listed = re.search(r"test_%\.py, \\\n(.*?)\)\n", (ROOT / "Makefile").read_text(), re.DOTALL)
    assert listed is not None
    names = listed[1].replace("\\", " ").split()
    missing = [n for n in names if not (ROOT / "tests" / "unit" / f"test_{n}.py").is_file()]
    assert len(names) > 20 and not missing
