"""What may import what: the core needs no framework, and imports go one way through the package."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"

# The parts of the package in the order in which data goes through them: a module may import from its own part and from
# those in the lines before. Names in one line are independent of each other.
PARTS = (
    ("_checks", "_ops", "_state", "_version"),
    ("curve", "geometry"),
    ("matching",),
    ("signal", "target"),
    ("rules",),
    ("_version_1", "decay"),
    ("schedule",),
    ("replay",),
    ("smoothness",),
    ("theory",),
    ("torch",),
    ("optax", "transformers", "lightning"),
    ("lab",),
)
RANKS = {name: rank for rank, names in enumerate(PARTS) for name in names}

FRAMEWORKS = ("torch", "jax", "transformers", "accelerate", "lightning", "optax")
NUMERICS = ("numpy", "scipy")
LAB_ONLY = ("transformers", "accelerate", "tokenizers", "rich", "matplotlib", "jax", "optax", "lightning")

# The framework-free parts come first; this one of them is about numbers through and through, and `import warmgap` does
# not import it.
CORE_RANKS = RANKS["torch"]
NUMERIC_PARTS = ("theory",)


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def part_of(module: str) -> str | None:
    """The part of the package a module belongs to; None for the package itself."""
    _, _, rest = module.partition(".")
    return rest.split(".")[0] or None


CORE = [module for module in MODULES if (part := part_of(module)) is None or RANKS.get(part, 0) < CORE_RANKS]
LIGHT = [module for module in CORE if part_of(module) not in NUMERIC_PARTS]
TORCH = [module for module in MODULES if part_of(module) == "torch"]


def loaded_by(modules: list[str], path: Path = SOURCE) -> set[str]:
    """Names of all the modules that are loaded once a fresh interpreter has imported `modules`."""
    program = (
        "import importlib, json, sys\n"
        "before = set(sys.modules)\n"
        f"sys.path.insert(0, {str(path)!r})\n"
        f"for module in {modules!r}: importlib.import_module(module)\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def loaded_of(banned: tuple[str, ...], modules: list[str], path: Path = SOURCE) -> set[str]:
    return {name for name in loaded_by(modules, path) if name in banned}


def imports(tree: ast.AST, at_import: bool = True) -> Iterator[tuple[str, bool]]:
    """Every module a file imports, with whether that happens when the file itself is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            for alias in node.names:
                # `from warmgap import decay` imports warmgap.decay.
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module), at_import
        else:
            later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            yield from imports(node, at_import and not later and not for_types)


def wrong_imports(module: str, source: str) -> list[str]:
    """The imports of a module that go up the list of parts, or bring a framework into the core."""
    part = part_of(module)
    wrong = []
    for name, at_import in imports(ast.parse(source)):
        top = name.split(".")[0]
        if part is not None and top == "warmgap" and not may_import(part, part_of(name)):
            wrong.append(f"{module} imports {name}")
        heavy = top in NUMERICS and at_import and part not in NUMERIC_PARTS
        if module in CORE and (top in FRAMEWORKS or heavy):
            wrong.append(f"{module} imports {name}")
    return wrong


def may_import(part: str, other: str | None) -> bool:
    if other is None:
        # The package itself imports the whole core, so that only what comes after the core may import it.
        return RANKS[part] >= CORE_RANKS
    return part == other or RANKS[other] < RANKS[part]


def test_every_part_is_in_the_list() -> None:
    assert {part for module in MODULES if (part := part_of(module))} <= set(RANKS)
    assert "warmgap.curve" in CORE
    assert "warmgap.rules.gap" in CORE
    assert "warmgap.torch.split" in TORCH


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    assert wrong_imports(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("warmgap.curve", "from warmgap.matching import match_peak_gap"),
        ("warmgap.curve", "from warmgap import schedule"),
        ("warmgap.curve", "import warmgap"),
        ("warmgap.rules.gap", "def f():\n    from warmgap.schedule import Schedule"),
        ("warmgap.rules.gap", "def f():\n    import torch"),
        ("warmgap.matching", "import numpy as np"),
        ("warmgap.matching", "class C:\n    import numpy as np"),
        ("warmgap.matching", "if True:\n    from scipy import optimize"),
        ("warmgap.theory.norms", "import torch"),
        ("warmgap.torch.split", "from warmgap.lab.config import Config"),
        ("warmgap.transformers", "import warmgap.lightning"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert len(wrong_imports(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("warmgap.matching", "def f():\n    from scipy import optimize\n    import numpy"),
        ("warmgap.matching", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy"),
        ("warmgap.schedule", "from warmgap import decay\nfrom warmgap.rules import Rule"),
        ("warmgap.theory.norms", "import numpy as np\nfrom warmgap.geometry import kappa"),
        ("warmgap.lab.cli", "from warmgap import __version__\nimport transformers"),
    ],
)
def test_a_right_import_is_not(module: str, source: str) -> None:
    assert wrong_imports(module, source) == []


def test_the_core_loads_no_framework() -> None:
    assert loaded_of(FRAMEWORKS + NUMERICS, LIGHT) == set()
    assert loaded_of(FRAMEWORKS, CORE) == set()


def test_the_torch_side_loads_nothing_of_the_lab() -> None:
    loaded = loaded_by(TORCH)
    assert "torch" in loaded
    assert {name for name in loaded if name in LAB_ONLY or name.startswith("warmgap.lab")} == set()


def test_what_is_loaded_is_found_also_at_second_hand(tmp_path: Path) -> None:
    (tmp_path / "decoy.py").write_text("import json.tool, accomplice")
    (tmp_path / "accomplice.py").write_text("import numpy")
    assert loaded_of(FRAMEWORKS + NUMERICS, ["decoy"], tmp_path) == {"numpy"}


def test_importing_warmgap_is_light() -> None:
    loaded = loaded_by(["warmgap"])
    assert {"warmgap", "warmgap.schedule"} <= loaded
    assert loaded.isdisjoint({*FRAMEWORKS, *NUMERICS, "typing_extensions", "asyncio", "unittest"})
    # Its own two dozen modules and what the standard library's dataclasses bring.
    assert len(loaded) < 100


def test_a_missing_framework_is_named_with_what_to_install() -> None:
    program = """
import sys
missing = []
class Finder:
    def find_spec(name, path=None, target=None):
        if name in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder)
first = ["torch"], ("torch", "transformers", "lightning")
second = ["transformers", "lightning", "jax"], ("transformers", "lightning", "optax")
for missing, modules in (first, second):
    for module in modules:
        try:
            __import__("warmgap." + module)
        except ModuleNotFoundError as error:
            print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "warmgap.torch needs torch, and torch is not installed: pip install 'warmgap[torch]'",
        "warmgap.transformers needs torch and transformers, and torch is not installed: "
        "pip install 'warmgap[transformers]'",
        "warmgap.lightning needs torch and lightning, and torch is not installed: pip install 'warmgap[lightning]'",
        "warmgap.transformers needs torch and transformers, and transformers is not installed: "
        "pip install 'warmgap[transformers]'",
        "warmgap.lightning needs torch and lightning, and lightning is not installed: pip install 'warmgap[lightning]'",
        "warmgap.optax needs jax and optax, and jax is not installed: pip install 'warmgap[optax]'",
    ]


def test_what_lies_in_a_part_is_said_to_lie_there() -> None:
    with pytest.raises(ImportError, match=r"AdaptiveWarmup is in warmgap\.torch: from warmgap\.torch import Ad"):
        from warmgap import AdaptiveWarmup  # noqa: F401
