"""The pages build strictly, every public name is in the reference, and no link is broken."""

import importlib
import inspect
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
PUBLIC = sorted(re.findall(r"^::: (\S+)$", "".join(page.read_text() for page in REFERENCE.glob("*.md")), re.MULTILINE))


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def build_page(folder: Path, page: str, source: Path = ROOT / "src") -> subprocess.CompletedProcess[str]:
    """Builds a site of one page, with the settings of the real one, in a folder of its own."""
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(f"# Page\n\n{page}\n")
    settings = re.sub(r"^nav:\n(^ .*\n)*", "", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    (folder / "mkdocs.yml").write_text(
        settings.replace("paths: [src]", f"paths: [{source}]").replace("docs/hooks/", f"{ROOT}/docs/hooks/")
    )
    return build(folder / "mkdocs.yml", folder / "site")


def inventory(site: Path) -> set[str]:
    """The names that the reference describes, from the file by which other projects' pages link to it."""
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}


def public_names(module: str) -> list[str]:
    """The public names of a module, and the public methods and properties of its classes."""
    names = []
    for name in importlib.import_module(module).__all__:
        if name.startswith("__"):
            continue
        names.append(f"{module}.{name}")
        value = getattr(importlib.import_module(module), name)
        if inspect.isclass(value):
            names += [
                f"{module}.{name}.{attribute}"
                for attribute, member in vars(value).items()
                if not attribute.startswith("_")
                and (inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod))
                # torch writes a wrapper of an inherited `step` onto a class when it is first used
                and getattr(member, "__qualname__", name).startswith(name)
            ]
    return names


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", path)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_in_the_reference(site: Path, module: str) -> None:
    assert set(public_names(module)) - inventory(site) == set()


def test_what_is_public_includes_methods() -> None:
    assert {"warmgap.Schedule", "warmgap.Schedule.step", "warmgap.Schedule.from_dict"} <= set(public_names("warmgap"))


def test_a_name_without_a_docstring_is_not_in_the_reference(tmp_path: Path) -> None:
    (tmp_path / "decoy.py").write_text('def silent(): ...\n\n\ndef described():\n    """Does it."""\n')
    done = build_page(tmp_path, "::: decoy", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name for name in inventory(tmp_path / "site") if name.startswith("decoy.")} == {"decoy.described"}


@pytest.mark.parametrize("page", ["[gone](gone.md)", "[gone](#gone)", "[gone](/gone.md)", "::: warmgap.Gone"])
def test_a_broken_link_or_an_unknown_name_fails_the_build(tmp_path: Path, page: str) -> None:
    done = build_page(tmp_path, page)
    assert done.returncode != 0
    assert re.search("gone", done.stdout + done.stderr, re.IGNORECASE)


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_links_between_the_files_of_the_repository(page: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in local if not (ROOT / target).exists()] == []
