"""A box to talk to the trained models in, one or two at a time; each reply is streamed into one output.

Core widgets only, and no thread. In Jupyter a reply is made between the kernel's messages, so that Stop is heard. Colab
shows only what is sent from inside a message: there the click's own callback makes it, and it is stopped as a cell is.
"""

import asyncio
import contextlib
import datetime
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ipywidgets as widgets
from accelerate.utils.memory import clear_device_cache
from IPython.display import display

from ..chat import Chat
from ..training.checkpoint import FINAL_FOLDER, weights_folder
from ..training.trained_model import open_model
from .chat_controls import MemoryControls, SamplingSliders, memory_html, memory_note, pictures_html
from .page.languages import text, translate
from .page.notices import error_html, in_one_sentence, say
from .page.pieces import GRID, button, columns_html, download_html, html_widget, small_html, wrapping_row
from .storage import on_colab

INTERVAL_SECONDS = 0.1  # between two updates of the page
NOBODY = "nobody else"
DISCLAIMER = (
    "This is a small language model, no assistant: it has learned what conversations sound like. It knows no facts, "
    "cannot look anything up and does not know you. What it says may be wrong or senseless, and is nobody's opinion."
)


class ChatBox:
    """The box for the models in `folders`, by name. The user chooses one or two of them, each with a
    conversation of its own. Without a `seed` replies are drawn otherwise every time."""

    max_new_tokens = 200

    def __init__(self, folders: Mapping[str, str | Path], seed: int | None = None):
        self.folders, self.seed = folders, seed
        self.chats: dict[str, Chat] = {}
        self.counts: dict[str, list[int]] = {}  # bytes held after each reply
        self.is_busy = self.is_stopped = False
        self.task: asyncio.Task | None = None
        names, narrow = list(self.folders), widgets.Layout(width="150px")
        options = [(translate(name), name) for name in (NOBODY, *names)]
        self.first = widgets.Dropdown(options=options[1:], layout=narrow)
        self.second = widgets.Dropdown(options=options, value=[*names, NOBODY][1], layout=narrow)
        self.choice = wrapping_row(widgets.HTML("<b>A</b>"), self.first, widgets.HTML("<b>B</b>"), self.second)
        self.choice.layout.display = None if len(names) > 1 else "none"
        wide = widgets.Layout(width="auto", flex="1 1 240px")
        self.text = widgets.Text(placeholder=text("Say something"), layout=wide)
        presses = {"Send": self.send, "Stop": self.stop, "Reset": self.reset}
        buttons = [button(name, press, "80px") for name, press in presses.items()]
        self.send_button, self.stop_button, self.reset_button = buttons
        self.stop_button.disabled = True
        if on_colab():
            self.stop_button.layout.display = "none"
            buttons.append(widgets.HTML(small_html("To stop a reply: Runtime > Interrupt execution.")))
        self.output, self.notice, self.remembered, self.picture, self.links = (html_widget() for _ in range(5))
        self.sampling = SamplingSliders(self.max_new_tokens)
        memories = Path(next(iter(self.folders.values()))).parent / "memories"
        self.memory = MemoryControls(memories, self.open_chats, self._begins_anew)
        panes = widgets.Accordion([self.sampling.box, self.memory.box], selected_index=None)
        for number, title in enumerate(("How replies are drawn", "Memory: save it, go on from it")):
            panes.set_title(number, translate(title))
        line = wrapping_row(self.text, *buttons)
        parts = [self.output, self.notice, self.choice, line, self.remembered, self.picture, self.links, panes]
        self.box = widgets.VBox(parts, layout=widgets.Layout(width="100%", max_width="1000px"))
        with warnings.catch_warnings():
            # ipywidgets 8 advises to watch `value` instead, which would send what is left in the field by a mere click.
            warnings.simplefilter("ignore")
            self.text.on_submit(lambda text: self.send())
        for chosen in (self.first, self.second):
            chosen.observe(lambda change: self._show(), names="value")
        self._show()

    def send(self) -> None:
        said = self.text.value.strip()
        if not said or self.is_busy:
            return
        self._set_busy(True)  # at once: before a task begins another click may come
        self.text.value = ""
        loop = None
        with contextlib.suppress(RuntimeError):  # no loop runs where no click is heard
            loop = None if on_colab() else asyncio.get_running_loop()
        if loop is None:
            self.say_and_wait(said)
        else:
            self.task = loop.create_task(self._in_turns(self._exchange(said)))  # kept: a lost task may be collected

    def say_and_wait(self, said: str) -> None:
        """Say something, and return when the replies are complete. ■ ends them early."""
        for _ in self._exchange(said):
            continue

    async def _in_turns(self, exchange: Iterator[None]) -> None:
        """Make the replies piece by piece; between two pieces the kernel hears what the page sends, such as Stop."""
        for _ in exchange:
            await asyncio.sleep(0)

    def stop(self) -> None:
        self.is_stopped = True  # what has been said so far is kept

    def _exchange(self, said: str) -> Iterator[None]:
        """Say the same to all who are spoken to, and show the replies as they grow, a piece of each in turn."""
        self._set_busy(True)
        self.notice.value = ""
        try:
            if not all(name in self.chats for name in self.spoken_to()):
                self.notice.value = f'<div style="opacity:.75">{text("Opening the model …")}</div>'
                yield
            chats = self.open_chats()
            self.notice.value = ""
            yield from self._stream(chats, said)
        except KeyboardInterrupt:
            self.notice.value = ""  # the conversation keeps what has been said so far
        except Exception as error:  # inside a callback no other code would show it
            sys.last_value = error  # where the report looks for it
            self.notice.value = error_html(error)
        finally:
            self._set_busy(False)
            self._show()

    def _stream(self, chats: dict[str, Chat], said: str) -> Iterator[None]:
        for chat in chats.values():
            chat.set_sampling(**self.sampling.values())
        replies = {name: chat.reply(said) for name, chat in chats.items()}
        texts, going, shown_at = dict.fromkeys(chats, ""), list(chats), 0.0
        try:
            while going and not self.is_stopped:
                for name in tuple(going):
                    if (piece := next(replies[name], None)) is None:
                        going.remove(name)
                    else:
                        texts[name] += piece
                if going and time.monotonic() - shown_at >= INTERVAL_SECONDS:
                    so_far = {name: [{"role": "assistant", "content": texts[name] + " ▌"}] for name in going}
                    self._show_turns({name: chat.messages + so_far.get(name, []) for name, chat in chats.items()})
                    shown_at = time.monotonic()
                yield
        finally:
            for name, reply in replies.items():
                reply.close()
                self.counts.setdefault(name, []).append(chats[name].state_bytes)

    def _set_busy(self, is_busy: bool) -> None:
        self.is_busy, self.is_stopped = is_busy, False
        self.stop_button.disabled = not is_busy
        for control in (self.send_button, self.reset_button, self.first, self.second):
            control.disabled = is_busy
        self.memory.lock(is_busy)

    def reset(self) -> None:
        self.notice.value = ""
        for name in self.chats.keys() & set(self.spoken_to()):
            self.chats[name].reset()
        self._begins_anew(*self.spoken_to())

    def _begins_anew(self, *names: str) -> None:
        for name in names:
            self.counts.pop(name, None)
        self._show()

    def spoken_to(self) -> tuple[str, ...]:
        """The models that hear what is said: A, and B if it is another one."""
        return tuple(name for name in dict.fromkeys((self.first.value, self.second.value)) if name != NOBODY)

    def open_chats(self) -> dict[str, Chat]:
        """Name -> conversation of who is spoken to; a model is loaded when that happens for the first time."""
        for name in self.spoken_to():
            if name not in self.chats:
                self.chats[name] = Chat(self.folders[name], seed=self.seed)
        return {name: self.chats[name] for name in self.spoken_to()}

    def _show(self) -> None:
        chats = {name: self.chats[name] for name in self.spoken_to() if name in self.chats}
        self._show_turns({name: chat.messages for name, chat in chats.items()})
        self.remembered.value, self.links.value = memory_html(chats, self.counts), ""
        if any(chat.messages or chat.memory for chat in chats.values()):
            transcript = transcript_text(chats, self.sampling.sentence())
            self.links.value = download_html("newllm-conversation.txt", transcript, "Download this conversation")
        self.picture.value = pictures_html(chats) if self.memory.picture.value else ""

    def _show_turns(self, conversations: dict[str, Sequence[dict[str, str]]]) -> None:
        notes = {name: memory_note(self.chats[name]) for name in conversations}
        shown = f'<div style="opacity:.75">{text("Nothing has been said yet.")}</div>'
        if any(notes.values()) or any(conversations.values()):
            shown = columns_html(conversations, notes)
        style, disclaimer = f"border:1px solid {GRID};border-radius:8px;padding:6px 10px", "line-height:1.4"
        self.output.value = f'<div style="{style}">{small_html(DISCLAIMER, disclaimer)}{shown}</div>'


