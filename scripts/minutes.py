"""Write the minutes of newllm_lib/colab/page/minutes.json into the heads of the notebooks and both editions of
README_COLAB, or check that they are there. The panels read the same file.

usage: python scripts/minutes.py [--check]          (from anywhere)

The file has, of every notebook, machine and preset, the minutes of training and of the whole notebook; "~" marks what
was estimated, null what is not sensible. Exit codes: 0 done, 1 --check found a difference.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MINUTES = json.loads((ROOT / "newllm_lib/colab/page/minutes.json").read_text(encoding="utf-8"))
RULE = "|---|---|---|---|---|---|"
LEGEND = """\
Minutes; ~ is an estimate. The CPU's Demo was measured by `bash scripts/demo.sh`, with offline data on 2 cores of a
server that did other work, too; in a quiet hour it took half. What the rest comes from stands in `docs/RESULTS.md`.
"""
EDITIONS = MINUTES.pop("sentences")  # edition of README_COLAB -> what it says of a CPU's Demo and of a T4's Standard


def main() -> int:
    """Parse the arguments and write or compare the files."""
    parser = argparse.ArgumentParser(description="Write the table of minutes into notebooks and READMEs.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file differs")
    check, differing = parser.parse_args().check, []
    for path in [*sorted((ROOT / "notebooks").glob("*.ipynb")), *map(ROOT.joinpath, EDITIONS)]:
        before = path.read_text(encoding="utf-8")
        after = with_head(before, path.name[:2]) if path.suffix == ".ipynb" else with_rows(before, path.name)
        if after != before:
            differing.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(after, encoding="utf-8")
    if differing:
        print(", ".join(differing), "differ: run python scripts/minutes.py" if check else "written")
    return 1 if check and differing else 0


def of_notebook(number: str) -> dict:
    return next(minutes for folder, minutes in MINUTES.items() if folder.startswith(number))


def with_head(text: str, number: str) -> str:
    """The notebook with the table of its first cell and the sentence below it renewed, its first two columns kept."""
    notebook = json.loads(text)
    source = re.sub(r"Minutes; ~.*?\n\n", "", "".join(notebook["cells"][0]["source"]), flags=re.DOTALL)
    before, table, rest = re.fullmatch(r"(.*?)((?:^\|[^\n]+\n)+)(.*)", source, re.DOTALL | re.MULTILINE).groups()
    titles, _, *rows = (line.strip("|").split("|") for line in table.splitlines())
    cpu, t4 = (re.sub(r"\(estimated\)|: training", "", title).strip() for title in titles if re.search("CPU|T4", title))
    table = [f"|{titles[0]}|{titles[1]}| {cpu}: training | whole notebook | {t4}: training | whole notebook |", RULE]
    for name, purpose, *_ in rows:
        of_preset = [of_notebook(number)[machine][name.strip().lower()] for machine in ("cpu", "t4")]
        cells = [spoken(value) for pair in of_preset for value in pair or (None, None)]
        table.append(f"|{name}|{purpose}| {' | '.join(cells)} |")
    source = before + "\n".join(table) + f"\n\n{LEGEND}{rest}"
    notebook["cells"][0]["source"] = source.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def spoken(minutes: str | None) -> str:
    if minutes is None:
        return "not sensible"
    number = float(minutes.strip("~"))
    length = f"{number / 60:.1f} hours" if number >= 90 else f"{number:g} minute{'s' * (number != 1)}"
    return "~ " * minutes.startswith("~") + length


def with_rows(text: str, edition: str) -> str:
    """The edition with the minutes in its rows of notebooks renewed."""
    lines = text.splitlines(keepends=True)
    for at, line in enumerate(lines):
        if found := re.search(r"^\| \[!\[.+/notebooks/(?:ja/)?(\d\d)_", line):
            cells, minutes = line.split("|"), of_notebook(found[1])
            pairs = zip(EDITIONS[edition], (minutes["cpu"]["demo"], minutes["t4"]["standard"]), strict=True)
            said = [sentence.format(training=pair[0].strip("~"), whole=pair[1].strip("~")) for sentence, pair in pairs]
            cells[4] = f" {''.join(said)} "
            lines[at] = "|".join(cells)
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
