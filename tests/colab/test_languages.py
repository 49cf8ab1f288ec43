"""The panel speaks English or Japanese, whole, and at once; so does what the cells below it say."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from newllm_lib.colab.page import languages
from newllm_lib.colab.page.languages import TABLES, japanese, text, translate, use_language
from newllm_lib.colab.page.notices import CellStopped, in_one_sentence
from newllm_lib.colab.page.pieces import png_of, table_html
from newllm_lib.colab.panel import controls, stage
from newllm_lib.colab.panel.controls import help_of, label_of, metadata_of, settings_fields
from newllm_lib.colab.panel.preference_panel import PreferencePanel
from newllm_lib.colab.panel.settings_panel import last_language, read_panel_file
from newllm_lib.doctor import doctor
from newllm_lib.errors import CODES, InputError

COLAB = Path(languages.__file__).parents[1]
STAGES = [found for found in vars(stage).values() if isinstance(found, stage.NotebookStage)]
JAPANESE = re.compile("[ぁ-んァ-ヶ一-龠。\uff1b]")
# Not shown: a report for us, reasons inside the name of a damaged file, words of libraries, prompts, styles.
UNSAID = {"report_text", "version_lines", "settings_lines", "metrics_lines", "error_lines", "kind_of", "place"}
UNSAID |= {"SAID", "run_copy.py", "stage.py", "InputError", "compile", "HTML_STYLES", "BAG", "push_to_hub", "read_card"}
UNSAID |= {"row wrap", "offset points", "outside right upper", " The same command", "New-LLM (reference)"}
UNSAID |= {"there is no box for it"}
PROSE = re.compile(r"[A-Za-z]{2,}[,;:.]? [A-Za-z]{2,}|[A-Z][a-z]+ ")
# What stays as it is in any language.
NAMES = re.compile(
    r"newllm|tiny-gpt2|New-LLM|TinyGPT2|DialoGPT-small|Gemma\S*|Dolly|ChitChat|bits per byte|nats?|torch\w*|[CG]PU"
    r"|NVIDIA|\+\w+|pip install \S+|HF_\w+|bf16|fp\d+|compute capability|HTTP|Colab|Drive|hub|Python"
    r"|UTC|top-p|auto|/\S*|\w+\.\w+"
)


@pytest.fixture(autouse=True)
def none_chosen(monkeypatch):
    monkeypatch.setattr(languages, "_chosen", "")


def literal_texts() -> set[str]:
    """What the code hands to `text` as it stands, or as the variable `phrase`."""
    found = set()
    for path in COLAB.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "phrase":
                found.add(node.value.value)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "text":
                given = node.args[0]
                parts = [given.body, given.orelse] if isinstance(given, ast.IfExp) else [given]
                found |= {part.value for part in parts if isinstance(part, ast.Constant)}
    return found


def panel_texts() -> set[str]:
    """Every name and help text of every stage's panel."""
    offered = {found.folder: settings_fields(found.arguments) for found in STAGES}
    fields = [f for found in STAGES for f in offered[found.folder] if f.name not in {*found.fixed, *found.hidden}]
    words = {words for f in fields for words in (label_of(f.name), help_of(f), metadata_of(f)["group"])}
    words |= {*PreferencePanel.preset_titles.values(), *controls.PLACEHOLDERS.values(), controls.PATH}
    return words | {*controls.CHOICE_LABELS.values(), controls.AUTOMATIC, controls.BY_EPOCHS}


@pytest.mark.parametrize("words", [panel_texts, literal_texts])
def test_every_text_has_its_japanese(words):
    assert len(STAGES) == 7 and words() - japanese().keys() == set()


