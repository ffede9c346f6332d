"""Every page in a real browser, narrow and wide, light and dark: nothing overflows, nothing is fetched from outside.

`make pages` runs it. It is skipped where `CHROMIUM` does not say that there is one; where it does, a missing one fails.
`WARMGAP_PICTURES` names a folder for pictures of what was seen.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from tests.docs.browser import Tab, chromium, served
from tests.docs.test_site import ROOT, build

from warmgap.replay import replay

pytestmark = [
    pytest.mark.skipif("CHROMIUM" not in os.environ, reason="needs Chromium: make pages"),
    pytest.mark.timeout(3600),  # a busy machine takes a minute a page
]

WIDTHS = (420, 1400)

# What sticks out of the window to the right and is not inside of something that scrolls by itself.
OVERFLOW = """(() => {
  const width = document.documentElement.clientWidth, out = [], all = document.scrollingElement.scrollWidth;
  if (all > width) out.push(`the page is ${all} wide`);
  for (const element of document.querySelectorAll('.md-content *')) {
    const box = element.getBoundingClientRect();
    if (box.width === 0 || box.right <= width + 1) continue;
    let parent = element.parentElement, scrolls = false;
    for (; parent && !scrolls; parent = parent.parentElement)
      scrolls = ['auto', 'scroll'].includes(getComputedStyle(parent).overflowX) && parent !== document.body;
    const text = (element.textContent || '').slice(0, 40);
    if (!scrolls) out.push(`${element.tagName} ${text} ends at ${Math.round(box.right)}`);
  }
  return out.slice(0, 5);
})()"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages")
    done = build(ROOT / "mkdocs.yml", path)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


async def looked_at(tab: Tab, url: str, name: str) -> list[str]:
    wrong = []
    pictures = os.environ.get("WARMGAP_PICTURES")
    await tab.open(url)
    for width in WIDTHS:
        for dark in (False, True):
            await tab.resize(width, 900, dark)
            scheme = "slate" if dark else "default"
            await tab.evaluate(f"document.body.setAttribute('data-md-color-scheme', '{scheme}')")
            wrong += [f"{name} at {width}: {one}" for one in await tab.evaluate(OVERFLOW)]
            if pictures and dark == (width == WIDTHS[0]):
                folder = Path(pictures)
                folder.mkdir(parents=True, exist_ok=True)
                await tab.photograph(folder / f"{name.strip('/').replace('/', '-') or 'home'}-{width}.png")
    wrong += [f"{name}: {error}" for error in tab.errors]
    tab.errors.clear()
    return wrong


def test_no_page_overflows_or_asks_for_anything_outside(site: Path) -> None:
    async def everything() -> list[str]:
        wrong = []
        with served(site) as root:
            async with chromium() as tab:
                for page in sorted(site.rglob("index.html")):
                    name = page.parent.relative_to(site).as_posix().removeprefix(".")
                    wrong += await looked_at(tab, root + (f"{name}/" if name else ""), name)
        return wrong

    assert asyncio.run(everything()) == []


def test_a_page_that_is_too_wide_is_found(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<main class="md-content"><div style="width: 3000px">wide</div></main>')

    async def wrong() -> list[str]:
        with served(tmp_path) as root:
            async with chromium() as tab:
                await tab.open(root)
                found: list[str] = await tab.evaluate(OVERFLOW)
                return found

    assert len(asyncio.run(wrong())) == 2


def test_the_replay_in_the_browser_is_that_of_the_package(site: Path) -> None:
    """The factors on the page, of its example and of a dropped file, are those of `warmgap.replay`, to rounding."""
    losses = [6.0 * 0.99**step + (0.8 if step == 30 else 0.0) for step in range(90)]

    async def shown() -> dict[str, list[float]]:
        with served(site) as root:
            async with chromium() as tab:
                await tab.open(f"{root}replay/")
                done = "document.getElementById('replay-out').dataset.state === 'done'"
                await tab.until(f"{done} && window.warmgap", 120)
                rows = "step,train/loss\\n" + "\\n".join(f"{step + 1},{loss!r}" for step, loss in enumerate(losses))
                await tab.evaluate(
                    "window.warmgap = null; document.getElementById('replay-power').checked = true;"
                    f"const files = new DataTransfer(); files.items.add(new File([\"{rows}\"], 'run.csv'));"
                    "document.getElementById('replay-drop').dispatchEvent("
                    "new DragEvent('drop', {dataTransfer: files, bubbles: true, cancelable: true}))"
                )
                await tab.until("window.warmgap !== null", 120)
                found: dict[str, list[float]] = json.loads(await tab.evaluate("JSON.stringify(window.warmgap)"))
                return found

    found = asyncio.run(shown())
    for name, run in replay(losses, rules=["auto", "loss-ratio", "power", "linear"]).items():
        assert found[name] == pytest.approx(run.factors, rel=1e-9)


def test_the_search_finds_gradient_accumulation(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())
    hits = [
        entry["location"]
        for entry in index["docs"]
        if "gradient accumulation" in (entry["title"] + entry["text"]).lower()
    ]
    assert any(location.startswith("loss/") for location in hits)
    assert any(location.startswith("faq/#gradient-accumulation") for location in hits)
