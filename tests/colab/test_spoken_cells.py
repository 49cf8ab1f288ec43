"""What cells say in Japanese: sentences that are put together, tables, pictures, errors, and the list of them all."""

import ast
import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from newllm_lib.adapters.forgetting import changes_figure
from newllm_lib.colab.page import languages, pieces
from newllm_lib.colab.page.languages import japanese, texts, translate, use_language
from newllm_lib.colab.page.notices import CellStopped, in_one_sentence
from newllm_lib.colab.page.pieces import label_of, spoken_png, table_html
from newllm_lib.colab.panel.controls import in_the_panels_words
from newllm_lib.colab.preferences import kinds_figure
from newllm_lib.colab.results import KINDS, forgetting_figure
from newllm_lib.data.sources import DATASETS
from newllm_lib.doctor import doctor
from newllm_lib.errors import CODES, InputError
from newllm_lib.stages.compare import goal_cells
from newllm_lib.stages.goals import goals
from newllm_lib.stages.sft import BANDS, advice
from newllm_lib.training import curves
from newllm_lib.training.curves import curves_figure

COLAB = Path(languages.__file__).parents[1]
JAPANESE = re.compile("[ぁ-んァ-ヶ一-龠。、\uff1b]")
# Not shown: a report for us, reasons inside the name of a damaged file, words of libraries, prompts, styles.
UNSAID = {"report_text", "version_lines", "settings_lines", "metrics_lines", "error_lines", "kind_of", "place"}
UNSAID |= {"SAID", "run_copy.py", "stage.py", "InputError", "compile", "HTML_STYLES", "BAG", "push_to_hub", "read_card"}
UNSAID |= {"row wrap", "offset points", "outside right upper", " The same command", "New-LLM (reference)"}
UNSAID |= {"there is no box for it", "and its test split", "remedy"}
PROSE = re.compile(r"[A-Za-z]{2,}[,;:.]? [A-Za-z]{2,}|[A-Z][a-z]+ ")
# What stays as it is in any language.
NAMES = re.compile(
    r"newllm|tiny-gpt2|New-LLM|TinyGPT2|DialoGPT-small|Gemma\S*|Dolly|ChitChat|bits per byte|nats?|torch\w*|[CG]PU"
    r"|NVIDIA|\+\w+|pip install \S+|HF_\w+|bf16|fp\d+|compute capability|HTTP|Colab|Drive|hub|Python"
    r"|UTC|MIT|CC BY[-A-Z]*|top-p|auto|/\S*|\w+\.\w+"
)


@pytest.fixture(autouse=True)
def none_chosen(monkeypatch):
    monkeypatch.setattr(languages, "_chosen", "")


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
    known, missing = "\n".join(re.sub(r"\{\w+\}", "\0", key) for key in texts()), []
    for path in sorted(COLAB.rglob("*.py")):
        for found in said_in(ast.parse(path.read_text(encoding="utf-8")), path.name) if path.name not in UNSAID else ():
            pieces = re.split(r"<[^>]*>?|&nbsp;|\n|\{[^}]*\}|(?<=[.!?]) ", found)
            prose = [p.strip() for p in pieces if PROSE.search(p) and not re.search(r"[a-z-]+:\S", p)]
            missing += [f"{path.name}: {piece!r}" for piece in prose if piece not in known]
    assert missing == [], "these need an entry in one of newllm_lib/colab/page/*.json"


# What cells show of the code outside colab: file -> the functions that make it, () for all.
SHOWN = {
    "adapters/base_model.py": ("find_base_model", "_download"), "adapters/forgetting.py": ("changes_figure",),
    "data/conversations.py": ("load_conversations", "remarks", "unread_note"), "data/mix.py": ("mixed",),
    "data/chat_template.py": ("learnable_template",), "data/text.py": ("load_text", "same_file_note"),
    "preferences/pairs.py": ("_generated", "_read"),
    "stages/compare.py": ("comparison_cells", "comparison_figure"), "stages/goals.py": (),
    "training/curves.py": ("curves_figure",),
}  # fmt: skip


@pytest.mark.parametrize("file", SHOWN)
def test_what_cells_show_of_other_code_has_its_japanese(file):
    tree = ast.parse((COLAB.parent / file).read_text(encoding="utf-8"))
    made = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in SHOWN[file]] or [tree]
    assert len(made) == max(len(SHOWN[file]), 1)
    known = "\n".join(re.sub(r"\{\w+\}", "\0", key) for key in texts())
    said = [p.strip() for node in made for found in said_in(node) for p in re.split(r"\{[^}]*\}|(?<=[.!?]) ", found)]
    assert [piece for piece in said if PROSE.search(piece) and piece not in known] == []


