"""The panel speaks English or Japanese, whole, and at once."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import pytest

from newllm_lib.colab.page import languages
from newllm_lib.colab.page.languages import japanese, text, texts, translate, use_language
from newllm_lib.colab.page.notices import CellStopped
from newllm_lib.colab.panel import controls, settings_panel, stage
from newllm_lib.colab.panel.controls import help_of, label_of, metadata_of, settings_fields
from newllm_lib.colab.panel.settings_panel import last_language, read_panel_file
from newllm_lib.data.sources import DATASETS
from newllm_lib.errors import InputError

COLAB = Path(languages.__file__).parents[1]
ROOT = COLAB.parents[1]
STAGES = [found for found in vars(stage).values() if isinstance(found, stage.NotebookStage)]
JAPANESE = re.compile("[ぁ-んァ-ヶ一-龠]")


@pytest.fixture(autouse=True)
def none_chosen(monkeypatch):
    monkeypatch.setattr(languages, "_chosen", "")


def literal_texts() -> set[str]:
    """What the code hands to `text` as it stands."""
    found = set()
    for path in COLAB.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "text":
                given = node.args[0]
                parts = [given.body, given.orelse] if isinstance(given, ast.IfExp) else [given]
                found |= {part.value for part in parts if isinstance(part, ast.Constant)}
    return found


def panel_texts() -> set[str]:
    """Every name and help text of every stage's panel."""
    offered = {found.folder: settings_fields(found.arguments) for found in STAGES}
    fields = [f for found in STAGES for f in offered[found.folder] if f.name not in found.hidden]
    words = {words for f in fields for words in (label_of(f.name), help_of(f), metadata_of(f)["group"])}
    words |= {*controls.PRESET_TITLES.values(), *controls.PLACEHOLDERS.values(), controls.PATH}
    words |= {said for entry in DATASETS.values() for said in (entry.language, entry.good_for)}
    return words | {*controls.CHOICE_LABELS.values(), controls.AUTOMATIC, controls.BY_EPOCHS}


@pytest.mark.parametrize("words", [panel_texts, literal_texts])
def test_every_text_has_its_japanese(words):
    assert len(STAGES) == 7 and words() - texts().keys() == set()


def test_a_translation_fills_in_the_same_values():
    for english, translation in japanese().items():
        names = [sorted(re.findall(r"\{(\w+)\}", sentence)) for sentence in (english, translation)]
        assert names[0] == names[1], english
        assert english.count("<b>") == translation.count("<b>") == translation.count("</b>"), english
        assert english.startswith((" ", "Smoke", "Demo", "Quick", "Standard", "Long", "Published")) or JAPANESE.search(
            translation
        )


def test_no_translation_is_left_over():
    source = " ".join(path.read_text(encoding="utf-8") for path in COLAB.parent.rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source.replace("{{", "{").replace("}}", "}"))  # texts over several lines
    unused = [english for english in japanese().keys() - panel_texts() if english not in source]
    assert [english for english in unused if "{count} " not in english] == []  # units of bars


def test_a_language_that_is_none_is_refused():
    with pytest.raises(InputError, match="the language has to be one of en, ja, got 'de'"):
        use_language("de")
    use_language("ja")
    assert text("updates") == "更新回数" and text("never seen") == "never seen"


def all_words(box) -> str:
    boxes = [box]
    words = []
    while boxes:
        widget = boxes.pop()
        boxes += getattr(widget, "children", ())
        words += [getattr(widget, name, "") for name in ("description", "placeholder")]
        words += [label for label, _ in getattr(widget, "options", ()) if isinstance(label, str)]
        words.append(widget.value if widget.__class__.__name__ == "HTML" else "")
    return " ".join(words)


