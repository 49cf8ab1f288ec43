"""How replies are drawn: four sliders under the chat box, read when the next reply begins."""

import ipywidgets as widgets

from ..chat import Chat
from .page.notices import escape

AS_TRAINED = 0.0  # stands for None, which ipywidgets would take for no step at all
PENALTIES = [("as trained", AS_TRAINED), ("1 (none)", 1.0), *((f"{1 + k / 20:g}", 1 + k / 20) for k in range(1, 21))]


class SamplingSliders:
    """Temperature, top-p, length and repetition penalty.

    Args:
        max_new_tokens: where the length stands at first.
    """

    def __init__(self, max_new_tokens: int):
        layout = {"width": "auto", "min_width": "0", "margin": "2px 2px 2px 8px"}
        common = {"continuous_update": False}
        self.temperature = widgets.FloatSlider(
            min=0.0, max=2.0, step=0.05, value=0.8, readout_format=".2f", layout=widgets.Layout(**layout), **common
        )
        self.top_p = widgets.FloatSlider(
            min=0.05, max=1.0, step=0.05, value=0.95, readout_format=".2f", layout=widgets.Layout(**layout), **common
        )
        self.length = widgets.IntSlider(
            min=10, max=400, step=10, value=max_new_tokens, layout=widgets.Layout(**layout), **common
        )
        self.penalty = widgets.SelectionSlider(
            options=PENALTIES, value=AS_TRAINED, layout=widgets.Layout(**layout), **common
        )
        self.box = widgets.HBox(
            [
                labelled(self.temperature, "temperature", "0: always the likeliest token. Above 1: wild."),
                labelled(self.top_p, "top-p", "Draw among the likeliest that make up this share."),
                labelled(self.length, "length", "Tokens of a reply, at most."),
                labelled(self.penalty, "repetition penalty", "Above 1: what was said is said less often."),
            ],
            layout=widgets.Layout(flex_flow="row wrap", width="100%"),
        )

    def values(self) -> dict[str, float | None]:
        """What `Chat.set_sampling` takes: Colab's sliders have delivered 3.0 for 3, and 0.30000000000000004."""
        penalty = float(self.penalty.value)
        return {
            "max_new_tokens": int(self.length.value),
            "temperature": float(f"{self.temperature.value:.6g}"),
            "top_p": float(f"{self.top_p.value:.6g}"),
            "repetition_penalty": None if penalty == AS_TRAINED else penalty,
        }

    def apply(self, chat: Chat) -> None:
        """The next reply of `chat` is drawn as the sliders stand."""
        chat.set_sampling(**self.values())

    def sentence(self) -> str:
        """The sliders in words, for the transcript."""
        values = self.values()
        penalty = "as trained" if values["repetition_penalty"] is None else f"{values['repetition_penalty']:g}"
        return (
            f"temperature {values['temperature']:g}, top-p {values['top_p']:g}, at most {values['max_new_tokens']} "
            f"tokens, repetition penalty {penalty}"
        )


def labelled(widget: widgets.Widget, label: str, text: str) -> widgets.Widget:
    """A widget under its name and a line of help, at least as wide as a slider needs."""
    words = widgets.HTML(
        f'<div style="line-height:1.35;margin-top:4px"><b>{escape(label)}</b>'
        f'<div style="opacity:.75;font-size:12px;min-height:33px">{escape(text)}</div></div>',
        layout=widgets.Layout(width="auto"),
    )
    return widgets.VBox(
        [words, widget], layout=widgets.Layout(flex="1 1 200px", min_width="190px", margin="0 8px 4px 0")
    )
