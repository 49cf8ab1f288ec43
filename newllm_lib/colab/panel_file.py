"""What a settings panel keeps from one session to the next, in its stage's folder."""

import json
from pathlib import Path
from typing import Any

from .languages import LANGUAGES

PANEL_FILE = "settings-panel.json"


def read_panel_file(folder: Path) -> dict[str, Any]:
    """{"preset", "values", "language", maybe "start"}; {} if there is none yet, or none of ours: it is written anew at
    the next change."""
    try:
        saved = json.loads((folder / PANEL_FILE).read_text(encoding="utf-8"))
        return saved if isinstance(saved["values"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def last_language(runs: Path) -> str:
    """The language of the panel that was used last, in whichever notebook; at first English."""
    files = sorted(runs.glob(f"*/{PANEL_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = (read_panel_file(path.parent).get("language") for path in files)
    return next((language for language in found if language in LANGUAGES), "en")
