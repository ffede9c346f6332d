"""What mkdocs can't do itself: formulae as MathML, notebooks as pages, and the schedule's own code for the browser.

Nothing is fetched: latex2mathml and Brython are installed by `make setup`, and their output is part of the site.
"""

from __future__ import annotations

import ast
import html
import json
import re
import textwrap
from importlib import resources
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/warmgap/warmgap"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
PAGE_NEEDS = {
    "browser",
    "browser.svg",
    "browser.timer",
    "json",
    "math",
    "traceback",
}  # what the page's own script imports


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each notebook, and the changelog and how to contribute."""
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        name = f"notebooks/{path.stem}.md"
        if files.get_file_from_path(f"notebooks/{path.name}"):  # so not in the tests' sites of one page
            files.append(File.generated(config, name, content=notebook_page(path)))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md") if len(files.documentation_pages()) > 1 else ():
        files.append(File.generated(config, name.lower(), content=root_page(ROOT / name)))
    return files


def on_page_content(html: str, **_: Any) -> str:  # mkdocs gives the page by this name
    """Turn the formulae of a page into MathML, which browsers draw without a script."""
    return FORMULA.sub(formula, html)


def on_post_build(config: Any) -> None:
    """Put the interpreter, and the modules that the page of the replay needs, into the site."""
    target = Path(config["site_dir"]) / "assets" / "python"
    target.mkdir(parents=True, exist_ok=True)
    brython = resources.files("brython") / "data"
    (target / "brython.js").write_bytes((brython / "brython.js").read_bytes())
    modules = core()
    needed = {name for module in modules.values() for name in module[2]} | PAGE_NEEDS
    modules |= closure(standard_library((brython / "brython_stdlib.js").read_text("utf-8")), needed)
    text = json.dumps(modules, separators=(",", ":"))
    (target / "modules.js").write_text(f"__BRYTHON__.use_VFS=true;__BRYTHON__.update_VFS({text})", "utf-8")


def formula(match: re.Match[str]) -> str:
    """Return a formula's MathML in the element that it was in."""
    kind = match[1]
    mathml = convert(html.unescape(match[2]), display="inline" if kind == "span" else "block")
    return f'<{kind} class="formula">{mathml}</{kind}>'


def core() -> dict[str, list[Any]]:
    """Return the modules of the package that need no framework, as Brython takes them: kind, text, imports, package."""
    source = ROOT / "src"
    modules = {}
    for path in (*sorted((source / "warmgap").glob("*.py")), *sorted((source / "warmgap" / "rules").glob("*.py"))):
        if path.stem in ("optax", "lightning", "transformers"):
            continue
        parts = path.relative_to(source).with_suffix("").parts
        package = parts[-1] == "__init__"
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):  # docstrings are two thirds of it
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body[0] = ast.Pass()
                node.body = node.body[1:] or node.body
        found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        found |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        name = ".".join(parts[:-1] if package else parts)
        modules[name] = [".py", ast.unparse(tree), sorted(found), *([1] if package else [])]
    return modules


def standard_library(text: str) -> dict[str, list[Any]]:
    """Return the modules of Brython's own file of the standard library."""
    modules: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
    del modules["$timestamp"]
    return modules


def closure(modules: dict[str, list[Any]], names: set[str]) -> dict[str, list[Any]]:
    """Return those of the modules that the named ones import, themselves included, with the packages they are in."""
    found: dict[str, list[Any]] = {}
    todo = set(names)
    while todo:
        name = todo.pop()
        if name in modules and name not in found:
            found[name] = modules[name]
            todo |= {one for item in modules[name][2:3] for one in item}
        if "." in name:
            todo.add(name.rpartition(".")[0])
        todo -= found.keys()
    return found


def root_page(path: Path) -> str:
    """Return a page of the repository's root, with its links as the site needs them."""
    text = re.sub(r"\]\(docs/", "](", path.read_text("utf-8"))
    return re.sub(r"\]\((?!\w+:|#)([A-Z]+\.md|LICENSE)", rf"]({REPOSITORY}/blob/main/\1", text)


def folded(words: str) -> str:
    """Return what a cell has printed with its long sentences in several lines; tables are left as they are."""
    return "\n".join(
        line if "  " in line else textwrap.fill(line, 88, subsequent_indent="    ") for line in words.split("\n")
    )


def notebook_page(path: Path) -> str:
    """Return a notebook, with the outputs that are stored in it, as Markdown."""
    parts = [f"[Download this notebook]({path.name}){{ .md-button download }}"]
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(
                    f'<img alt="The picture that this cell draws" src="data:image/png;base64,{data["image/png"]}">'
                )
            elif words := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{folded(words.rstrip())}\n```")
    heading = next(part for part in parts if part.startswith("# "))
    parts.remove(heading)
    first, _, rest = heading.partition("\n")
    return "\n\n".join([first, parts.pop(0), rest.strip(), *parts])
