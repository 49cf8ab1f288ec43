"""The report: useful to us, silent about its user, shown before it can be downloaded."""

import base64
import json
import re
import sys
from pathlib import Path

import pytest

from newllm_lib.colab import problem_report as report
from newllm_lib.colab.notices import in_one_sentence
from newllm_lib.colab.problem_report import codes_html, error_lines, report_text, show_report
from newllm_lib.data.files import read_rows
from newllm_lib.doctor import Finding
from newllm_lib.errors import CODES, InputError


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
    sys.last_value = error_of(in_one_sentence(lambda: 1 / 0))
    text = report_text(panel)
    for part in ("newllm 0.", "Python 3.", "torch ", "note  GPU: none", "NL-101", "preset smoke", "max_length = "):
        assert part in text
    assert "data = [left out]" in text and "data_source = file" in text
    assert '"step": 190' in text and '"step": 10,' not in text and "words" not in text
    assert "tiny-gpt2: there is no log" in text
    assert "ZeroDivisionError [NL-901] division by zero" in text and "[a cell or file of yours]:" in text


def test_it_is_made_whatever_is_missing(make_panel):
    assert "There is no settings panel" in report_text(None) and "None." in report_text(None)
    panel = make_panel()
    panel.controls["data"].widget.value = "/gone/far/away.txt"
    text = report_text(panel)
    assert "there is no log (InputError)" in text and "away" not in text and "gone" not in text


def test_it_is_silent_about_its_user(make_panel, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    own = tmp_path / "Letters to Bob.jsonl"
    own.write_text('{"text": "My dear Bob,"}\n{"text": 3}\n')
    panel = make_panel()
    panel.controls["data"].widget.value = str(own)
    secrets = ("Bob", "Letters", str(tmp_path), "abcdefghijklmnop", "dear", "ada@example.org")

    def own_row():
        raise InputError(f"data {str(own)!r}, row 1: got 'My dear Bob,'; file {own.name} is bad.", "NL-402")

    def foreign():
        try:
            list(read_rows(own, "data"))
            json.loads("My dear Bob,")
        except ValueError as error:
            raise RuntimeError("cannot read My dear Bob, ada@example.org hf_abcdefghijklmnop '/x/Letters'") from error

    for function in (own_row, in_one_sentence(own_row), in_one_sentence(foreign)):
        sys.last_value = error_of(function)
        text = report_text(panel)
        assert [secret for secret in secrets if secret in text] == [], text
        kind = (
            "RuntimeError [NL-901] [left out]" if "RuntimeError" in text else "InputError [NL-402] data '…', row 1: got"
        )
        assert kind in text


def test_what_a_reader_of_rows_complains_of_is_left_out(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[1,")

    def read():
        from newllm_lib.data import files

        files.json.loads("{My dear Bob")

    lines = error_lines(error_of(read))
    assert lines[0] == "JSONDecodeError [NL-901] [left out]" and any("json/" in line for line in lines)


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


def test_all_codes_are_in_the_cell():
    html = codes_html()
    assert html.startswith("<details ") and all(f"<b>{code}</b>" in html for code in CODES)
