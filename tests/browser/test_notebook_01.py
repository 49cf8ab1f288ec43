"""Notebook 01 as a user meets it: JupyterLab in a real browser, Run all, sliders by mouse and keyboard, stop, go on.

Pictures of the page go to the folder NEWLLM_SCREENSHOTS, for people to look at.
"""

import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
from jupyter_lab import (
    HEIGHT,
    NEEDS_A_BROWSER,
    ROOT,
    SECONDS,
    code_cell,
    dark_theme,
    menu,
    run_cell,
    running_lab,
    wait_until,
)

NOTEBOOK = "01_pretrain_wikitext.ipynb"

pytestmark = NEEDS_A_BROWSER


def real_text() -> str:
    """Some 60 kB of English: the documentation of a few standard modules."""
    import argparse
    import decimal
    import logging
    import statistics
    import tarfile
    import zipfile

    pieces = []
    for module in (argparse, decimal, logging, statistics, zipfile, tarfile):
        members = [module, *(member for _, member in inspect.getmembers(module, inspect.isclass))]
        members += [method for cls in members[1:] for _, method in inspect.getmembers(cls, inspect.isfunction)]
        pieces += [inspect.getdoc(member) or "" for member in members]
    return "\n\n".join(dict.fromkeys(pieces))


def set_small_text(root: Path) -> None:
    """Leave the panel as an earlier session did: a small text of the user's own, and small batches."""
    text, stage = root / "text.txt", root / "runs" / "01_pretrain"
    text.write_text(real_text(), encoding="utf-8")
    stage.mkdir(parents=True)
    values = {"data_source": "file", "data": str(text), "per_device_train_batch_size": 8}
    (stage / "settings-panel.json").write_text(json.dumps({"preset": "smoke", "values": values}))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that serves the notebook."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, root)
    set_small_text(root)
    with running_lab(root, NEWLLM_PRESET="smoke") as address:
        yield address


def knob(page, label: str):
    """The knob of the slider under `label`."""
    control = page.locator(".widget-vbox", has=page.locator(f"b:text-is('{label}')")).last
    return control.locator(".noUi-handle")


def live_line(page) -> str:
    return (
        code_cell(page, "4").locator(".widget-html", has_text=re.compile("run folder|学習のフォルダ")).last.inner_text()
    )


def take_pictures(page, folder: Path, theme: str) -> None:
    """The cells with output, at the width of a desktop and of a narrow pane."""
    for width in (1400, 600):
        page.set_viewport_size({"width": width, "height": 2600})  # the tallest cell, whole
        page.wait_for_timeout(1500)
        for title in ("2 ·", "4 ·", "5 ·", "6 ·", "7 ·", "8 ·", "9 ·", "10 ·", "13 ·"):
            code_cell(page, title).screenshot(path=str(folder / f"{theme}-{width}-cell{title.split()[0]}.png"))
    page.set_viewport_size({"width": 1400, "height": HEIGHT})


def test_run_all(page, screenshots):
    menu(page, "Run", "Run All Cells")
    page.wait_for_selector("text=It stays with you", timeout=120 * SECONDS)
    for number in range(1, 14):
        assert "✓" in code_cell(page, f"{number} ·").locator(".jp-OutputArea").last.inner_text()
    assert page.locator("text=/Error displaying widget|javascript error/").count() == 0
    assert code_cell(page, "6").locator("img").count() == 1
    assert "finished" in code_cell(page, "6").inner_text()
    take_pictures(page, screenshots, "light")


@pytest.mark.parametrize("width", [1400, 600])
def test_the_panel_fits_the_page(page, width):
    page.set_viewport_size({"width": width, "height": HEIGHT})
    page.wait_for_timeout(1000)
    output = code_cell(page, "4").locator(".jp-OutputArea-output").first
    assert output.evaluate("node => node.scrollWidth <= node.clientWidth + 1"), "the panel scrolls sideways"
    rails = output.locator(".noUi-target:visible").evaluate_all("nodes => nodes.map(node => node.clientWidth)")
    assert len(rails) >= 10 and min(rails) >= 120
    clipped = "nodes => nodes.filter(node => node.scrollWidth > node.clientWidth + 1).map(node => node.innerText)"
    assert output.locator(".widget-readout:visible, .widget-html-content:visible").evaluate_all(clipped) == []
    tops = output.locator(".widget-html-content:visible", has_text=re.compile("^(Data|Model|Training)$"))
    rows = {round(box["y"]) for box in (tops.nth(i).bounding_box() for i in range(3))}
    assert len(rows) == (1 if width == 1400 else 3), "three columns, or one below the other"
    page.set_viewport_size({"width": 1400, "height": HEIGHT})


def test_sliders_move_by_mouse_and_keyboard(page):
    before = live_line(page)
    assert "20 updates" in before and "is finished" in before
    knob(page, "dropout").scroll_into_view_if_needed()
    box = knob(page, "dropout").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 80, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    dragged = wait_until(lambda: (line := live_line(page)) != before and line)
    assert dragged.rstrip().endswith(": new"), "other settings have a folder of their own"

    knob(page, "updates").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    line = wait_until(lambda: "100 updates" in (line := live_line(page)) and line)
    assert "0.05 M tokens" in line and "minute" in line


def test_the_panel_speaks_japanese_too(page, screenshots):
    cell, before = code_cell(page, "4"), live_line(page)
    cell.get_by_role("button", name="日本語").click()
    cell.locator("text=プリセットに戻す").wait_for()
    cell.screenshot(path=str(screenshots / "light-1400-japanese.png"))
    assert "学習率" in cell.inner_text() and "回更新" in cell.inner_text()
    cell.get_by_role("button", name="English").click()
    assert wait_until(lambda: live_line(page) == before)


def test_stop_and_go_on(page, screenshots):
    cell = code_cell(page, "6")
    run_cell(page, "6")
    wait_until(lambda: re.search(r"update ([2-9]\d) of 100", cell.inner_text()), 60)
    page.locator('.jp-NotebookPanel-toolbar [data-jp-item-name="interrupt"]').click()  # the ■ button
    cell.locator("text=Run this cell again to go on from there").wait_for()
    stopped = int(re.search(r"Stopped at update (\d+) of 100", cell.inner_text())[1])
    assert "Traceback" not in cell.inner_text()
    cell.screenshot(path=str(screenshots / "light-1400-stopped.png"))

    run_cell(page, "6")
    updates = []

    def is_done():
        text = cell.inner_text()
        updates.extend(int(number) for number in re.findall(r"newllm[^_]*?update (\d+) of 100", text))
        return "everything is in" in text

    wait_until(is_done, 90)
    assert min(updates) >= stopped, "it went on where it stopped"
    assert cell.locator("img").count() == 1 and cell.inner_text().count("finished") >= 2


def test_dark_theme(page, screenshots):
    dark_theme(page)
    run_cell(page, "7")
    code_cell(page, "7").locator("text=/another seed|No clear winner/").wait_for()
    take_pictures(page, screenshots, "dark")
