"""How long a preset takes, whole notebook and training, from the table that READMEs and notebooks show, too."""

import functools
import json
from importlib.resources import files

from ...training.device import find_device
from ..page.languages import text, translate


@functools.cache
def table() -> dict:
    """Notebook -> machine -> preset -> minutes of training and of all of it, "~" before an estimate; None: too long."""
    return json.loads(files("newllm_lib.colab.page").joinpath("minutes.json").read_text(encoding="utf-8"))


def minutes_of_preset(folder: str, preset: str) -> str:
    """One sentence for a machine like this one; "" where the table has none."""
    machine = "t4" if find_device().kind == "cuda" else "cpu"
    found = table().get(folder, {}).get(machine, {}).get(preset)
    if found is None:
        return ""
    training, whole = found
    where = "2 CPU cores" if machine == "cpu" else "a T4"
    takes = f"the whole notebook takes {whole} minutes on {where}, {training} of them training"
    return translate(f"this preset as it is: {takes}") + text(" (~ is an estimate)") * ("~" in training + whole)
