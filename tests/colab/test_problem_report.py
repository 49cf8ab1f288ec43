"""The report: useful to us, silent about its user, shown before it can be downloaded."""

import base64
import json
import re
import sys
from pathlib import Path

import pytest

from newllm_lib.colab import problem_report as report
from newllm_lib.colab.page.notices import in_one_sentence
from newllm_lib.colab.problem_report import report_text, show_report
from newllm_lib.doctor import Finding
from newllm_lib.errors import CODES


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    finding = Finding("GPU", "none", "note", "Small presets run on the CPU.", "NL-101")
    monkeypatch.setattr(report, "doctor", lambda: [finding])
    monkeypatch.delattr(sys, "last_value", raising=False)


def error_of(function):
    """What IPython would have as the newest error."""
    with pytest.raises(BaseException) as caught:
        function()
    return caught.value


def test_it_says_what_is_needed(make_panel):
    panel = make_panel()
    folder = Path(panel.arguments("newllm").output_dir)
    folder.mkdir(parents=True)
    log = [{"step": 10 * n, "loss": 5.0 - n, "note": "words"} for n in range(20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"step": 2')
    sys.last_value = error_of(in_one_sentence()(lambda: 1 / 0))
    text = report_text(panel)
    for part in ("newllm 0.", "Python 3.", "torch ", "note  GPU: none", "NL-101", "preset smoke", "max_length = "):
        assert part in text
    assert "data = [left out]" in text and "data_source = file" in text
    assert '"step": 190' in text and '"step": 10,' not in text and "words" not in text
    assert "tiny-gpt2: there is no log" in text
    assert "ZeroDivisionError [NL-901] A fault of ours.\n" in text and "  [a cell or file of yours]\n" in text


def test_it_is_made_whatever_is_missing(make_panel):
    assert "There is no settings panel" in report_text(None) and "None." in report_text(None)
    panel = make_panel()
    panel.controls["data"].widget.value = "/gone/far/away.txt"
    text = report_text(panel)
    assert "there is no log (InputError)" in text and "away" not in text and "gone" not in text


def test_it_is_shown_before_it_can_be_downloaded(make_panel, monkeypatch):
    shown, said = [], []
    monkeypatch.setattr(report, "display", shown.append)
    monkeypatch.setattr(report, "say", said.append)
    box = show_report(make_panel())
    button, output = box.children
    assert shown[1] is box and output.value == "" and "make a report" in said[0]
    states = []
    output.observe(lambda change: states.append(change["new"]), names="value")
    button.click()
    assert "Looking at this machine" in states[0]
    link = re.search(r'download="newllm-report.txt" href="data:text/plain;base64,([^"]+)"', states[1])
    text = base64.b64decode(link[1]).decode()
    assert text.startswith("New-LLM report") and states[1].index("== Versions") < link.start()
    assert "sent nowhere" in states[1]


def test_all_codes_are_in_the_cell(monkeypatch):
    shown = []
    monkeypatch.setattr(report, "display", lambda content: shown.append(getattr(content, "data", "")))
    show_report()
    html = shown[0]
    assert html.startswith("<details ") and all(f"<b>{code}</b>" in html for code in CODES)
