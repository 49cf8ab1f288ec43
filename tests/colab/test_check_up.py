"""The check-up table, and what every cell's words go through on their way to the page."""

import re

import pytest
from IPython.core.interactiveshell import InteractiveShell

from newllm_lib import doctor
from newllm_lib.colab import check_up
from newllm_lib.colab.page.notices import CellStopped, in_one_sentence
from newllm_lib.colab.page.pieces import escape, picture_html, sentence_html, table_html
from newllm_lib.doctor import Finding
from newllm_lib.errors import InputError

FINDINGS = [
    Finding("Python", "3.13", "ok"),
    Finding("GPU", "none", "note", "Runtime > Change runtime type.", "NL-101"),
    Finding("torch", "missing", "fail", "pip install <torch> & retry"),
]


def test_every_finding_has_its_mark_and_advice():
    html = check_up.check_up_html(FINDINGS)
    rows = re.findall("<tr.*?</tr>", html)
    assert [re.search("[✓!✗]", row)[0] for row in rows] == ["✓", "!", "✗"]
    assert "NL-101" in rows[1] and "NL-" not in rows[0]
    assert "Runtime &gt; Change" in rows[1] and "&lt;torch&gt; &amp; retry" in rows[2]


@pytest.mark.parametrize(
    ("findings", "words", "status"),
    [(FINDINGS, "torch", "fail"), (FINDINGS[:2], "1 remark above", "ok"), (FINDINGS[:1], "will run.", "ok")],
)
def test_the_verdict_names_what_is_missing(findings, words, status):
    sentence, found = check_up.verdict(findings)
    assert words in sentence and found == status


def test_the_page_shows_table_and_verdict(monkeypatch):
    shown = []
    monkeypatch.setattr(check_up, "doctor", lambda *wanted: FINDINGS)
    monkeypatch.setattr(check_up, "show", shown.append)
    monkeypatch.setattr(check_up, "say", lambda sentence, status: shown.append(sentence))
    check_up.show_check_up()
    assert len(shown) == 2 and "<table" in shown[0]


def test_no_text_is_in_a_fixed_colour():
    # Fixed black or white text would vanish on a dark or a light page; only the badges have a ground of their own.
    html = check_up.check_up_html(FINDINGS) + sentence_html("Sentence.", "fail") + table_html([["a", "b"]], header=True)
    for style in re.findall(r'style="(.*?)"', html):
        if re.search(r"(^|;)color:", style):
            assert "background:#" in style
    assert "background:#fff" in picture_html(b"png", "picture")


def test_text_from_outside_is_harmless():
    assert escape("<script>$x$ & 'y'</script>") == (
        "&lt;script&gt;<span>$</span>x<span>$</span> &amp; &#x27;y&#x27;&lt;/script&gt;"
    )


@pytest.mark.parametrize(
    "text",
    ["$x$", "$$x$$", r"\(x\)", r"\[x\]", r"\begin{equation}x\end{equation}", r"C:\(new)\[old]", r"\\(x\\)", r"\$x\$"],
)
def test_no_text_is_set_as_a_formula(text):
    """MathJax looks for its delimiters in what stands between two tags."""
    pieces = re.split(r"</?span>", escape(text))
    assert "".join(pieces) == text and all(piece in "$\\" or not set(piece) & set("$\\") for piece in pieces)


def test_bad_input_ends_a_cell_in_one_sentence(capsys):
    @in_one_sentence()
    def cell():
        raise InputError("dropout has to lie in [0, 1), got 2.")

    with pytest.raises(CellStopped, match="dropout") as stopped:
        cell()
    shell = InteractiveShell.instance()
    shell.showtraceback((CellStopped, stopped.value, stopped.tb))
    assert capsys.readouterr().out.strip() == "✗ dropout has to lie in [0, 1), got 2. [NL-401]"


@pytest.mark.parametrize(("adapters", "status"), [(False, "note"), (True, "fail")])
def test_what_only_stage_5_needs_fails_no_other_stage(monkeypatch, adapters, status):
    def version(package):
        if package == "bitsandbytes":
            raise doctor.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "hub_problem", lambda source: None)
    (finding,) = [f for f in doctor.doctor(adapters=adapters) if f.subject == "bitsandbytes"]
    assert finding.status == status and "newllm[qlora]" in finding.advice
