"""One-line mutations of the schedule, and which of them its tests notice.

    python benchmarks/mutations.py 0.05 [--seed 0] [--timeout 600] [FILE ...]

A share of all mutations of the files (constants, comparisons, arithmetic, min and max, and statements left out) is
drawn; each is tried in a process of its own, with the golden trajectories first and then the fast tests. A mutation
that no test notices is printed. Messages, type annotations and checks of arguments are not mutated.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import random
import signal
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
RULES = sorted(path.stem for path in (SOURCE / "warmgap/rules").glob("*.py") if path.stem != "__init__")
CORE = ["signal", "target", "schedule", *(f"rules/{stem}" for stem in RULES)]
CORE_TESTS = [f"tests/{name}" for name in ("golden", "test_signal.py", "test_target.py", "test_schedule.py", "rules")]
TORCH_TESTS = [f"tests/torch/test_{name}.py" for name in ("explain", "steps", "group_schedules", "scheduler")]

OPERATORS: dict[type[ast.AST], list[type[ast.AST]]] = {
    ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Div], ast.Div: [ast.Mult], ast.FloorDiv: [ast.Mult],
    ast.BitAnd: [ast.BitOr], ast.BitOr: [ast.BitAnd], ast.And: [ast.Or], ast.Or: [ast.And],
    ast.Lt: [ast.GtE, ast.LtE], ast.LtE: [ast.Gt, ast.Lt], ast.Gt: [ast.LtE, ast.GtE], ast.GtE: [ast.Lt, ast.Gt],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq],
}  # fmt: skip
NAMES = {"minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min"}


def changes(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a node to change, and what to."""
    match node:
        case ast.Constant(value=bool(value)):
            yield "value", not value
        case ast.Constant(value=int(value)):
            yield "value", value + 1
        case ast.Constant(value=float(value)):
            yield "value", 1.3 * value or 0.1
        case ast.BinOp() | ast.BoolOp():
            yield from (("op", new()) for new in OPERATORS.get(type(node.op), []))
        case ast.Compare(ops=[operator]):
            yield from (("ops", [new()]) for new in OPERATORS.get(type(operator), []))
        case ast.Attribute(attr=name) if name in NAMES:
            yield "attr", NAMES[name]
        case ast.Name(id=name, ctx=ast.Load()) if name in NAMES:
            yield "id", NAMES[name]
        case ast.Expr(value=ast.Call()):
            yield "value", ast.Constant(value=None)


def left_alone(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what is not mutated."""
    for node in ast.walk(tree):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(node, (ast.JoinedStr, ast.Raise)) or name.startswith(("check_", "warnings.", "ops.require")):
            yield from ast.walk(node)
        if isinstance(node, ast.keyword) and node.arg == "strict":  # a check too
            yield node.value
        for field in ("annotation", "returns"):
            if isinstance(part := getattr(node, field, None), ast.AST):
                yield from ast.walk(part)


def mutations(file: str) -> Iterator[tuple[str, str, str]]:
    """Yield every mutation of a module: the file, what it is, and the new source."""
    source = (SOURCE / f"warmgap/{file}.py").read_text()
    tree = ast.parse(source)
    skipped = {id(node) for node in left_alone(tree)}
    nodes: list[Any] = [node for node in ast.walk(tree) if id(node) not in skipped]
    for node in nodes:
        for field, new in list(changes(node)):
            line = source.splitlines()[node.lineno - 1].strip()
            old = getattr(node, field)
            setattr(node, field, new)
            yield file, f"{file}:{node.lineno}: {line}   ->   {ast.unparse(node)[:60]}", ast.unparse(tree)
            setattr(node, field, old)


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a source that is given."""

    def __init__(self, name: str, source: str, path: str) -> None:
        self.name, self.source, self.path = name, source, path

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        """Return how to import the module; None for any other."""
        return importlib.util.spec_from_loader(name, self, origin=self.path) if name == self.name else None

    def exec_module(self, module: types.ModuleType) -> None:
        """Run the source."""
        module.__file__ = self.path
        exec(compile(self.source, self.path, "exec"), module.__dict__)  # noqa: S102


def notices(file: str, source: str) -> bool:
    """Return whether a test fails on the mutation; in this process, whose modules are then spoilt."""
    import pytest

    sys.meta_path.insert(0, Replaced(f"warmgap.{file.replace('/', '.')}", source, str(SOURCE / f"warmgap/{file}.py")))
    tests = TORCH_TESTS if file.startswith("torch/") else CORE_TESTS
    tests = sorted(tests, key=lambda path: file.rpartition("/")[2] not in path)  # its own first
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", *tests]) != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("share", type=float, help="share of all mutations to try")
    parser.add_argument("files", nargs="*", help="modules, such as rules/guard or torch/scheduler; the core by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=int, default=600, help="seconds after which a mutation counts as noticed")
    options = parser.parse_intermixed_args()  # the files may come last
    os.chdir(ROOT)
    sys.path[:0] = [str(SOURCE), str(ROOT)]
    for needed in ("hypothesis", "numpy", "pytest", "scipy", "torch"):  # imported once, before the fork
        importlib.import_module(needed)
    every = [mutation for file in options.files or CORE for mutation in mutations(file)]
    drawn = random.Random(options.seed).sample(every, round(options.share * len(every)))  # noqa: S311
    print(f"{len(every)} mutations, {len(drawn)} tried", flush=True)
    survivors = sum(not tried(file, source, options.timeout, text) for file, text, source in drawn)
    print(f"{survivors} of {len(drawn)} survived")


def tried(file: str, source: str, timeout: int, text: str) -> bool:
    """Try a mutation in a process of its own; return whether it was noticed."""
    start = time.monotonic()
    child = os.fork()
    if not child:
        signal.alarm(timeout)
        os._exit(int(notices(file, source)))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    how = {0: "SURVIVED", 1: "noticed", -signal.SIGALRM: "too slow"}.get(code, "broken")
    print(f"{how} after {time.monotonic() - start:.0f} s: {text}", flush=True)
    return code != 0


if __name__ == "__main__":
    main()