class SideBySide(ChatBox):
    """The same words to a tuned model and to its base, which is the same model with its adapters off."""

    max_new_tokens = 100  # of each of two replies of a large model, maybe on a CPU

    def __init__(self, folder: str | Path, seed: int | None = None):
        super().__init__({"base": folder, "tuned": folder}, seed)
        self.choice.layout.display = "none"

    def open_chats(self) -> dict[str, Chat]:
        if not self.chats:
            clear_device_cache(garbage_collection=True)  # the model that was trained may still be there
            trained = open_model(self.folders["tuned"])
            self.chats = {name: Chat(trained, seed=self.seed, base=name == "base") for name in self.folders}
        return self.chats


@in_one_sentence()
def show_chat(folders: Sequence[str | Path], opening: str = "", before: Path | None = None) -> ChatBox:
    """Display the box, with one exchange if there is an `opening`; `before`: the run gone on from, to talk to, too."""
    named = {Path(folder).name: folder for folder in folders}
    finals = {f"{name}, last update": Path(folder) / FINAL_FOLDER for name, folder in named.items()}
    if before is not None:
        named |= {f"{name} before": before / name for name in list(named)}
    named |= {name: folder for name, folder in finals.items() if folder.is_dir()}
    box = _open(ChatBox(named), opening)
    names = text(" and ").join(map(translate, named))
    say(f"{names} can be talked to: type above, then Send. A small model is no assistant.")
    return box


