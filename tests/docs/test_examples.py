"""Every example in the README and in the pages runs: Python blocks as they stand, commands as far as they are quick."""

import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

# Imported here though unused: the hosts' first imports can take minutes on a loaded machine, and are not to run on the
# clock of the first page that has them.
import warmgap.lightning
import warmgap.optax
import warmgap.transformers  # noqa: F401
from warmgap.lab import cli
from warmgap.lab.errors import UserError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = ("bash", "sh", "shell", "console")


@dataclass(frozen=True)
class Block:
    language: str
    line: int
    text: str


def blocks(text: str) -> list[Block]:
    """The fenced code blocks of a page, with the line at which each one's text begins."""
    found = re.finditer(r"^( *)```[ ]*(\w*)[^\n]*\n(.*?)^\1```[ ]*$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(
            match[2], text.count("\n", 0, match.start(3)) + 1, re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        )
        for match in found
    ]


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a shell block; in a console block lines without a prompt are output."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


class TinyLanguageModel(nn.Module):
    """What the examples call `model`: tokens in, mean loss out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.hidden = nn.Linear(8, 8)
        self.norm = nn.RMSNorm(8)
        self.head = nn.Linear(8, 16)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.norm(self.hidden(self.embedding(tokens))))
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def start() -> dict[str, Any]:
    """The names an example may use without defining them."""
    torch.manual_seed(0)
    return {"__name__": "__main__", "model": TinyLanguageModel(), "loader": list(torch.randint(0, 16, (8, 4, 6)))}


def with_snippets(text: str) -> str:
    """The page with the files of `examples/` in it that it includes, as mkdocs puts them there."""
    return re.sub(
        r'^--8<-- "(examples/\w+\.py)"$', lambda match: (ROOT / match[1]).read_text(), text, flags=re.MULTILINE
    )


def run_python(page: str, text: str) -> dict[str, Any]:
    """Runs a page's Python blocks one after the other; an error's traceback names the page and its line."""
    namespace = start()
    for block in blocks(text):
        if block.language in ("python", "py"):
            exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), namespace)  # noqa: S102
    return namespace


def check_command(words: list[str]) -> None:
    """Runs a command that is quick; of the others sees that what they name is there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    program, *arguments = words
    if program == "warmgap":
        if {"--help", "--version"} & set(arguments):
            with pytest.raises(SystemExit, match=r"^0$"):
                cli.main(arguments)
        else:
            cli.parse(arguments)
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets), f"{' '.join(words)}: no such target in the Makefile"
    elif program == "pip":
        asked = re.findall(r"(?:warmgap|\.)\[([\w,]+)\]", " ".join(arguments))
        assert {extra for names in asked for extra in names.split(",")} <= set(extras), (
            f"{' '.join(words)}: no such extra"
        )
    else:
        assert program in ("cd", "git", "python", "torchrun"), f"{program}: no example may use what is not checked here"


def test_the_source_distribution_holds_what_the_readme_and_its_pages_name() -> None:
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    pages = "".join((ROOT / page).read_text() for page in ("README.md", "CONTRIBUTING.md"))
    named = {link.split("/")[0] for link in re.findall(r"\]\((?!\w+:)([^)#]+)", pages)}
    assert named | {"CONTRIBUTING.md", "Makefile", "constraints.txt"} <= set(included["include"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_python(str(page.relative_to(ROOT)), with_snippets(page.read_text()))


def test_every_example_is_in_a_page_and_so_is_run() -> None:
    included = re.findall(r'^--8<-- "examples/(.*)"$', "".join(page.read_text() for page in PAGES), re.MULTILINE)
    examples = sorted(path.name for path in (ROOT / "examples").iterdir() if path.suffix == ".py")
    assert sorted(included) == examples
    assert len(examples) >= 5


def test_an_included_file_is_run() -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        with_snippets('```python\n--8<-- "examples/gone.py"\n```')
    (block,) = blocks(with_snippets('```python\n--8<-- "examples/plain_pytorch.py"\n```'))
    assert block.text.rstrip() == (ROOT / "examples" / "plain_pytorch.py").read_text().rstrip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_are_right(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(page.read_text()):
        if block.language in SHELLS:
            for words in commands(block):
                check_command(words)


SAMPLE = """# A page

```python
x = 1
```

- A list:

    ```python
    y = x + 1
    if y:
        y += 1
    ```

```console
$ warmgap --version
warmgap 0.1.0
$ pip install \\
    'warmgap[lab]'
```

```bash
warmgap train --never-heard-of  # a comment
```

```text
not python
```
"""


def test_blocks_are_found_and_share_their_names() -> None:
    assert [(block.language, block.line) for block in blocks(SAMPLE)] == [
        ("python", 4),
        ("python", 10),
        ("console", 16),
        ("bash", 23),
        ("text", 27),
    ]
    assert run_python("sample", SAMPLE)["y"] == 3
    assert commands(blocks(SAMPLE)[2]) == [["warmgap", "--version"], ["pip", "install", "warmgap[lab]"]]
    assert commands(blocks(SAMPLE)[3]) == [["warmgap", "train", "--never-heard-of"]]


def test_a_block_that_fails_names_its_page_and_line() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        run_python("page.md", "# Title\n\n```python\nx = 0\n1 / x\n```\n")
    assert (Path(error.traceback[-1].path).name, error.traceback[-1].lineno + 1) == ("page.md", 5)


@pytest.mark.parametrize(
    "command", ["warmgap train --never-heard-of", "warmgap bake", "make cake", "pip install 'warmgap[cake]'", "curl x"]
)
def test_a_command_that_is_wrong_is_found(command: str) -> None:
    with pytest.raises((UserError, AssertionError)):
        check_command(shlex.split(command))