def test_single_words_in_tables_have_their_japanese():
    """A row is a list in a list, or a list that is appended."""
    words = set()
    for path in COLAB.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            rows = node.elts if isinstance(node, ast.List) else []
            rows = node.args if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "append" else rows
            cells = [cell for row in rows if isinstance(row, ast.List) for cell in row.elts]
            words |= {cell.value for cell in cells if isinstance(cell, ast.Constant) and isinstance(cell.value, str)}
    words = {re.sub("<[^>]*>", "", word).strip() for word in words}
    assert len(words) > 20 and {word for word in words if re.search("[a-z]{3}", word)} - texts().keys() == set()


def test_no_text_is_in_both_tables():
    assert japanese().keys() & japanese("japanese_cells.json").keys() == set()


def test_a_translation_fills_in_the_same_values():
    for english, translation in japanese("japanese_cells.json").items():
        names = [sorted(re.findall(r"\{(\w+)\}", sentence)) for sentence in (english, translation)]
        assert names[0] == names[1], english
        bare = NAMES.sub("", re.sub(r"\{\w+\}", "", english))
        assert JAPANESE.search(translation) or not re.search("[a-z]{3}", bare), english


def test_no_translation_is_left_over():
    """Sentences are put together from parts: of the pairs of words in a long key, half are in the source."""
    source = " ".join(path.read_text(encoding="utf-8") for path in COLAB.parent.rglob("*.py"))
    source = " ".join(re.findall(r"\w+", re.sub(r'"\s*\n\s*f?"', "", source)))
    left = []
    for english in japanese("japanese_cells.json"):
        words = re.findall(r"\w+", re.sub(r"\{\w+\}", "|", english).replace("|", " _ "))
        pairs = [pair for pair in itertools.pairwise(words) if "_" not in pair]
        if len(pairs) > 3 and sum(" ".join(pair) in source for pair in pairs) < len(pairs) / 2:
            left.append(english)
    assert left == []


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

# Of the panel's live line, and of the data sets in it.
PHRASES = (
    "<b>newllm 1.68 M, tiny-gpt2 1.66 M</b> parameters",
    "<b>about 1,200</b> updates of 32 rows of 256 tokens = <b>9.83 M</b> tokens",
    "<b>2</b> checkpoints kept of each model",
    *(f"about <b>{span}</b> here for all updates{of} (one was measured), plus evaluations"
      for span, of in (("a minute", ""), ("40 minutes", " of both models"), ("1.5 hours", " of all models"))),
    "at least <b>77 MB</b> on disk, and <b>only 1 MB</b> are free",
    "about <b>3.0 GB of 4.0 GB</b> on this GPU (estimated)",
    "<b>5.0 GB of 4.0 GB</b> on this GPU: halve the batch size and double the accumulation",
    *("<b>Gemma</b> in 4 bit", "<b>Gemma</b> in full precision", "<b>99,000</b> trainable parameters"),
    "<b>20</b> updates of 32 examples, out of up to <b>640</b> conversations and 96 stretches of text to rehearse",
    *("<b>20</b> updates of 32 examples", "<b>2</b> epochs of your file, in updates of 32 examples"),
    "<b>1,000</b> updates of 16 pairs, out of <b>2,000</b> generated ones",
    *("<b>20</b> updates of 16 pairs", "<b>2</b> epochs in updates of 16 pairs", "after 1 passes over all answers"),
    *("<b>8</b> trials of <b>DialoGPT-small</b>", "learning rate <b>0.003, 0.001</b>"),
    *("Both models go on from 01/a1b2.", "All models go on from 01/a1b2.", "newllm goes on from 01/a1b2."),
    *(f"No finished model of notebook 2 is used: {they} trained from scratch."
      for they in ("both models are", "all models are", "newllm is")),
    *(f"this preset as it is: the whole notebook takes ~9 minutes on {where}, ~4 of them training"
      for where in ("2 CPU cores", "a T4")),
    *(f"{rows} rows, {entry.language}, licence: {entry.licence}. Good for: {entry.good_for}."
      for rows, entry in (("11,118", DATASETS["dailydialog"]), ("about 208,000", DATASETS["ultrachat"]))),
)  # fmt: skip