def test_the_switch_changes_the_words_and_no_setting(make_panel, tmp_path):
    panel = make_panel()
    panel.controls["learning_rate"].widget.value = 1e-3
    panel.controls["tokenizer"].widget.value = "byte"
    before, values, english = panel.arguments("newllm").output_dir, panel.values(), all_words(panel.box)
    panel.language.value = "ja"
    assert panel.values() == values and panel.arguments("newllm").output_dir == before
    assert panel.preset.value == "smoke" and "プリセットに戻す" in all_words(panel.box)
    assert "回更新" in panel.line.value and "学習率の最大値" in all_words(panel.box)
    assert read_panel_file(panel.output_dir)["language"] == "ja"
    assert make_panel().language.value == "ja", "the next session speaks it, too"
    panel.language.value = "en"
    assert all_words(panel.box) == english and panel.values() == values


def test_other_notebooks_speak_what_was_spoken_last(make_panel, tmp_path):
    make_panel().language.value = "ja"
    assert last_language(tmp_path) == "ja" and last_language(tmp_path / "elsewhere") == "en"


def test_a_notebook_that_has_chosen_japanese_opens_a_japanese_panel(make_panel):
    make_panel().language.value = "en"  # as the panel was left
    use_language("ja")
    panel = make_panel()
    assert panel.language.value == "ja" and panel.reset.description == "プリセットに戻す"


def test_the_environment_decides(make_panel, monkeypatch):
    monkeypatch.setenv("NEWLLM_LANGUAGE", "ja")
    assert make_panel().reset.description == "プリセットに戻す"
    monkeypatch.setenv("NEWLLM_LANGUAGE", "latin")
    with pytest.raises(Exception, match="latin"):
        make_panel()


@pytest.fixture
def make_quick_panel(make_panel, monkeypatch):
    """A panel that measures nothing; what its page shows goes to `shown`."""
    monkeypatch.delenv("NEWLLM_PRESET")
    shown = []
    monkeypatch.setattr(settings_panel, "display", lambda box: shown.append(all_words(box)))
    monkeypatch.setattr(settings_panel, "say", lambda sentence, status="ok": shown.append(translate(sentence)))
    return lambda: (make_panel(stage=dataclasses.replace(stage.PRETRAIN, measure=lambda arguments: {})), shown)


def test_the_form_of_the_cell_holds_from_the_start(make_quick_panel):
    panel, shown = make_quick_panel()
    panel.show("日本語", "smoke")
    assert "プリセットに戻す" in shown[0] and panel.preset.value == "smoke"
    assert panel.values()["max_steps"] == stage.PRETRAIN.presets["smoke"]["max_steps"]
    assert "「すべてのセルを実行」の間、このパネルは応答できません" in shown[-2]
    again, shown = make_quick_panel()
    again.show()
    assert (again.language.value, again.preset.value) == ("ja", "smoke"), "automatic is what was there last"
    again.language.value, again.preset.value = "en", "demo"
    assert "Reset to preset" in all_words(again.box)


def test_the_environment_comes_before_the_form(make_quick_panel, monkeypatch):
    monkeypatch.setenv("NEWLLM_PRESET", "demo")
    monkeypatch.setenv("NEWLLM_LANGUAGE", "en")
    panel, _ = make_quick_panel()
    panel.show("日本語", "smoke")
    assert (panel.language.value, panel.preset.value) == ("en", "demo")


@pytest.mark.parametrize(
    ("form", "words"), [(("Deutsch", "smoke"), "language has to be one of"), (("English", "huge"), "got 'huge'")]
)
def test_a_form_that_names_nothing_ends_the_cell_in_a_sentence(make_quick_panel, form, words):
    panel, shown = make_quick_panel()
    with pytest.raises(CellStopped, match=words):
        panel.show(*form)
    assert shown == []


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_form_of_every_notebook_offers_what_there_is(path):
    (cell,) = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["id"] == "settings"]
    fields = dict(re.findall(r'^(\w+) = "automatic" #@param (\[.+?\])', "".join(cell["source"]), re.MULTILINE))
    assert json.loads(fields["language"]) == ["automatic", *languages.LANGUAGES.values()]
    (of_notebook,) = [known for known in STAGES if known.folder.startswith(path.name[:2])]
    automatic, *presets = json.loads(fields["preset"])
    assert (
        automatic == settings_panel.AUTOMATIC
        and len(presets) >= 5
        and presets == list(of_notebook.presets)[: len(presets)]
    )
