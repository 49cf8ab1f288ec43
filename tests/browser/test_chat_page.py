"""The chat box and the report as a user meets them: JupyterLab in a real browser, two models that have learned nothing.

Pictures of both go to the folder NEWLLM_SCREENSHOTS, for people to look at. NEWLLM_CHAT_RUN names a run folder whose
models are talked to in the place of those.
"""

import base64
import os
import re
from pathlib import Path

import nbformat
import pytest
from chats import untrained_chat
from jupyter_lab import (
    HEIGHT,
    NEEDS_A_BROWSER,
    SECONDS,
    code_cell,
    dark_theme,
    run_cell,
    running_lab,
    wait_until,
)

pytestmark = NEEDS_A_BROWSER
NOTEBOOK = "chat.ipynb"
CHAT = """#@title 1 · Chat
from newllm_lib.colab.chat_box import show_chat

chat = show_chat({folders!r}, "Hello! How are you?")"""
REPORT = """#@title 2 · If something went wrong
from newllm_lib.colab.problem_report import show_report

report = show_report()"""
ENDLESS = """#@title 3 · Replies that never end by themselves
steps = []

def endless(model, inputs, output):
    output.logits[..., model.generation_config.eos_token_id] = -1e9
    steps.append(model.config.model_type)

hooks = [talk.model.register_forward_hook(endless) for talk in chat.chats.values()]
print("from now on")"""
COUNT = """#@title 4 · How long they were
for hook in hooks:
    hook.remove()
print(f"{len(steps)} steps of two models")"""
LONG_REPLY = 400  # tokens, the right end of the slider


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    root = tmp_path_factory.mktemp("lab")
    run = os.environ.get("NEWLLM_CHAT_RUN")
    if run is None:
        folders = [untrained_chat(root / "run" / model, model) for model in ("newllm", "tiny-gpt2")]
    else:
        folders = [Path(run) / model for model in ("newllm", "tiny-gpt2")]
    cells = [CHAT.format(folders=[str(folder) for folder in folders]), REPORT, ENDLESS, COUNT]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, root / NOTEBOOK)
    with running_lab(root, HF_HUB_OFFLINE="1") as address:
        yield address


def take_pictures(page, folder: Path, theme: str) -> None:
    for width in (1400, 600):
        page.set_viewport_size({"width": width, "height": 2600})
        page.wait_for_timeout(1000)
        for title, name in (("1", "chat"), ("2", "report")):
            code_cell(page, title).screenshot(path=str(folder / f"{theme}-{width}-{name}.png"))
    page.set_viewport_size({"width": 1400, "height": HEIGHT})


def button(cell, name: str):
    return cell.get_by_role("button", name=name, exact=True)


def bytes_held(cell) -> dict[str, int]:
    """Model -> bytes, as the sentence under the conversation says."""
    words = cell.locator("text=/remembers this conversation in/").last.inner_text()
    found = re.search(r"New-LLM remembers this conversation in ([\d,]+) bytes; TinyGPT2 in ([\d,]+) bytes and", words)
    newllm, tiny_gpt2 = (int(count.replace(",", "")) for count in found.groups())
    return {"newllm": newllm, "tiny-gpt2": tiny_gpt2}


def transcript(cell) -> str:
    """What the download link holds: it is renewed when a reply is complete."""
    link = cell.locator("a[download='newllm-conversation.txt']").get_attribute("href")
    return base64.b64decode(link.split("base64,")[1]).decode()


def say(cell, text: str) -> None:
    cell.get_by_placeholder("Say something").fill(text)
    cell.get_by_placeholder("Say something").press("Enter")
    wait_until(lambda: f"You: {text}" in transcript(cell))
    wait_until(lambda: button(cell, "Send").is_enabled() and button(cell, "Stop").is_disabled())


def test_the_cell_shows_an_exchange_side_by_side(page):
    run_cell(page, "1")
    cell = code_cell(page, "1")
    cell.locator("text=can be talked to").wait_for(timeout=90 * SECONDS)
    assert page.locator("text=/Error displaying widget|javascript error/").count() == 0
    assert cell.locator("text=Hello! How are you?").count() >= 2
    assert cell.locator("text=no assistant").count() >= 1
    assert cell.locator("img[alt*='context vector']").count() == 1
    held = bytes_held(cell)
    assert 0 < held["newllm"] < held["tiny-gpt2"]