def said_in(node: ast.AST, name: str = "") -> Iterator[str]:
    """The strings below a node that may be shown: no documentation, no key of a dictionary, nothing that is UNSAID."""
    name = getattr(node, "name", name)
    if isinstance(node, ast.Assign):
        name = getattr(node.targets[0], "id", "")
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
    if name in UNSAID or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in UNSAID:
        yield node.value
    for child in node.values if isinstance(node, ast.Dict) else ast.iter_child_nodes(node):
        yield from said_in(child)


def test_every_sentence_of_a_cell_has_its_japanese():
    """Whatever reads like prose is part of a text that the tables have."""
    known, missing = "\n".join(re.sub(r"\{\w+\}", "\0", key) for key in japanese()), []
    for path in sorted(COLAB.rglob("*.py")):
        for found in said_in(ast.parse(path.read_text(encoding="utf-8")), path.name) if path.name not in UNSAID else ():
            pieces = re.split(r"<[^>]*>?|&nbsp;|\n|\{[^}]*\}|(?<=[.!?]) ", found)
            prose = [p.strip() for p in pieces if PROSE.search(p) and not re.search(r"[a-z-]+:\S", p)]
            missing += [f"{path.name}: {piece!r}" for piece in prose if piece not in known]
    assert missing == [], "these need an entry in one of newllm_lib/colab/page/*.json"


def test_no_text_is_in_both_tables():
    panel, cells = (json.loads((COLAB / "page" / name).read_text(encoding="utf-8")) for name in TABLES)
    assert panel.keys() & cells.keys() == set()


def test_a_translation_fills_in_the_same_values():
    for english, translation in japanese().items():
        names = [sorted(re.findall(r"\{(\w+)\}", sentence)) for sentence in (english, translation)]
        assert names[0] == names[1], english
        assert english.count("<b>") == translation.count("<b>") == translation.count("</b>"), english
        bare = re.sub(r"\{\w+\}", "", english)
        kept = english.startswith((" ", "Smoke", "Demo", "Quick", "Standard", "Long"))
        assert kept or JAPANESE.search(translation) or not re.search("[a-z]{3}", NAMES.sub("", bare)), english


def test_no_translation_of_the_panel_is_left_over():
    source = " ".join(path.read_text(encoding="utf-8") for path in COLAB.rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source.replace("{{", "{").replace("}}", "}"))  # texts over several lines
    made_of_parts = ("No finished model of notebook",)
    panel = json.loads((COLAB / "page" / TABLES[0]).read_text(encoding="utf-8"))
    unused = [english for english in panel.keys() - panel_texts() if english not in source]
    assert [english for english in unused if not any(part in english for part in made_of_parts)] == []


def test_a_language_that_is_none_is_refused():
    with pytest.raises(InputError, match="the language has to be one of en, ja, got 'de'"):
        use_language("de")
    use_language("ja")
    assert text("updates") == "更新回数" and text("never seen") == "never seen"


def all_words(panel) -> str:
    boxes = [panel.box]
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
    before, values, english = panel.arguments("newllm").output_dir, panel.values(), all_words(panel)
    panel.language.value = "ja"
    assert panel.values() == values and panel.arguments("newllm").output_dir == before
    assert panel.preset.value == "smoke" and "プリセットに戻す" in all_words(panel)
    assert "回更新" in panel.line.value and "学習率の最大値" in all_words(panel)
    assert read_panel_file(panel.output_dir)["language"] == "ja"
    assert make_panel().language.value == "ja", "the next session speaks it, too"
    panel.language.value = "en"
    assert all_words(panel) == english and panel.values() == values


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


def untranslated(spoken: str) -> list[str]:
    return re.findall("[A-Za-z]{3,}", NAMES.sub("", spoken))


