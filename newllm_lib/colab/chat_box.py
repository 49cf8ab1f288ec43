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
from accelerate.utils.memory import clear_device_cache
from IPython.display import display

from ..chat import Chat
from ..errors import InputError
from ..stages.evaluate import open_model
from .bubbles import bubbles_html
from .notices import GRID, in_one_sentence, quiet_notebook, say, sentence_html

INTERVAL_SECONDS = 0.1  # between two updates of the page
SHORT_REPLY = 100  # tokens: two replies are made at a time, on a CPU of a large model
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
            chats = self.open_chats()
        except InputError as error:
            self.output.value = sentence_html(str(error), "fail")
            return
        with contextlib.suppress(KeyboardInterrupt):  # the conversation keeps what has been said so far
            self._stream(chats, said)
        self._show()

    def _stream(self, chats: dict[str, Chat], said: str) -> None:
        """Say the same to all of them, and show the replies as they grow, a piece of each in turn."""
        before = {name: list(chat.messages) for name, chat in chats.items()}
        replies = {name: chat.reply(said) for name, chat in chats.items()}
        texts, going, shown_at = dict.fromkeys(chats, ""), list(chats), 0.0
        try:
            while going:
                for name in tuple(going):
                    if (piece := next(replies[name], None)) is None:
                        going.remove(name)
                    else:
                        texts[name] += piece
                if going and time.monotonic() - shown_at >= INTERVAL_SECONDS:
                    self._show(
                        {name: [*before[name], *_turn(said, text, name in going)] for name, text in texts.items()}
                    )
                    shown_at = time.monotonic()
        finally:
            for reply in replies.values():
                reply.close()

    def reset(self) -> None:
        """Begin a new conversation with who is spoken to."""
        for name in self.spoken_to():
            if name in self.chats:
                self.chats[name].reset()
        self._show()

    def spoken_to(self) -> tuple[str, ...]:
        """The models that hear what is said: the chosen one."""
        return (self.model.value,)

    def open_chats(self) -> dict[str, Chat]:
        """Name -> conversation of who is spoken to; a model is loaded when that happens for the first time."""
        for name in self.spoken_to():
            if name not in self.chats:
                self.chats[name] = Chat(self.folders[name], seed=self.seed)
        return {name: self.chats[name] for name in self.spoken_to()}

    def _show(self, conversations: dict[str, Sequence[dict[str, str]]] | None = None) -> None:
        if conversations is None:
            conversations = {name: self.chats[name].messages for name in self.spoken_to() if name in self.chats}
        nothing = '<div style="opacity:.75">Nothing has been said yet.</div>'
        self.output.value = (
            f'<div style="border:1px solid {GRID};border-radius:8px;padding:6px 10px">'
            f'<div style="opacity:.75;font-size:12px;line-height:1.4">{DISCLAIMER}</div>'
            f"{self.turns_html(conversations) if any(conversations.values()) else nothing}</div>"
        )

    def turns_html(self, conversations: dict[str, Sequence[dict[str, str]]]) -> str:
        """What has been said, as bubbles."""
        return "".join(bubbles_html(messages) for messages in conversations.values())


class SideBySide(ChatBox):
    """The same words to a tuned model and to the base it was tuned from, each in a conversation of its own. One model
    is loaded: the base is what it says with its adapters off."""

    NAMES = ("base", "tuned")

    def __init__(self, folder: str | Path, seed: int | None = None):
        super().__init__([folder], seed)
        self.box.layout.max_width = "1000px"

    def spoken_to(self) -> tuple[str, ...]:
        return self.NAMES

    def open_chats(self) -> dict[str, Chat]:
        if not self.chats:
            (folder,) = self.folders.values()
            clear_device_cache(garbage_collection=True)  # the model that was trained may still be there
            trained = open_model(folder)
            self.chats = {
                name: Chat(trained, max_new_tokens=SHORT_REPLY, seed=self.seed, base=name == "base")
                for name in self.NAMES
            }
        return self.chats

    def turns_html(self, conversations: dict[str, Sequence[dict[str, str]]]) -> str:
        columns = "".join(
            f'<div style="flex:1 1 260px;min-width:240px"><b>{name}</b>{bubbles_html(messages)}</div>'
            for name, messages in conversations.items()
        )
        return f'<div style="display:flex;flex-wrap:wrap;gap:4px 16px;margin-top:6px">{columns}</div>'


def _turn(said: str, reply: str, is_going: bool) -> list[dict[str, str]]:
    reply += " ▌" if is_going else ""
    return [{"role": "user", "content": said}, {"role": "assistant", "content": reply}]


@in_one_sentence
def show_chat(folders: Sequence[str | Path], opening: str = "") -> ChatBox:
    """Display the box, with one exchange already made if `opening` says something: so the cell has something to show,
    and a model that cannot be loaded is known at once."""
    box = _open(ChatBox(folders), opening)
    names = " and ".join(box.folders)
    say(f"{names} can be talked to: type above, then Send. A small model is no assistant.")
    return box


@in_one_sentence
def show_side_by_side(folder: str | Path, opening: str = "") -> SideBySide:
    """Display base and tuned model side by side, with one exchange already made as in `show_chat`."""
    box = _open(SideBySide(folder), opening)
    say("Base and tuned model hear the same: type above, then Send. A small model is no assistant.")
    return box


def _open(box: ChatBox, opening: str) -> ChatBox:
    quiet_notebook()
    display(box.box)
    if opening:
        box.open_chats()  # raises where `send` would only show the sentence
        box.text.value = opening
        box.send()
    return box
