"""The notebooks in Japanese are those in English, with texts of one table."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH = sorted((ROOT / "notebooks").glob("*.ipynb"))
specification = importlib.util.spec_from_file_location("japanese_notebooks", ROOT / "scripts" / "japanese_notebooks.py")
script = importlib.util.module_from_spec(specification)
specification.loader.exec_module(script)


def table_of(**texts: str) -> script.Table:
    entries = (f"{script.ENGLISH}\n{english}\n{script.JAPANESE}\n{text}\n" for english, text in texts.items())
    return script.Table("\n".join(entries))


def test_every_text_has_its_japanese_and_no_file_is_stale():
    written, table = script.editions()
    assert not table.missing, f"paste into {script.TABLE.relative_to(ROOT)}, and fill in:\n\n{table.to_paste()}"
    assert table.left_over() == [], "no notebook says this"
    stale = [path.name for path, text in written.items() if not path.exists() or path.read_text("utf-8") != text]
    assert stale == [], "run python scripts/japanese_notebooks.py"
    assert {path.name for path in script.TABLE.parent.glob("*.ipynb")} == {path.name for path in ENGLISH}


@pytest.mark.parametrize("path", ENGLISH, ids=lambda path: path.stem)
def test_the_code_is_the_same_but_for_the_language(path):
    def code(path: Path) -> list[str]:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        return [ast.unparse(ast.parse(script.MAGIC.sub(r"\1'''\g<0>'''", source))) for source in code]

    (english, japanese) = code(path), code(script.TABLE.parent / path.name)
    differing = [(own, other) for own, other in zip(english, japanese, strict=True) if own != other]
    ((check_up, in_japanese),) = differing
    more = ("from newllm_lib.colab.page.languages import use_language", "use_language('ja')")
    assert [line for line in in_japanese.splitlines() if line not in more] == check_up.splitlines()


def test_a_text_is_taken_apart_and_put_together():
    table = table_of(**{"One.": "一。", "Two `a.b` more,": "二つ、", "a look": "見る", "{0} minutes": "{0} 分"})
    source = (
        "## a look\n\nOne. Two\n`a.b` more,\n\n| a look | 5 minutes |\n|---|---|\n| 1.5 minutes | 7 |\n- One.\n- One."
    )
    japanese = "## 見る\n\n一。二つ、\n\n| 見る | 5 分 |\n|---|---|\n| 1.5 分 | 7 |\n- 一。\n- 一。"
    assert script.japanese_text(source, table) == japanese and not table.missing
    assert script.japanese_code("#@title 3 · a look\nx = '# One.'  # One.\n", table) == (
        "#@title 3 · 見る\nx = '# One.'  # 一。\n"
    )
    assert table.left_over() == []
    drawing = "```\na\n\n# b\n```"
    assert script.japanese_text(f"{drawing}\n$$x$$", table) == f"{drawing}\n$$x$$" and list(table.missing) == [drawing]


def test_what_is_missing_is_printed_ready_to_paste():
    table = table_of(One="一")
    assert script.japanese_text("Not there.\nOne", table) == "Not there. 一" or table.missing
    pasted = script.Table(f"{table.to_paste().strip()}\nある。\n")
    assert set(pasted.texts.values()) == {"ある。"} and pasted.texts.keys() == table.missing.keys()


def test_marks_of_markdown_are_beside_letters():
    """A mark behind full-width punctuation and before a letter closes nothing."""
    texts = script.Table(script.TABLE.read_text(encoding="utf-8")).texts
    for english, japanese in texts.items():
        for mark in (r"\*\*", r"(?<!\*)\*(?!\*)"):
            opened = re.findall(rf"{mark}(.+?){mark}(.?)", japanese)
            assert len(re.findall(mark, japanese)) == 2 * len(opened) == len(re.findall(mark, english)), english
            assert not [words for words, behind in opened if re.search(r"\W$", words) and re.match(r"\w", behind)]
        for sign in ("`", "](", "{0}"):
            assert japanese.count(sign) == english.count(sign), (sign, english)
        assert set(re.findall(r"\$.+?\$", japanese)) == set(re.findall(r"\$.+?\$", english)), english
