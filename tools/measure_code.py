"""Prints how large and how entangled the code is, and fails where it is above its bounds."""

from __future__ import annotations

import argparse
import ast
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "ldmae"
RUN = "ldmae.run"
"""The room that joins stages."""

BOUNDS = {
    # what is reached; wanted are 17,000, 520, 230, 14, 0 and 17,500
    "lines under src/ldmae (.py, .j2, .css)": 33_409,
    "public top-level names": 922,
    "raise UserError": 406,
    "package modules that one file of run/ imports, largest": 14,
    "import cycles": 0,
    "lines of tests": 29_016,
}
"""None may grow, but by a commit of its own that says why."""


@cache
def modules() -> dict[str, ast.Module]:
    """Returns the syntax trees of the package's modules by dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        if "shipped" in path.parts:  # what is saved with each model
            continue
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(name: str) -> set[str]:
    """Returns the modules of the package that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & modules().keys()) or {node.module}
    return (found & modules().keys()) - {name, "ldmae"}


def cycles() -> list[tuple[str, ...]]:
    """Returns the groups of modules that import one another in a circle (strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in imported(name):
            if other not in order:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(tuple(group))

    for name in modules():
        if name not in order:
            visit(name)
    return groups


def lines(folder: Path, *suffixes: str) -> int:
    """Returns the lines of a folder's files of some kinds."""
    paths = (p for p in folder.rglob("*") if p.suffix in suffixes and "shipped" not in p.parts)
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def public_names(tree: ast.Module) -> set[str]:
    """Returns a module's functions, classes and assigned names that begin with no underscore."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {
                part.id
                for target in targets
                for part in ast.walk(target)
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            }
    return {name for name in found if not name.startswith("_")}


def user_errors(tree: ast.Module) -> int:
    """Returns how often a module raises a UserError."""
    raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    return sum(isinstance(exc, ast.Call) and ast.unparse(exc.func) == "UserError" for exc in raised)


def measure() -> dict[str, int]:
    """Returns the figures that `BOUNDS` names."""
    trees = modules()
    entangled = [len(imported(name)) for name in trees if f"{name}.".startswith(f"{RUN}.")]
    values = (
        lines(SOURCE, ".py", ".j2", ".css"),
        sum(len(public_names(tree)) for tree in trees.values()),
        sum(user_errors(tree) for tree in trees.values()),
        max(entangled),
        len(cycles()),
        lines(ROOT / "tests", ".py"),
    )
    return dict(zip(BOUNDS, values, strict=True))


def main() -> None:
    """Prints the table; exits with 1 where a bound is passed."""
    measured = measure()
    print("| | now | bound |\n|---|---|---|")
    for name, value in measured.items():
        print(f"| {name} | {value:,} | {BOUNDS[name]:,} |")
    for group in cycles():
        print(f"in a circle: {', '.join(group)}")
    if above := [name for name, value in measured.items() if value > BOUNDS[name]]:
        sys.exit(f"above its bound: {', '.join(above)}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
