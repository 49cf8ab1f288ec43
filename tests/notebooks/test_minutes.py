"""The minutes that READMEs, heads of notebooks and panels give come from one table."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from chats import untrained_chat

from newllm_lib.colab.page.languages import use_language
from newllm_lib.colab.panel import estimate, stage
from newllm_lib.colab.panel.preference_panel import PreferencePanel, SweepPanel
from newllm_lib.colab.panel.settings_panel import SettingsPanel
from newllm_lib.training.device import find_device

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGES = [found for found in vars(stage).values() if isinstance(found, stage.NotebookStage)]
PANELS = {stage.PREFERENCES.folder: PreferencePanel, stage.EXPERIMENTS.folder: SweepPanel}
ENTRY = re.compile(r"~?[1-9]\d*")


def run_script(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(root / "scripts/minutes.py"), *arguments], capture_output=True, text=True
    )


def head(path: Path) -> str:
    return "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])


def test_readmes_and_heads_have_the_minutes_of_the_table():
    result = run_script(ROOT, "--check")
    assert (result.returncode, result.stdout) == (0, "")


def test_another_figure_in_the_table_is_found_missing_and_written(tmp_path):
    names = ["scripts/minutes.py", "newllm_lib/colab/page/minutes.json", "README_COLAB.md", "README_COLAB.ja.md"]
    for name in (*names, *(f"notebooks/{path.name}" for path in NOTEBOOKS)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    table = tmp_path / "newllm_lib/colab/page/minutes.json"
    figures = json.loads(table.read_text(encoding="utf-8"))
    figures["03_dolly"]["t4"]["standard"] = ["~77", "~120"]
    table.write_text(json.dumps(figures), encoding="utf-8")
    named = "notebooks/03_dolly.ipynb, README_COLAB.md, README_COLAB.ja.md differ"
    assert run_script(tmp_path, "--check").returncode == 1 and named in run_script(tmp_path, "--check").stdout
    assert run_script(tmp_path).returncode == 0 == run_script(tmp_path, "--check").returncode
    assert "| ~ 77 minutes | ~ 2.0 hours |" in head(tmp_path / "notebooks/03_dolly.ipynb")
    for name in names[2:]:
        (row,) = [line for line in (tmp_path / name).read_text(encoding="utf-8").splitlines() if "[03 Dolly]" in line]
        assert {"77", "120"} <= set(re.findall(r"\d+", row.split("|")[4]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_head_has_every_preset_with_training_and_whole_notebook_apart(path):
    (of_notebook,) = [known for known in STAGES if known.folder.startswith(path.name[:2])]
    rows = [line.strip("| ").split(" | ") for line in head(path).splitlines() if line.startswith("| ")]
    assert rows[0][2].endswith(": training") and rows[0][3] == "whole notebook" and {len(row) for row in rows} == {6}
    shown = [row[0].lower() for row in rows[1:]]
    assert shown == [name for name in of_notebook.presets if name in shown] and len(shown) >= 5
    for machine, presets in estimate.preset_minutes()[of_notebook.folder].items():
        assert machine in ("cpu", "t4") and list(presets) == shown
        for name, pair in presets.items():
            assert pair is None or (len(pair) == 2 and all(map(ENTRY.fullmatch, pair)))
            assert pair is None or int(pair[0].strip("~")) <= int(pair[1].strip("~"))
            assert pair is None or ("~" in pair[1]) == ((machine, name) != ("cpu", "demo")), "what was measured"


@pytest.mark.parametrize(("kind", "machine", "words"), [("cpu", "cpu", "2 CPU cores"), ("cuda", "t4", "a T4")])
def test_a_panel_says_the_same(monkeypatch, kind, machine, words):
    monkeypatch.setattr(estimate, "find_device", lambda: dataclasses.replace(find_device(), kind=kind))
    training, whole = estimate.preset_minutes()["01_pretrain"][machine]["quick"]
    sentence = estimate.minutes_of_preset("01_pretrain", "quick")
    assert f"takes {whole} minutes on {words}, {training} of them training" in sentence and "~ is" in sentence
    use_language("ja")
    try:
        assert f"{whole}分、うち学習は{training}分です" in estimate.minutes_of_preset("01_pretrain", "quick")
    finally:
        use_language("en")
    assert estimate.minutes_of_preset("01_pretrain", "published") == "" == estimate.minutes_of_preset("runs", "quick")


def test_no_tilde_is_explained_where_nothing_was_estimated():
    assert "~" not in estimate.minutes_of_preset("01_pretrain", "demo")


def test_the_live_line_has_the_minutes_of_its_preset(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_PRESET", "demo")
    monkeypatch.setenv("NEWLLM_DATA_SOURCE", "offline")
    panel = SettingsPanel(stage.INSTRUCTIONS, tmp_path)
    assert estimate.minutes_of_preset("03_dolly", "demo") in panel.line.value
    panel.preset.value = "standard"
    assert estimate.minutes_of_preset("03_dolly", "standard") in panel.line.value
    panel.controls["dropout"].set(0.3)
    assert "this preset as it is" not in panel.line.value


@pytest.mark.parametrize("of", STAGES, ids=lambda of: of.folder)
def test_every_preset_that_is_not_touched_says_its_minutes(tmp_path, monkeypatch, of):
    monkeypatch.setenv("NEWLLM_DATA_SOURCE", "offline")
    if of.folder in PANELS:  # which need a chat model
        monkeypatch.setenv("NEWLLM_MODEL", str(untrained_chat(tmp_path / "chat", "tiny-gpt2")))
    panel = PANELS.get(of.folder, SettingsPanel)(of, tmp_path)
    for preset in panel.presets:
        panel.preset.value = preset
        panel.reset.click()
        assert estimate.minutes_of_preset(of.folder, preset) in panel.line.value
