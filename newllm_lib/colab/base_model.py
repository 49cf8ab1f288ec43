"""Which large model is trained on, and under which terms: shown before it is used for the first time."""

from IPython.display import HTML, display

from ..adapters import offline_gemma
from ..training.model_card import BaseModel
from .page.notices import GRID, escape, in_one_sentence, quiet_notebook, say
from .panel.base_lookup import base_of, count_trainable
from .panel.settings_panel import SettingsPanel


@in_one_sentence
def show_base_model(panel: SettingsPanel) -> None:
    """Name the base model and its licence. The one of the package shows its terms and is converted, once."""
    quiet_notebook()
    args = panel.arguments(panel.models[0])
    base = base_of(args)
    if base.path == offline_gemma.NAME and not offline_gemma.converted_folder().exists():
        display(HTML(terms_html(offline_gemma.terms_text())))
        say(f"{base.name} is converted for its first use, once; this takes one to two minutes.", "note")
        offline_gemma.offline_gemma(terms_were_shown=True)
    say(sentence(base, count_trainable(args, base)))


def sentence(base: BaseModel, trainable: int) -> str:
    """What is trained on, under which licence, and what there is to know about the choice."""
    return (
        f"The base is {base.name}, licence: {base.licence}. It stays as it is; {trainable:,} parameters beside it are "
        f"trained. {base.note}"
    ).strip()


def terms_html(terms: str) -> str:
    """The terms in a box that scrolls."""
    return (
        "<b>The Gemma Terms of Use. By going on you accept them.</b>"
        f'<div style="max-height:220px;overflow-y:auto;border:1px solid {GRID};border-radius:8px;padding:6px 10px;'
        "margin:6px 0;white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px;line-height:1.45"
        f'">{escape(terms)}</div>'
    )
