"""Run the notebooks of the pages, cell by cell, and store what they print and draw: `make notebooks`."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def run(path: Path) -> dict[str, Any]:
    """Run a notebook's cells with shared names; the notebook with their outputs."""
    notebook: dict[str, Any] = json.loads(path.read_text("utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        count += 1
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = evaluate("".join(cell["source"]), f"{path.name}, cell {number + 1}", names)
        cell["execution_count"] = count
        cell["outputs"] = []
        if printed.getvalue():
            lines = printed.getvalue().splitlines(keepends=True)
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": lines})
        if value is not None:
            cell["outputs"].append(
                {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": shown(value)}
            )
    return notebook


def evaluate(source: str, name: str, names: dict[str, Any]) -> Any:
    """Execute a cell; the value of its last line, if that is an expression."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)  # noqa: S102
    return None if last is None else eval(compile(ast.Expression(last.value), name, "eval"), names)  # noqa: S307


def shown(value: Any) -> dict[str, Any]:
    """Return a value as Jupyter stores it: a figure as a picture, anything else as its text."""
    if hasattr(value, "savefig"):
        png = io.BytesIO()
        value.savefig(png, format="png", dpi=80, metadata={"Software": None})
        return {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": "<Figure>"}
    return {"text/plain": repr(value).splitlines(keepends=True)}


def main() -> None:
    """Run all of them, or those named."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in paths:
        path.write_text(json.dumps(run(path), indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
