"""Notebooks 02 to 07 as a user meets them: JupyterLab in a real browser, Run all, up to their first updates.

Pictures of the settings and of the training go to the folder NEWLLM_SCREENSHOTS, for people to look at.
"""

import importlib.util
import re
import shutil

import nbformat
import pytest
from jupyter_lab import (
    NEEDS_A_BROWSER,
    ROOT,
    SECONDS,
    code_cell,
    menu,
    opened_notebook,
    running_lab,
    wait_until,
)
from tiny_gemma import tiny_gemma_folder

pytestmark = NEEDS_A_BROWSER
NOTEBOOKS = sorted(path for path in (ROOT / "notebooks").glob("*.ipynb") if not path.name.startswith("01"))
NEEDED = {"05": ("chitchat_dataset", "bitsandbytes"), "06": ("trl",), "07": ("trl", "optuna")}
TRAINING = re.compile("live_training|live_experiments")


def titles(path) -> list[tuple[str, str]]:
    """(number and dot, source) of every code cell that has them; those of the section By hand have none."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    found = [(re.match(r"#@title (\d+ ·)", source), source) for source in cells]
    return [(title[1], source) for title, source in found if title]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_run_all_gets_to_its_first_updates(path, tmp_path, screenshots):
    for package in NEEDED.get(path.name[:2], ("chitchat_dataset",)):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    shutil.copy(path, tmp_path)
    environment = {"NEWLLM_PRESET": "smoke", "NEWLLM_DATA_SOURCE": "offline", "HF_HUB_OFFLINE": "1"}
    if path.name.startswith("05"):
        environment["NEWLLM_MODEL"] = str(tiny_gemma_folder(tmp_path / "tiny-gemma"))
    cells = titles(path)
    training = next(number for number, (_, source) in enumerate(cells) if TRAINING.search(source))
    settings = next(title for title, source in cells if "panel.show(" in source)
    with running_lab(tmp_path, **environment) as lab, opened_notebook(lab, path.name, screenshots) as page:
        menu(page, "Run", "Run All Cells")
        cell = code_cell(page, cells[training][0])

        def first_update():
            assert page.locator(".jp-OutputArea-output[data-mime-type*='stderr']").count() == 0
            return re.search(r"update [1-9]\d* of \d+|trial \d+|everything is in", cell.inner_text())

        wait_until(first_update, 180)
        wait_until(lambda: cell.locator("img").count() == 1)  # one live plot
        for title, name in ((settings, "settings"), (cells[training][0], "training")):
            code_cell(page, title).screenshot(path=str(screenshots / f"{path.stem}-{name}.png"))
        for title, _ in cells[:training]:
            assert "✓" in code_cell(page, title).locator(".jp-OutputArea").last.inner_text(), title
        assert page.locator("text=/Error displaying widget|javascript error/").count() == 0
        panel = code_cell(page, settings).locator(".jp-OutputArea-output").first
        assert panel.evaluate("node => node.scrollWidth <= node.clientWidth + 1"), "the panel scrolls sideways"
        page.locator('.jp-NotebookPanel-toolbar [data-jp-item-name="interrupt"]').click()  # the ■ button
        page.locator("#jp-bottom-panel, .jp-StatusBar-Widget").get_by_text(re.compile(r"\| Idle$")).wait_for(
            timeout=60 * SECONDS
        )
        assert "Traceback" not in cell.inner_text()
