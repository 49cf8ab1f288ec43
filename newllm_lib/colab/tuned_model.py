"""The cell that says which chat model is tuned by preferences, and trains a small one where there is none."""

from ..stages.sft import sft
from .page.notices import in_one_sentence, quiet_notebook, say
from .panel.base_lookup import base_of
from .panel.chat_models import chat_models, name_of, small_chat_model
from .panel.preference_panel import PreferencePanel
from .storage import drive_copier


@in_one_sentence
def show_tuned_model(panel: PreferencePanel) -> None:
    """Name the model that is tuned and its licence; train a small one if there is no other within reach."""
    quiet_notebook()
    if panel.lacks_chat_model():
        small = small_chat_model(panel.runs)
        say(
            "There is no chat model: neither DialoGPT-small from the hub, nor one of notebooks 2 to 4. A small one is "
            f"trained first, in {small.max_steps} updates; this takes about a minute. What it says makes no sense, but "
            "all that follows can be seen on it.",
            "note",
        )
        copier = drive_copier(panel.runs)
        sft(small, () if copier is None else (copier.callback(),))
        panel.refresh()
    args = panel.arguments(panel.models[0])
    base = base_of(args)
    is_reference = "It stays as it is, and is the reference; adapters beside it are trained."
    if args.sft_epochs > 0:
        is_reference = (
            "A copy of it first learns the answers as such and is the reference; adapters on that are trained."
        )
    others = [name_of(folder) for folder in chat_models(panel.runs) if str(folder) != base.path]
    sentences = [
        f"{base.name} is tuned, licence: {base.licence}.",
        is_reference,
        base.note,
        f"Other chat models here: {', '.join(others)}; the panel's base model may name one." if others else "",
    ]
    say(" ".join(filter(None, sentences)))
