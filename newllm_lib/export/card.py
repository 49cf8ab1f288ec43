"""What the card of a finished run says, for whoever shows or shares the model."""

import re
from pathlib import Path

from ..errors import InputError
from ..training import checkpoint
from ..training.run import CARD_FILE


def read_card(folder: Path) -> dict[str, str]:
    """What the card of a finished run says: text -> where it is from and its licence, metric -> its value. Raises
    InputError: there is no card, or it leaves out a licence or the metrics of the run."""
    path = folder / CARD_FILE
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    rows, texts = dict(re.findall(r"^\| (.+?) \| (.+) \|$", card, re.MULTILINE)), ("trained on", "held out")
    metrics = {name: rows[name] for name in checkpoint.read_results(folder) or () if name in rows}
    missing = [name for name in texts if "(licence: " not in rows.get(name, "")] + ["metrics"] * (not metrics)
    if missing:
        problem = f"does not say everything that a user of the model has to know ({', '.join(missing)})"
        remedy = "delete results.json beside it and run the training again, which then only scores the model"
        raise InputError(f"{str(path)!r} {problem}; {remedy}.", "NL-404")
    return {name: rows[name] for name in texts} | metrics