SENTENCES = (
    "Trained; everything is in /content/runs/01. It is on your Drive, too.",
    "Drive is full: the last copy is not on Drive yet and is tried again while this session lasts.",
    "Stopped at update 5 of 100; everything is saved in /runs/a.b. Run this cell again to go on from there.",
    "New-LLM predicts the held-out text better: 1.611 against 1.718 bits per byte of TinyGPT2, 6.2% less. "
    "One run with one seed: another seed moves both a little.",
    "Learned: the new task takes 12.0% fewer bits than before. Nothing was forgotten: general text takes as many bits "
    "as before (+0.1%). There the tuned model is 0.012 nats per token from its base.",
    "The newest run is /a: newllm is finished; with the same settings the training goes on.",
    "12,345 tokens are ready; training takes 100 updates over 51,200 tokens, 4.1 passes over the text.",
    "2 of 3 of the pairs.",
)


@pytest.mark.parametrize("sentence", SENTENCES[:-1])
def test_sentences_that_a_cell_has_put_together_are_translated(sentence):
    assert translate(sentence) == sentence, "in English nothing changes"
    use_language("ja")
    spoken = translate(sentence)
    assert untranslated(spoken) == [] and "。 " not in spoken
    assert set(re.findall(r"\d+(?:\.\d+)?", sentence)) <= set(re.findall(r"\d+(?:\.\d+)?", spoken))


def test_what_has_no_translation_stays():
    use_language("ja")
    assert translate(SENTENCES[-1]) == SENTENCES[-1] and translate("Trained; so it was.") == "Trained; so it was."
    assert translate("Never seen. It is on your Drive, too.") == "Never seen. Driveにもあります。"


def test_the_check_up_speaks_japanese():
    use_language("ja")
    for finding in doctor(adapters=True, preferences=True):
        assert untranslated(translate(finding.advice)) == [], finding
        is_name = finding.subject == "GPU" and finding.status == "ok"
        assert is_name or untranslated(translate(finding.value)) == [], finding


def test_codes_are_those_of_the_guide():
    guide = (COLAB.parents[1] / "README_COLAB.ja.md").read_text(encoding="utf-8")
    rows = {code: told for code, *told in re.findall(r"^\| (NL-\d+) \| (.+?) \| (.+?) \|$", guide, re.MULTILINE)}
    assert {code: [japanese().get(words) for words in told] for code, told in CODES.items()} == rows


def test_an_error_in_english_is_followed_by_what_its_code_means():
    use_language("ja")
    with pytest.raises(CellStopped, match=r"beta is odd.*使えない設定.*NL-401"), in_one_sentence():
        raise InputError("beta is odd.")
    with pytest.raises(CellStopped, match=r"^■ セルが手動で止められました。.*NL-501"), in_one_sentence():
        raise KeyboardInterrupt


def test_tables_speak_and_what_users_and_models_wrote_does_not():
    rows = [["", "base"], ["<b>held out</b>", "5.0% of the tokens"], ["<div>data</div>", "<div>base</div>"]]
    english = table_html(rows, header=True)
    use_language("ja")
    spoken = table_html(rows, header=True)
    assert "元のモデル" in spoken and "<b>評価用</b>" in spoken and "トークンの5.0%" in spoken
    assert "<div>data</div>" in spoken and "<div>base</div>" in spoken and "held out" in english


@pytest.mark.parametrize("has_letters", [True, False])
def test_a_picture_speaks_japanese_where_its_letters_can_be_drawn(monkeypatch, has_letters):
    from newllm_lib.colab.page import pieces
    from newllm_lib.training.curves import curves_figure

    if has_letters:
        monkeypatch.setattr(pieces, "can_be_drawn", lambda words: True)
    else:
        monkeypatch.setattr(pieces, "can_be_drawn", str.isascii)
    use_language("ja")
    figure = curves_figure({"newllm": [{"step": 1, "loss": 2.0}, {"step": 2, "eval_bits_per_byte": 3.0}]})
    drawn = []
    monkeypatch.setattr(figure, "savefig", lambda *args, **kwargs: drawn.extend(figure.findobj(pieces.Text)))
    png_of(figure, 50)
    words = {text.get_text() for text in drawn}
    assert ("更新" in words) == has_letters == ("update" not in words)
