"""Names and prompts in pictures: whatever they are, the picture is drawn, and says them."""

import functools
import warnings

import pytest
import torch
from fontTools.ttLib import TTFont
from matplotlib.figure import Figure
from matplotlib.font_manager import FontManager, findfont, fontManager, get_font
from matplotlib.text import Text

from newllm_lib.colab.context_picture import context_figure
from newllm_lib.colab.preferences import kinds_figure
from newllm_lib.stages.compare import comparison_figure
from newllm_lib.training import curves
from newllm_lib.training.curves import as_label, curves_figure, save_curves

NAMES = ["$x_$", r"$\frac$", r"\$5$", r"$\undefined{$", "_hidden", "run\\name", "{}%s", "日本 $語$", "$" * 99]
MORE_NAMES = ["cost $5", "$", "a\nb\tc", "\udcff", "\0", "x" * 5000, "🙂", "نص", "^_^", "100 %", "-"]


@pytest.fixture(autouse=True)
def no_font_of_this_machine(monkeypatch):
    """matplotlib's own font is all there is."""
    families, characters = curves._families.__wrapped__, curves._characters.__wrapped__
    monkeypatch.setattr(curves, "findSystemFonts", lambda: [])
    monkeypatch.setattr(curves, "fontManager", FontManager.__new__(FontManager))
    curves.fontManager.ttflist = []
    monkeypatch.setattr(curves, "_families", functools.cache(families))
    monkeypatch.setattr(curves, "_characters", functools.cache(characters))


def drawn(figure: Figure) -> list[str]:
    """All that the figure says, once it was drawn without a warning and holds no formula."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # matplotlib's own, of what it is made with
        curves.png_of(figure, 100)
    texts = [text for text in figure.findobj(Text) if text.get_visible()]
    read = [text._preprocess_math(text.get_text()) for text in texts if "mathdefault" not in text.get_text()]  # powers
    assert not any(is_formula for _, is_formula in read)
    return [said for said, _ in read]


def shown(name: str) -> str:
    """The label as it is to be seen."""
    return as_label(name).replace(r"\$", "$")


def row(name: str) -> dict:
    sizes = {128: 10.0, 1024: 11.0}
    return {"name": name, "bits_per_byte": 2.0, "perplexity": 9.0, "parameters": 1e6} | {
        "ms_per_token": sizes, "state_bytes": sizes
    }  # fmt: skip


def measured(kind: str) -> dict:
    return {"accuracy_by_kind": {kind: 0.5}, "held_out": {"pairs": 10, "accuracy": 0.5}}


HISTORIES = {
    "language": [{"step": 1, "loss": 2.0}, {"step": 2, "eval_bits_per_byte": 3.0}],
    "forgetting": [{"step": 1, "task_loss": 2.0}, {"step": 2, "eval_general_bits_per_byte": 3.0}],
    "preferences": [{"step": 1, "eval_margin": 2.0, "eval_accuracy": 0.5}],
}


@pytest.mark.parametrize("name", [*NAMES, *MORE_NAMES])
def test_curves_are_drawn_under_any_name(tmp_path, name):
    for kind, history in HISTORIES.items():
        said = drawn(curves_figure({name: history, "other": history}))
        assert shown(name) in said or kind == "preferences", "whose curves have names of their own"
    save_curves({name: history}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", NAMES)
def test_every_other_picture_is_drawn_under_any_name(name):
    said = drawn(comparison_figure([row(name), row("other")]))
    assert said.count(shown(name)) == 2 and f"{shown(name)}\n1.00 M" in said
    assert f"{shown(name.replace('_', ' '))} (10)" in drawn(kinds_figure(measured(name), {name: 10}))
    assert shown(name) in drawn(context_figure([name, "b"], torch.arange(9.0).reshape(3, 3), title=name))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("newllm", "newllm"),
        ("a$b$", r"a\$b\$"),
        ("_a", " _a"),
        ("é", "é"),
        ("日", "U+65E5"),
        ("a" * 25, "a" * 23 + "…"),
    ],
)
def test_a_label_says_the_name(name, label):
    assert as_label(name) == label


@pytest.mark.parametrize(
    ("name", "label"), [("かな", "kana"), ("한", "han"), ("日本", "U+65E5U+672C"), ("🙂", "U+1F642")]
)
def test_letters_that_no_font_has_are_spelled(name, label):
    assert as_label(name) == label
    assert label in drawn(curves_figure({name: HISTORIES["language"]}))
    assert label[:11] in "".join(drawn(context_figure([name, "b"], torch.arange(9.0).reshape(3, 3))))


@pytest.fixture
def a_japanese_font(tmp_path, monkeypatch):
    """A font of the machine that the list of fonts does not hold yet: Braille patterns stand in for the letters."""
    font = TTFont(findfont("DejaVu Sans"))
    for table in font["cmap"].tables:
        table.cmap.update({ord(letter): table.cmap[0x28FF] for letter in "日本語" if 0x28FF in table.cmap})
    for record in font["name"].names:
        if record.nameID in (1, 16):
            record.string = "IPAexGothic"
    font.save(tmp_path / "ipaexg.ttf")
    monkeypatch.setattr(curves, "findSystemFonts", lambda: [str(tmp_path / "ipaexg.ttf"), str(tmp_path / "none.ttf")])
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist])
    monkeypatch.setattr(curves, "fontManager", fontManager)
    yield get_font(str(tmp_path / "ipaexg.ttf")).family_name
    fontManager._findfont_cached.cache_clear()


def test_letters_of_a_font_that_is_here_are_drawn(a_japanese_font):
    assert curves._families() == ("DejaVu Sans", a_japanese_font) == ("DejaVu Sans", "IPAexGothic")
    assert as_label("日本語") == "日本語" and as_label("한") == "han"
    figure = curves_figure({"日本語": HISTORIES["language"]})
    assert "日本語" in drawn(figure), "and no warning of a missing letter"
    written = [text for text in figure.findobj(Text) if text.get_text().startswith("日本語")]
    assert written and all(text.get_fontfamily() == [*curves._families()] for text in written)
