"""Write notebooks/ja/ from the notebooks in English and one table, notebooks/ja/translations.md.

usage: python scripts/japanese_notebooks.py            write what is stale
       python scripts/japanese_notebooks.py --check    change nothing; say what is stale

The table has each English text once and below it its Japanese. A text is a heading, a sentence, a cell of a table, a
drawing, the title of a code cell or a comment in it; code stays as it is. {0}, {1} may stand for the numbers of a text.
Texts that have no Japanese are printed as the table wants them, to be pasted at its end and filled in, and texts of the
table that no notebook has are named. Exit codes: 0 all is well, 1 something is stale, missing or left over.
"""

import argparse
import io
import json
import re
import sys
import tokenize
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "notebooks" / "ja" / "translations.md"
ENGLISH, JAPANESE = "<!-- en -->", "<!-- ja -->"
# Without a letter that a reader would read, or in the words of a formula: as they are in every language.
AS_IT_IS = re.compile(r"\$\$.*|[^A-Za-z]*|\[[\w\s,+*-]*\]", re.DOTALL)
NUMBER = re.compile(r"\d[\d,.]*(?<![,.])")
WIDE = r"[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]"  # beside it no blank parts two sentences
MARK = re.compile(r"\s*(?:#+|[-*]|\d+\.) +")
SENTENCE_END = re.compile(r"(?<=[.!?]) +|(?<=[.!?]\*\*) +")
COMMENT = re.compile(r"(#@title \d+ · |# )(.+)")
# The first cell that speaks says in which language.
CHECK_UP = "from newllm_lib.colab.check_up import show_check_up\n\n"
IN_JAPANESE = CHECK_UP[:-1] + 'from newllm_lib.colab.page.languages import use_language\n\nuse_language("ja")\n'
MAGIC = re.compile(r"^(\s*)[!%].*", re.MULTILINE)  # a line that is IPython's and not Python's

Translate = Callable[[str], str]


class Table:
    """English text -> Japanese text. Remembers what it was asked for in vain, and what for at all."""

    def __init__(self, content: str):
        entries = [entry.partition(JAPANESE) for entry in content.split(ENGLISH)[1:]]
        self.texts = {key_of(english): japanese.strip("\n") for english, _, japanese in entries}
        self.missing: dict[str, str] = {}  # key -> the text as the notebook has it
        self.used: set[str] = set()

    def __call__(self, english: str) -> str:
        """The Japanese of a text; else of the text with {0}, {1} ... in place of its numbers; else the text itself."""
        if AS_IT_IS.fullmatch(english):
            return english
        numbers = NUMBER.findall(english)
        count = iter(range(len(numbers)))
        for key, values in (
            (key_of(english), ()),
            (key_of(NUMBER.sub(lambda _: f"{{{next(count)}}}", english)), numbers),
        ):
            if self.texts.get(key):
                self.used.add(key)
                japanese = self.texts[key]
                for place, value in enumerate(values):
                    japanese = japanese.replace(f"{{{place}}}", value)
                return japanese
        self.missing.setdefault(key_of(english), english)
        return english

    def to_paste(self) -> str:
        """What is missing, as the table wants it."""
        return "\n\n".join(f"{ENGLISH}\n{text.strip()}\n{JAPANESE}\n" for text in self.missing.values())

    def left_over(self) -> list[str]:
        return [key for key in self.texts if key not in self.used]


def key_of(text: str) -> str:
    """The same for a paragraph however its lines are broken; the lines of a drawing are kept."""
    return text.strip("\n") if text.lstrip().startswith("```") else " ".join(text.split())


def in_japanese(notebook: dict, translate: Translate) -> dict:
    """The notebook with its texts translated."""
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        made = (japanese_code if cell["cell_type"] == "code" else japanese_text)(source, translate)
        if cell["id"] == "check-up":
            made = made.replace(CHECK_UP, IN_JAPANESE)
        cells.append({**cell, "source": made.splitlines(keepends=True)})
    return {**notebook, "cells": cells}


def japanese_text(source: str, translate: Translate) -> str:
    """A cell of Markdown."""
    return "\n".join(japanese_block(block, translate) for block in blocks_of(source))


def blocks_of(source: str) -> list[str]:
    """Paragraphs, items of lists and drawings; headings, rows of tables, lines with badges and blank lines alone."""
    blocks, is_open = [], False  # what the next line may be added to
    for line in source.split("\n"):
        is_drawing = bool(blocks) and blocks[-1].startswith("```") and blocks[-1].count("```") == 1
        is_alone = not line.strip() or line.startswith(("#", "|", "[![", "```", "$$"))
        if is_drawing or (is_open and not is_alone and not MARK.match(line)):
            blocks[-1] += f"\n{line}"
        else:
            blocks.append(line)
            is_open = not is_alone
    return blocks


def japanese_block(block: str, translate: Translate) -> str:
    if block.startswith("[!["):
        return badges_in_japanese(block)
    if block.startswith("|"):
        cells = [cell.strip() for cell in block.strip("|").split("|")]
        return block if set("".join(cells)) <= set("-: ") else f"| {' | '.join(map(translate, cells))} |"
    if block.startswith("```"):
        return translate(block)
    mark = MARK.match(block)
    sentences = SENTENCE_END.split(" ".join(block[mark.end() :].split() if mark else block.split()))
    said = "\n".join(map(translate, sentences))
    return (mark[0] if mark else "") + re.sub(rf"(?<={WIDE})\n|\n(?={WIDE})", "", said).replace("\n", " ")


def badges_in_japanese(line: str) -> str:
    """The links to this edition and the other one change places."""
    line = re.sub(r"/notebooks/(ja/)?", lambda found: "/notebooks/" if found[1] else "/notebooks/ja/", line)
    return line.replace("[日本語]", "[English]")


def japanese_code(source: str, translate: Translate) -> str:
    """A code cell: its title and its comments."""
    lines = source.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(MAGIC.sub(r"\1pass", source)).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("#@param"):
            row, column = token.start
            mark, comment = COMMENT.fullmatch(token.string).groups()
            lines[row - 1] = lines[row - 1][:column] + mark + translate(comment)
    return "\n".join(lines)


def editions() -> tuple[dict[Path, str], Table]:
    """Path of each notebook in Japanese -> what has to be in it, and the table after all of it was translated."""
    table = Table(TABLE.read_text(encoding="utf-8"))
    written = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = in_japanese(json.loads(path.read_text(encoding="utf-8")), table)
        written[TABLE.parent / path.name] = json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"
    return written, table


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Write notebooks/ja/ from the notebooks and the table of translations."
    )
    parser.add_argument("--check", action="store_true", help="change nothing; say what is stale")
    args = parser.parse_args()
    written, table = editions()
    stale = [path for path, text in written.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    stale += sorted(set(TABLE.parent.glob("*.ipynb")) - written.keys())
    for path in stale:
        if not args.check and path in written:
            path.write_text(written[path], encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'stale' if args.check or path not in written else 'written'}")
    if table.missing:
        print(f"\n{len(table.missing)} texts without Japanese, for {TABLE.relative_to(ROOT)}:\n\n{table.to_paste()}")
    for key in table.left_over():
        print(f"in no notebook: {key[:100]}")
    return int(bool((stale and args.check) or table.missing or table.left_over()))


if __name__ == "__main__":
    sys.exit(main())
