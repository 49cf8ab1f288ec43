"""A box to talk to the trained models in, their replies streamed into one output that is updated in place.

Core widgets only, and no thread: a reply is made inside the click's own callback, during which the kernel is busy and
the page shows each update as it is sent.
"""

import contextlib
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets
from IPython.display import display

from ..chat import Chat
from ..errors import InputError
from .bubbles import bubbles_html
from .notices import GRID, in_one_sentence, quiet_notebook, say, sentence_html

INTERVAL_SECONDS = 0.1  # between two updates of the page
DISCLAIMER = (
    "This is a small language model, no assistant: it has learned what conversations sound like. What it says may be "
    "wrong or senseless, and is nobody's opinion."
)


class ChatBox:
    """Text field, Send and Reset under the conversation; with several models, a choice between them, each with a
    conversation of its own.

    Args:
        folders: the folders of the trained models.
        seed: of what is drawn; None: other replies every time.
    """

    def __init__(self, folders: Sequence[str | Path], seed: int | None = None):
        self.folders = {Path(folder).name: folder for folder in folders}
        self.seed = seed
        self.chats: dict[str, Chat] = {}
        self.model = widgets.Dropdown(options=list(self.folders), layout=widgets.Layout(width="160px"))
        self.text = widgets.Text(placeholder="Say something", layout=widgets.Layout(width="auto", flex="1 1 240px"))
        self.send_button = widgets.Button(description="Send", layout=widgets.Layout(width="80px"))
        self.reset_button = widgets.Button(description="Reset", layout=widgets.Layout(width="80px"))
        self.output = widgets.HTML(layout=widgets.Layout(width="auto"))
        chosen = [self.model] if len(self.folders) > 1 else []
        line = widgets.HBox(
            [*chosen, self.text, self.send_button, self.reset_button],
            layout=widgets.Layout(flex_flow="row wrap", width="100%"),
        )
        self.box = widgets.VBox([self.output, line], layout=widgets.Layout(width="100%", max_width="760px"))
        self.send_button.on_click(lambda button: self.send())
        self.reset_button.on_click(lambda button: self.reset())
        with warnings.catch_warnings():
            # ipywidgets 8 advises to watch `value` instead, which would send what is left in the field by a mere click.
            warnings.simplefilter("ignore")
            self.text.on_submit(lambda text: self.send())
        self.model.observe(lambda change: self._show(), names="value")
        self._show()

    def send(self) -> None:
        """Say what stands in the text field, and show the reply as it comes. ■ ends a reply early."""
        said = self.text.value.strip()
        if not said:
            return
        self.text.value = ""
        try:
            chat = self._chat()
        except InputError as error:
            self.output.value = sentence_html(str(error), "fail")
            return
        with contextlib.suppress(KeyboardInterrupt):  # the conversation keeps what has been said so far
            self._stream(chat, said)
        self._show()

    def _stream(self, chat: Chat, said: str) -> None:
        before, reply, shown_at = list(chat.messages), "", 0.0
        for piece in chat.reply(said):
            reply += piece
            if time.monotonic() - shown_at >= INTERVAL_SECONDS:
                turns = [{"role": "user", "content": said}, {"role": "assistant", "content": reply + " ▌"}]
                self._show([*before, *turns])
                shown_at = time.monotonic()

    def reset(self) -> None:
        """Begin a new conversation with the chosen model."""
        if self.model.value in self.chats:
            self.chats[self.model.value].reset()
        self._show()

    def _chat(self) -> Chat:
        """The conversation with the chosen model, which is loaded when it is first spoken to."""
        name = self.model.value
        if name not in self.chats:
            self.chats[name] = Chat(self.folders[name], seed=self.seed)
        return self.chats[name]

    def _show(self, messages: Sequence[dict[str, str]] | None = None) -> None:
        if messages is None:
            chat = self.chats.get(self.model.value)
            messages = [] if chat is None else chat.messages
        turns = bubbles_html(messages) or '<div style="opacity:.75">Nothing has been said yet.</div>'
        self.output.value = (
            f'<div style="border:1px solid {GRID};border-radius:8px;padding:6px 10px">'
            f'<div style="opacity:.75;font-size:12px;line-height:1.4">{DISCLAIMER}</div>{turns}</div>'
        )


@in_one_sentence
def show_chat(folders: Sequence[str | Path], opening: str = "") -> ChatBox:
    """Display the box, with one exchange already made if `opening` says something: so the cell has something to show,
    and a model that cannot be loaded is known at once."""
    quiet_notebook()
    box = ChatBox(folders)
    display(box.box)
    if opening:
        box._chat()  # raises where `send` would only show the sentence
        box.text.value = opening
        box.send()
    names = " and ".join(box.folders)
    say(f"{names} can be talked to: type above, then Send. A small model is no assistant.")
    return box
