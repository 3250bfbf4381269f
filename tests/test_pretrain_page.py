"""The chat page as a person uses it: in Chromium, on a phone and a desk, light and dark."""

import json
import queue
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="pip install -r requirements-serve.txt")
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from pt_app.pretrain.chat import Chat
from tests.test_pretrain_server import Running, endless, wait_for
from tests.test_report_browser import CHROMIUM, SCHEMES, light
from tests.tiny_models import make_model, make_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]

# Types, clicks and reads in a frame of a phone's or a desk's width, and sends what it found.
DRIVER = """<!DOCTYPE html><body style="margin:0">
<iframe src="/" width="WIDTH" height="800" style="border:0"></iframe>
<script>
const frame = document.querySelector("iframe"), found = {steps: []};
const part = id => frame.contentDocument.getElementById(id);
const all = what => [...frame.contentDocument.querySelectorAll(what)];
const last = what => (all(what).pop() || {textContent: ""}).textContent;
async function until(name, holds) {
  const began = performance.now();
  while (!holds()) {
    if (performance.now() - began > 30000) throw new Error(`waited for ${name}`);
    await new Promise(go => setTimeout(go, 5));
  }
  found.steps.push(name);
  return performance.now() - began;
}
function type(text) {
  part("text").value = text;
  part("text").dispatchEvent(new Event("input"));
}
function enter() {
  const options = {key: "Enter", bubbles: true, cancelable: true};
  part("text").dispatchEvent(new KeyboardEvent("keydown", options));
}
const idle = () => !part("send").hidden;
function look() {
  const page = frame.contentDocument, wide = [];
  for (const one of page.body.querySelectorAll("*")) {
    const box = one.getBoundingClientRect(), cut = one.scrollWidth > one.clientWidth + 1;
    const clipped = cut && one.clientWidth && one.tagName !== "INPUT";
    if (box.right > WIDTH + 1 || box.left < -1 || clipped)
      wide.push(`${one.tagName} ${box.left}-${box.right}: ${one.textContent.slice(0, 30)}`);
  }
  const form = part("form").getBoundingClientRect(), colours = getComputedStyle(page.body);
  return {wide, below: form.bottom > 801, page: colours.backgroundColor, text: colours.color,
    foreign: frame.contentWindow.performance.getEntriesByType("resource").map(one => one.name)
      .filter(name => !name.startsWith(location.origin))};
}
async function drive() {
  await until("the model's name", () => part("name").textContent === "small");
  found.disabled = part("send").disabled;
  part("temperature").value = "0";
  type("Source: a <b>casa</b> " + "w".repeat(90));
  part("send").click();
  found.first = await until("a first token", () => last(".assistant") !== "");
  await new Promise(go => setTimeout(go, 300));
  part("stop").click();
  await until("the stop", idle);
  found.stopped = last(".assistant");
  found.stopNote = last(".note");
  await new Promise(go => setTimeout(go, 300));
  found.later = last(".assistant");
  part("max_tokens").value = "8";
  part("again").click();
  await until("another answer", () => idle() && last(".note").includes("tokens"));
  found.again = last(".assistant");
  found.note = last(".note");
  found.users = all(".user").map(one => one.textContent);
  type("two");
  enter();
  await until("a second answer", () => all(".assistant").length === 2 && idle());
  found.look = look();
  type("x ".repeat(400));
  enter();
  await until("a refusal", () => last(".wrong").includes("context"));
  found.refused = last(".wrong");
  found.kept = part("text").value.length;
  type("three");
  enter();
  await until("an answer after it", () => all(".assistant").length === 3 && idle());
  found.wrong = all(".wrong").length;
  found.turns = all(".turn").length;
  part("new").click();
  found.empty = !part("empty").hidden && all(".turn").length === 0;
}
frame.onload = () => drive().catch(error => { found.error = String(error); }).then(
  () => fetch("/found", {method: "POST", body: JSON.stringify(found)}));
</script>"""


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return Chat(make_model(tokenizer, max_position_embeddings=512), tokenizer, "small")


@pytest.fixture
def running(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    endless(chat, monkeypatch)
    with Running(chat) as server:
        yield server


def driven(running: Running, width: int, flags: list[str], folder: Path) -> dict[str, Any]:
    """What the driver found."""
    found: queue.Queue[bytes] = queue.Queue()

    async def drive(_: Request) -> Response:
        return HTMLResponse(DRIVER.replace("WIDTH", str(width)))

    async def take(request: Request) -> Response:
        found.put(await request.body())
        return Response()

    running.app.router.routes += [Route("/drive", drive), Route("/found", take, methods=["POST"])]
    assert CHROMIUM is not None
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", *flags]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    words += ["--remote-debugging-port=0", f"http://127.0.0.1:{running.port}/drive"]
    with subprocess.Popen([CHROMIUM, *words], stderr=subprocess.DEVNULL) as browser:
        try:
            result: dict[str, Any] = json.loads(found.get(timeout=120))
        finally:
            browser.terminate()
    return result


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_a_person_can_ask_stop_ask_again_and_begin_again(
    width: int, scheme: str, running: Running, tmp_path: Path
) -> None:
    found = driven(running, width, SCHEMES[scheme], tmp_path)
    assert "error" not in found, found
    assert found["disabled"]
    assert found["users"] == ["Source: a <b>casa</b> " + "w" * 90]
    # Stopped after some tokens of 20 ms, where there was room for hundreds.
    assert found["first"] < 2000
    assert found["later"] == found["stopped"] != ""
    assert found["stopNote"] == "stopped"
    # The same greedy answer, of which a busy machine may have shown fewer than 8 tokens.
    texts = sorted((found[name].rstrip("\ufffd") for name in ("stopped", "again")), key=len)
    assert texts[1].startswith(texts[0])
    assert found["note"].startswith("8 tokens, ")
    assert found["note"].endswith("cut at the maximum of tokens")
    assert "shorten it" in found["refused"]
    assert found["kept"] == 799
    assert found["wrong"] == 0  # what was refused is gone, and is not sent again
    assert found["turns"] == 6
    assert found["empty"]
    look = found["look"]
    assert (look["wide"], look["below"], look["foreign"]) == ([], False, [])
    assert (light(look["page"]) < 100) == (scheme == "dark")
    assert abs(light(look["page"]) - light(look["text"])) > 150
    wait_for(running.idle)