@pytest.mark.parametrize("sentence", SENTENCES[:-1] + PHRASES)
def test_sentences_that_a_cell_has_put_together_are_translated(sentence):
    assert translate(sentence) == sentence, "in English nothing changes"
    use_language("ja")
    spoken = translate(sentence)
    assert untranslated(spoken) == [] and "。 " not in spoken
    assert set(re.findall(r"\d+(?:\.\d+)?", sentence)) <= set(re.findall(r"\d+(?:\.\d+)?", spoken))


def test_brackets_of_a_value_are_whole():
    use_language("ja")
    origin = "ChitChat conversations, train (package chitchat-dataset 0.9.0), first 400 rows (licence: MIT)"
    words = re.findall(r"[\w.-]+", translate(origin))
    assert words == [
        "ChitChatの会話",
        "学習用",
        "パッケージchitchat-dataset",
        "0.9.0",
        "最初の400行",
        "ライセンス",
        "MIT",
    ]


def test_every_verdict_on_a_model_is_translated():
    use_language("ja")
    run = {"text_source": "hub", "tokenizer": "word", "loss_on": "all"}
    for dataset, (first, last, *_) in BANDS.items():
        for value in (first - 1.5, last - 0.5, last + 1.5):
            said = advice({**run, "dataset": dataset}, {"perplexity": value})
            spoken = translate(in_the_panels_words(said))
            assert untranslated(re.sub(r"hh-rlhf|ultrachat(-full)?|codealpaca", "", spoken)) == [], said
        for metrics in ({"bits_per_byte": 1.25}, {"bits_per_byte": None, "unk_rate": 0.05}):
            said = advice({**run, "dataset": dataset, "tokenizer": "bpe"}, {"perplexity": 30.0, **metrics})
            assert untranslated(translate(said).replace(dataset, "")) == [], said


def test_goals_are_translated(tmp_path, monkeypatch):
    use_language("ja")
    general = {"general_text": {"bits_per_byte_before": 1.0, "bits_per_byte_after": 1.1}}
    monkeypatch.setattr("newllm_lib.stages.goals.read_results", lambda folder: {"forgetting": general})
    run = {"model_type": "newllm", "stage": "sft", "text_source": "hub", "dataset": "dolly", "tokenizer": "word"}
    row = {"name": "newllm", "model_type": "newllm", "parameters": 100, "perplexity": 15.0, "bits_per_byte": 1.2}
    row |= {"tokens": 10, "split": "test", "state_bytes": {"128": 4_000, "1024": 4_000}}
    others = [{**row, "name": "tiny-gpt2", "model_type": "tiny-gpt2", "tokens": tokens} for tokens in (10, 11)]
    found = goals(SimpleNamespace(run=run, folder=tmp_path), row, [row, *others])
    cells = goal_cells([{**row, "goals": found}])
    assert len(cells) == 7 and [cell for line in cells for cell in line if untranslated(translate(cell))] == []


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
    assert {code: [texts().get(words) for words in told] for code, told in CODES.items()} == rows


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


MEASURED = {kind: {"before": {"bits_per_byte": 2.0}, "after": {"bits_per_byte": 1.9}} for kind in KINDS}
KINDS_MEASURED = {"accuracy_by_kind": {"off_topic": 0.5}, "held_out": {"pairs": 3, "accuracy": 0.5}}
PICTURES = {  # each with words of its own
    "update": lambda: curves_figure({"newllm": [{"step": 1, "loss": 2.0}, {"step": 2, "eval_bits_per_byte": 3.0}]}),
    "block of layers": lambda: changes_figure({"layers.0.q_proj": 0.1, "layers.1.q_proj": 0.2}),
    "new task": lambda: forgetting_figure(MEASURED),
    "off topic (3)": lambda: kinds_figure(KINDS_MEASURED, {"off_topic": 3}),
}


@pytest.mark.parametrize("has_letters", [True, False])
@pytest.mark.parametrize("english", PICTURES)
def test_a_picture_speaks_japanese_where_its_letters_can_be_drawn(monkeypatch, has_letters, english):
    """As they are drawn: ticks get their words then."""
    monkeypatch.setattr(pieces, "can_be_drawn", (lambda words: True) if has_letters else str.isascii)
    use_language("ja")
    figure, families = PICTURES[english](), [*curves._families(), "a font of this machine"]
    monkeypatch.setattr(curves, "_families", lambda: families)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of letters that matplotlib's own font does not have
        spoken_png(figure, 50)
    written = [text for text in figure.findobj(pieces.Text) if text.get_text()]
    assert label_of(english) in {text.get_text() for text in written}
    assert (label_of(english) != english) == has_letters
    assert all(text.get_fontfamily() == families for text in written)
