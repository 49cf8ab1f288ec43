"""The notebooks of both languages as a reader meets them: every text is set, and they run to their end. All of them run
only where NEWLLM_SCREENSHOTS names a folder for their pictures, to be looked at, else the first one in Japanese.

A machine without a Japanese font shows boxes on the page, and Latin words in the figures.
"""

import json
import os
import re
import shutil

import pytest
from jupyter_lab import (
    HEIGHT,
    NEEDS_A_BROWSER,
    ROOT,
    code_cell,
    menu,
    opened_notebook,
    running_lab,
    wait_until,
)
from test_notebook_01 import set_small_text
from tiny_gemma import tiny_gemma_folder

NOTEBOOK = "01_pretrain_wikitext.ipynb"
EDITIONS = {"ja": ROOT / "notebooks" / "ja", "en": ROOT / "notebooks"}
NAMES_OF_NOTEBOOKS = sorted(path.name for path in EDITIONS["en"].glob("*.ipynb"))
# What stays as it is: names, settings' own values, units, files, and what was read and written.
NAMES = r"newllm|tiny-gpt2|New-LLM|TinyGPT2|\w*\.\w+|/\S+|[A-Z0-9_]{2,}|[\w-]*\d[\w-]*|bits per byte|nats?|Python"
# A failed formula, and a mark of Markdown that was not understood.
LEFT_OVER = ".jp-RenderedMarkdown mjx-merror, .jp-RenderedMarkdown .MathJax_Error"

pytestmark = NEEDS_A_BROWSER


@pytest.fixture(scope="module", params=EDITIONS)
def language(request):
    return request.param


@pytest.fixture(scope="module")
def lab(tmp_path_factory, language):
    root = tmp_path_factory.mktemp("lab")
    for path in EDITIONS[language].glob("*.ipynb"):
        shutil.copy(path, root)
    set_small_text(root)
    adapters = root / "runs" / "05_qlora_lwf"
    adapters.mkdir()
    base = {"model": str(tiny_gemma_folder(root / "tiny-gemma"))}
    (adapters / "settings-panel.json").write_text(json.dumps({"preset": "smoke", "values": base}))
    with running_lab(root, NEWLLM_PRESET="smoke") as address:
        yield address


@pytest.mark.parametrize("name", NAMES_OF_NOTEBOOKS)
def test_every_text_is_set(lab, screenshots, language, name):
    with opened_notebook(lab, name, screenshots) as page:
        page.set_viewport_size({"width": 1200, "height": 9000})
        page.wait_for_selector("mjx-container, .MathJax, .jp-RenderedMarkdown")
        page.wait_for_timeout(2000)
        page.locator(".jp-Notebook").first.screenshot(path=str(screenshots / f"{language}-{name[:2]}.png"))
        assert page.locator(LEFT_OVER).count() == 0
        texts = page.locator(".jp-RenderedMarkdown").evaluate_all(
            "cells => cells.map(cell => { const copy = cell.cloneNode(true);"
            " copy.querySelectorAll('code, pre, mjx-container, script').forEach(node => node.remove());"
            " return copy.textContent; })"
        )
        assert len(texts) > 10 and not [text for text in texts if "*" in text or "$" in text]
        cut = "nodes => nodes.filter(node => node.scrollWidth > node.clientWidth + 1).map(node => node.innerText)"
        assert page.locator(".jp-RenderedMarkdown").evaluate_all(cut) == []


@pytest.mark.parametrize("name", NAMES_OF_NOTEBOOKS)
def test_it_runs_from_top_to_bottom(lab, screenshots, language, name):
    if (language, name) != ("ja", NOTEBOOK) and "NEWLLM_SCREENSHOTS" not in os.environ:
        pytest.skip("NEWLLM_SCREENSHOTS names no folder for its pictures")
    with opened_notebook(lab, name, screenshots) as page:
        menu(page, "Run", "Run All Cells")
        code = page.locator(".jp-CodeCell")
        wait_until(lambda: re.fullmatch(r"\[\d+\]:", code.last.locator(".jp-InputPrompt").inner_text()), 600)
        assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
        for width in (1400, 600):
            page.set_viewport_size({"width": width, "height": 2600})
            page.wait_for_timeout(1500)
            for number in range(1, code.count()):
                picture = f"{language}-{name[:2]}-{width}-cell{number + 1:02}.png"
                code.nth(number).screenshot(path=str(screenshots / picture))
        page.set_viewport_size({"width": 1400, "height": HEIGHT})
        if (language, name) == ("ja", NOTEBOOK):
            assert_japanese(page, screenshots)


def assert_japanese(page, screenshots) -> None:
    outputs = {n: code_cell(page, f"{n} ·").locator(".jp-OutputArea").last.inner_text() for n in range(1, 16)}
    frame = code_cell(page, "11 ·").frame_locator("iframe")
    assert "準備ができました" in frame.locator("#status").inner_text()
    assert all("✓" in output for output in outputs.values()), outputs
    (screenshots / "japanese-outputs.json").write_text(json.dumps(outputs, ensure_ascii=False, indent=1))
    said = {number: outputs[number] for number in (2, 3, 4, 6, 11, 12, 13, 14, 15)}  # the others show what models wrote
    sentences = re.compile(r"[A-Za-z]{2,} [a-z]{2,} [a-z]{2,}")
    assert {n: found for n, output in said.items() if (found := sentences.findall(re.sub(NAMES, "", output)))} == {}
