"""docs/GUIDES.md names tests that exist: a promise whose test was renamed or removed is seen."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [line for line in (ROOT / "docs" / "GUIDES.md").read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
PROMISES = [line for line in ROWS if re.match(r"\| [D\d]", line)]


def named_tests() -> list[tuple[str, str]]:
    """(file, test or "") in the order of the table; `::name` alone is of the file before it in the same row."""
    found = []
    for line in PROMISES:
        file = ""
        for path, name in re.findall(r"(tests/[\w/]+\.py)?(?:::(\w+))?", line.rsplit(" | ", 1)[1]):
            file = path or file
            if path or name:
                found.append((file, name))
    return found


@pytest.mark.parametrize(("file", "name"), sorted(set(named_tests())))
def test_a_named_test_exists(file, name):
    path = ROOT / file
    assert path.is_file(), f"{file} is named and not there"
    if name:
        assert re.search(rf"^def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE), f"{file} has no {name}"


def test_every_promise_has_four_cells_and_a_proof():
    assert len(PROMISES) >= 95
    for line in PROMISES:
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert len(cells) == 4 and all(cells), line[:80]
