"""How long a preset takes, whole notebook and training, from the table that READMEs and notebooks show, too."""

import functools
import json
from importlib.resources import files

from ...training.device import find_device
from ..page.languages import text


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
    phrase = "this preset as it is: the whole notebook takes {whole} minutes on a T4, {training} of them training"
    if machine == "cpu":
        phrase = (
            "this preset as it is: the whole notebook takes {whole} minutes on 2 CPU cores, {training} of them training"
        )
    return text(phrase, whole=found[1], training=found[0]) + text(" (~ is an estimate)") * ("~" in "".join(found))