@in_one_sentence()
def show_side_by_side(folder: str | Path, opening: str = "", which: str = "best") -> SideBySide:
    """Display base and tuned model side by side, with one exchange already made as in `show_chat`; `which` as in
    `weights_folder`."""
    box = _open(SideBySide(weights_folder(folder, which)), opening)
    say("Base and tuned model hear the same: type above, then Send. A small model is no assistant.")
    return box


def _open(box: ChatBox, opening: str) -> ChatBox:
    display(box.box)
    if opening:
        box.open_chats()  # raises where `send` would only show the sentence
        box.say_and_wait(opening)
    return box


def transcript_text(chats: Mapping[str, Chat], drawn: str) -> str:
    """Every model's conversation, one after the other; `drawn` says how replies are drawn."""
    now = datetime.datetime.now(datetime.timezone.utc)
    when = f"A conversation of {now:%Y-%m-%d %H:%M} UTC ({drawn})."
    told = translate(f"{when} Written by small language models; not to be relied on.") + "\n"
    for name, chat in chats.items():
        told += f"\n== {translate(name)}\n"
        if chat.memory is not None:
            told += translate(f"[goes on from a memory of {chat.memory.tokens:,} tokens]") + "\n"
        for message in chat.messages:
            told += f"{translate('You' if message['role'] == 'user' else name)}: {message['content']}\n"
    return told