def test_another_reply_grows_one_memory_and_not_the_other(page):
    cell = code_cell(page, "1")
    before = bytes_held(cell)
    say(cell, "What did you do today?")
    after = wait_until(lambda: (held := bytes_held(cell)) != before and held)
    assert after["newllm"] == before["newllm"] and after["tiny-gpt2"] > before["tiny-gpt2"]
    assert cell.locator("text=What did you do today?").count() == 2


def test_sliders_and_stop(page):
    cell = code_cell(page, "1")
    cell.locator("text=How replies are drawn").click()
    length = cell.locator(".widget-vbox", has=page.locator("b:text-is('length')")).last.locator(".noUi-handle")
    length.focus()
    page.keyboard.press("End")
    readout = cell.locator(".widget-vbox", has=page.locator("b:text-is('length')")).last.locator(".widget-readout")
    wait_until(lambda: readout.inner_text() == str(LONG_REPLY))
    temperature = cell.locator(".widget-vbox", has=page.locator("b:text-is('temperature')")).last
    temperature.locator(".noUi-handle").focus()
    page.keyboard.press("Home")
    wait_until(lambda: temperature.locator(".widget-readout").inner_text() == "0.00")
    run_cell(page, "3")
    code_cell(page, "3").locator("pre", has_text="from now on").last.wait_for()

    assert button(cell, "Stop").is_disabled()
    cell.get_by_placeholder("Say something").fill("Tell me a long story.")
    button(cell, "Send").click()
    cell.locator("text=▌").first.wait_for()
    assert button(cell, "Send").is_disabled()
    button(cell, "Stop").click()
    wait_until(lambda: button(cell, "Send").is_enabled(), 10)
    assert cell.locator("text=▌").count() == 0
    run_cell(page, "4")
    counted = code_cell(page, "4").locator("pre", has_text=re.compile(r"^\d+ steps of two models")).last.inner_text()
    assert 0 < int(counted.split()[0]) < 2 * LONG_REPLY, "a step for each token, had nobody stopped them"


def test_a_memory_is_saved_and_gone_on_from(page):
    cell = code_cell(page, "1")
    cell.locator("text=Memory: save it, go on from it").click()
    button(cell, "Save memory").click()
    cell.locator("text=/memory is saved as conversation/").wait_for()
    button(cell, "Reset").click()
    cell.locator("text=Nothing has been said yet").wait_for()
    button(cell, "Go on from it").click()
    cell.locator("text=/its words were not saved/").wait_for()
    say(cell, "Where were we?")
    assert cell.locator("text=Where were we?").count() == 2


def test_the_conversation_can_be_downloaded(page):
    cell = code_cell(page, "1")
    with page.expect_download() as download:
        cell.locator("a[download='newllm-conversation.txt']").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert "== newllm" in text and "You: Where were we?" in text and "not to be relied on" in text


def test_the_report_is_shown_and_then_downloaded(page, screenshots):
    run_cell(page, "2")
    cell = code_cell(page, "2")
    cell.locator("text=It stays with you").wait_for()
    button(cell, "Make a report").click()
    cell.locator("pre", has_text="== Newest error").wait_for(timeout=60 * SECONDS)
    with page.expect_download() as download:
        cell.locator("a[download='newllm-report.txt']").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert text.strip() == cell.locator("pre", has_text="== Versions").last.inner_text().strip()
    assert "ipywidgets" in text and str(Path.home()) not in text
    take_pictures(page, screenshots, "light")


@pytest.mark.parametrize("width", [1400, 600])
def test_nothing_scrolls_sideways(page, width):
    page.set_viewport_size({"width": width, "height": HEIGHT})
    if width == 600:
        code_cell(page, "1").locator("text=How replies are drawn").click()  # the sliders, in place of the memory
    page.wait_for_timeout(1000)
    for title in ("1", "2"):
        output = code_cell(page, title).locator(".jp-OutputArea-output").first
        assert output.evaluate("node => node.scrollWidth <= node.clientWidth + 1"), title
    page.set_viewport_size({"width": 1400, "height": HEIGHT})


def test_dark_pages(page, screenshots):
    dark_theme(page)
    take_pictures(page, screenshots, "dark")
