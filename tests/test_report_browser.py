"""report.html as a person sees it: in Chromium, on a phone and a desk, light and dark."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pt_app.cli import app
from tests.test_agree import rows_of, written

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
SCHEMES = {"light": [], "dark": ["--force-dark-mode", "--enable-features=WebContentsForceDark:0"]}
WIDTHS = {"phone": 360, "tablet": 1000, "desk": 1280}

# Looks for what a person would miss: text wider than its box, and all that the page asked for.
LOOK = """
const frame = document.querySelector("iframe"), page = frame.contentDocument, wide = [];
for (const one of page.body.querySelectorAll("*")) {
  if (one.closest("svg") && one.tagName !== "text") continue;
  const box = one.getBoundingClientRect();
  const own = one.closest("svg, .matrix") || page.documentElement;
  const around = own.getBoundingClientRect();
  const scrolls = own.classList && own.classList.contains("matrix");
  const beyond = box.right > around.right + 1 || box.left < around.left - 1;
  const room = one.tagName === "text" ? 0 : one.clientWidth;
  const cut = room > 0 && one.scrollWidth > room + 1;
  if (!scrolls && !one.closest("thead") && box.width > 0 && (beyond || cut))
    wide.push(`${one.tagName} ${box.left}-${box.right} in ${around.left}-${around.right}: ` +
      one.textContent.trim().slice(0, 40));
}
const colours = getComputedStyle(page.body);
document.title = "looked";
document.querySelector("#found").textContent = JSON.stringify({
  wide: wide, width: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight,
  asked: frame.contentWindow.performance.getEntriesByType("resource").map(one => one.name),
  page: colours.backgroundColor, text: colours.color,
  charts: page.querySelectorAll("svg[role=img][aria-label]").length,
  scripts: page.querySelectorAll("script").length,
});
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    rows = rows_of()
    for row in rows:
        row["domain"] += " <script>alert(2)</script>"  # a name in tables and charts
        row["text"] += " <script>alert(1)</script> $x_1$ " + "w" * 120
    words = ["agree", str(written(folder / "v.csv", rows)), "--label=human", "--verdict=said"]
    words += ["--group=source", "--probabilities=chances", "--candidate=text", "--slice=domain"]
    words += ["--annotators=people", "--system=system", f"--out={folder / 'out'}"]
    assert CliRunner().invoke(app, words).exit_code == 0
    return folder / "out" / "report.html"


def browse(*words: str) -> str:
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=3000"]
    done = subprocess.run([CHROMIUM, *flags, *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def looked(report: Path, width: int, flags: list[str]) -> dict[str, Any]:
    """What a page of `width` pixels shows, from inside of a frame of that width."""
    frame = f'<iframe width="{width}" height="900" style="border:0" srcdoc="%s"></iframe>'
    page = frame % escape(report.read_text(encoding="utf-8"))
    script = f"<script>window.onload = () => {{ {LOOK} }}</script>"
    outer = report.with_name(f"look-{width}.html")
    outer.write_text(f'<!DOCTYPE html><body style="margin:0">{page}<pre id="found"></pre>{script}')
    dom = browse(*flags, "--window-size=1400,1000", "--dump-dom", f"file://{outer}")
    match = re.search(r'<pre id="found">(.+?)</pre>', dom, flags=re.DOTALL)
    assert match, "the page was not looked at: a script failed"
    found: dict[str, Any] = json.loads(unescape(match.group(1)))
    return found


def light(colour: str) -> float:
    """How light a colour is, 0 to 255."""
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 3


def look_over(report: Path, width: str, scheme: str, picture: Path) -> None:
    """Assert what a person would, and take a screenshot."""
    found = looked(report, WIDTHS[width], SCHEMES[scheme])
    assert found["wide"] == []
    assert found["width"] <= WIDTHS[width]
    assert found["asked"] == []
    assert found["scripts"] == 0
    assert found["charts"] >= 4
    assert (light(found["page"]) < 100) == (scheme == "dark")
    assert abs(light(found["page"]) - light(found["text"])) > 150
    size = f"--window-size={max(500, WIDTHS[width])},{min(16000, found['height'])}"
    browse(*SCHEMES[scheme], size, f"--screenshot={picture}", f"file://{report}")
    assert picture.stat().st_size > 20_000


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_clipped_asked_for_or_unreadable(
    report: Path, width: str, scheme: str, tmp_path: Path
) -> None:
    look_over(report, width, scheme, tmp_path / "page.png")


def test_the_page_holds_all_it_needs(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert [link for link in links if not link.startswith("#")] == []
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert report.stat().st_size < 3_000_000
