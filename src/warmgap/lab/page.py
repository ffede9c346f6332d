"""Pages of HTML that hold everything they show, and the pictures in them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5b6670; --paper: #ffffff; --line: #d9dee3; --mark: #fdf1ea; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa5af; --paper: #14181c; --line: #343c44; --mark: #33251c; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p.note, figcaption, footer { color: var(--soft); font-size: .9rem; }
figure { margin: 1.2rem 0; }
figure img { display: block; width: 100%; max-width: 50rem; height: auto; background: #fff; border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .35rem .7rem .35rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
td:last-child { white-space: normal; }
th { color: var(--soft); font-weight: 600; }
tr.adaptive td { background: var(--mark); }
.win, .loss, .tie { font-weight: 700; }
pre { overflow-x: auto; padding: .7rem .9rem; border: 1px solid var(--line); border-radius: 6px; font-size: .82rem; }
@media print {
  body { max-width: none; font-size: 11pt; padding: 0; }
  h2 { break-after: avoid; }
  figure, table { break-inside: avoid; }
  pre { white-space: pre-wrap; }
}
"""


def html_page(title: str, body: Sequence[str]) -> str:
    """A whole page in the house's style, of pieces of HTML."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_PAGE_STYLE}</style>"
    )
    text = "\n".join(body)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{text}\n</body>\n</html>\n'


def html_figure(png: bytes, alternative: str, caption: str) -> str:
    """A picture with its caption, the picture inside the page."""
    data = base64.b64encode(png).decode("ascii")
    image = f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def as_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    found = io.BytesIO()
    figure.savefig(found, format="png", metadata={"Software": None})
    return found.getvalue()
