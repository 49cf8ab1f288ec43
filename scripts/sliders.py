"""Write into both editions of README_COLAB which slider is which flag, where their names differ, or check that.

usage: python scripts/sliders.py [--check]          (with the library installed)

The table is the one whose first line has <!-- sliders -->. Exit codes: 0 done, 1 --check found a difference.
"""

import argparse
import sys
from pathlib import Path

from newllm_lib.colab.page.languages import text, use_language
from newllm_lib.colab.panel import stage
from newllm_lib.colab.panel.controls import label_of, metadata_of, settings_fields

ROOT = Path(__file__).parents[1]
EDITIONS = {"README_COLAB.md": "en", "README_COLAB.ja.md": "ja"}
MARK = "<!-- sliders -->"


def main() -> int:
    """Parse the arguments and write or compare the two tables."""
    parser = argparse.ArgumentParser(description="Write the table of sliders and flags into README_COLAB.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if an edition differs")
    check, differing = parser.parse_args().check, []
    for name, language in EDITIONS.items():
        before = (ROOT / name).read_text(encoding="utf-8")
        if (after := with_table(before, language)) != before:
            differing.append(name)
            if not check:
                (ROOT / name).write_text(after, encoding="utf-8")
    if differing:
        print(", ".join(differing), "differ: run python scripts/sliders.py" if check else "written")
    return 1 if check and differing else 0


def with_table(edition: str, language: str) -> str:
    """The edition with the rows below its marked line renewed, one for each group of settings."""
    lines = edition.splitlines(keepends=True)
    begin = next(at for at, line in enumerate(lines) if MARK in line) + 2
    end = next(at for at in range(begin, len(lines)) if not lines[at].startswith("|"))
    use_language(language)
    rows = [f"| {text(group)} | {', '.join(entries)} |\n" for group, entries in entries_by_group().items()]
    return "".join([*lines[:begin], *rows, *lines[end:]])


def entries_by_group() -> dict[str, list[str]]:
    """Group -> "*slider* `--flag`" of every setting that a panel offers under another name than its flag's."""
    groups: dict[str, dict[str, None]] = {}
    for notebook in (found for found in vars(stage).values() if isinstance(found, stage.NotebookStage)):
        for field in settings_fields(notebook.arguments):
            is_offered = field.name not in notebook.hidden
            if is_offered and label_of(field.name) != field.name.replace("_", " "):
                entry = f"*{text(label_of(field.name))}* `--{field.name}`"
                groups.setdefault(metadata_of(field)["group"], {})[entry] = None
    return {group: list(entries) for group, entries in groups.items()}


if __name__ == "__main__":
    sys.exit(main())
