"""Which pretrained model is trained on, and under which terms: shown, or made, before it is used for the first time."""

from IPython.display import HTML, display

from ..adapters import offline_gemma
from ..stages.sft import sft
from .page.notices import AS_WRITTEN, GRID, escape, in_one_sentence, quiet_notebook, say
from .panel.base_lookup import base_of, count_trainable
from .panel.preference_panel import PreferencePanel
from .panel.settings_panel import SettingsPanel
from .panel.start_models import chat_models, name_of, small_chat_model
from .storage import drive_copier


@in_one_sentence
def show_base_model(panel: SettingsPanel) -> None:
    """Name the base model and its licence. The one of the package shows its terms and is converted, once."""
    quiet_notebook()
    args = panel.arguments(panel.models[0])
    base = base_of(args)
    if base.path == offline_gemma.NAME and not offline_gemma.converted_folder().exists():
        style = f"max-height:220px;overflow-y:auto;border:1px solid {GRID};border-radius:8px;padding:6px 10px;"
        style += f"margin:6px 0;{AS_WRITTEN};font-size:13px;line-height:1.45"
        accepts = "<b>The Gemma Terms of Use. By going on you accept them.</b>"
        display(HTML(f'{accepts}<div style="{style}">{escape(offline_gemma.terms_text())}</div>'))
        say(f"{base.name} is converted for its first use, once; this takes one to two minutes.", "note")
        offline_gemma.offline_gemma(terms_were_shown=True)
    stays = f"It stays as it is; {count_trainable(args, base):,} parameters beside it are trained."
    say(f"The base is {base.name}, licence: {base.licence}. {stays} {base.note}".strip())


@in_one_sentence
def show_tuned_model(panel: PreferencePanel) -> None:
    """Name the chat model that is tuned by preferences and its licence; train a small one if there is no other."""
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
    sentences = [f"{base.name} is tuned, licence: {base.licence}."]
    if args.sft_epochs > 0:
        sentences += [
            "A copy of it first learns the answers as such and is the reference; adapters on that are trained."
        ]
    else:
        sentences += ["It stays as it is, and is the reference; adapters beside it are trained."]
    others = [name_of(folder) for folder in chat_models(panel.runs) if str(folder) != base.path]
    if base.note:
        sentences.append(base.note)
    if others:
        sentences.append(f"Other chat models here: {', '.join(others)}; the panel's base model may name one.")
    say(" ".join(sentences))
