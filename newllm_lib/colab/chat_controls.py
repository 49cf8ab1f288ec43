"""What stands under the chat box: how replies are drawn, and what the models remember, as bytes, picture and file."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ipywidgets as widgets

from ..chat import Chat
from ..errors import InputError
from ..evaluation.memory_file import read_memory
from ..training.disk import write_bytes
from .context_picture import context_picture
from .page.languages import text, translate
from .page.notices import error_html
from .page.pieces import button, escape, html_widget, sentence_html, slider_options, small_html, wrapping_row

AS_TRAINED = 0.0  # stands for None, which ipywidgets would take for no step at all
PENALTIES = [("as trained", AS_TRAINED), ("1 (none)", 1.0), *((f"{1 + k / 20:g}", 1 + k / 20) for k in range(1, 21))]
SUFFIX = ".safetensors"
MOST_COUNTS = 6  # replies whose bytes are shown
TITLES = {"newllm": "New-LLM", "newllm-reference": "New-LLM (reference)", "tiny-gpt2": "TinyGPT2", "lstm": "LSTM"}
MEMORY_HELP = (
    "The file holds the context vector, what every layer keeps of the last token, and whose they are: some kB, however "
    "long the conversation was. The model goes on from it as if it had just heard all of it, today or tomorrow; "
    "another model cannot use it."
)


class SamplingSliders:
    """How replies are drawn. `max_new_tokens`: where the length stands at first."""

    def __init__(self, max_new_tokens: int):
        common = slider_options()
        share = {"step": 0.05, "readout_format": ".2f", **common}
        self.temperature = widgets.FloatSlider(min=0.0, max=2.0, value=0.8, **share)
        self.top_p = widgets.FloatSlider(min=0.05, max=1.0, value=0.95, **share)
        self.length = widgets.IntSlider(min=10, max=400, step=10, value=max_new_tokens, **common)
        penalties = [(translate(told), value) for told, value in PENALTIES]
        self.penalty = widgets.SelectionSlider(options=penalties, value=AS_TRAINED, **common)
        self.box = wrapping_row(
            labelled(self.temperature, "temperature", "0: always the likeliest token. Above 1: wild."),
            labelled(self.top_p, "top-p", "Draw among the likeliest that make up this share."),
            labelled(self.length, "length", "Tokens of a reply, at most."),
            labelled(self.penalty, "repetition penalty", "Above 1: what was said is said less often."),
        )

    def values(self) -> dict[str, float | None]:
        """What `Chat.set_sampling` takes: Colab's sliders have delivered 3.0 for 3, and 0.30000000000000004."""
        temperature, top_p = (float(f"{slider.value:.6g}") for slider in (self.temperature, self.top_p))
        penalty = float(self.penalty.value) or None  # AS_TRAINED
        length = int(self.length.value)
        return {"max_new_tokens": length, "temperature": temperature, "top_p": top_p, "repetition_penalty": penalty}

    def sentence(self) -> str:
        length, temperature, top_p, penalty = self.values().values()
        told = "as trained" if penalty is None else f"{penalty:g}"
        return f"temperature {temperature:g}, top-p {top_p:g}, at most {length} tokens, repetition penalty {told}"


def labelled(widget: widgets.Widget, label: str, help_text: str) -> widgets.Widget:
    words = f"<b>{escape(text(label))}</b>{small_html(escape(help_text), 'min-height:33px')}"
    heading = html_widget(f'<div style="line-height:1.35;margin-top:4px">{words}</div>')
    layout = widgets.Layout(flex="1 1 200px", min_width="190px", margin="0 8px 4px 0")
    return widgets.VBox([heading, widget], layout=layout)


def spoken_name(name: str) -> str:
    """A model's name in a sentence: "newllm before" is "New-LLM before"."""
    first, *rest = name.split(" ")
    return " ".join([TITLES.get(first, first), *rest])


def memory_note(chat: Chat) -> str:
    """What there is to know of a conversation that began with a saved memory; "" for any other."""
    if chat.memory is None:
        return ""
    unsaid = "" if chat.memory.messages else "; its words were not saved"
    return f"It remembers a conversation of {chat.memory.tokens:,} tokens{unsaid}."


def memory_html(chats: Mapping[str, Chat], counts: Mapping[str, Sequence[int]]) -> str:
    """Who remembers the conversation in how many bytes, and how these went from reply to reply (`counts`: name -> bytes
    after each so far); "" before anything was said."""
    held = {name: chat for name, chat in chats.items() if chat.state_bytes}
    parts, trails = [], []
    for name, chat in held.items():
        part = f"{spoken_name(name)}{'' if parts else ' remembers this conversation'} in {chat.state_bytes:,} bytes"
        if not chat.is_recurrent:
            part += " and growing"
            if chat.stream.dropped:
                part += f", without its first {chat.stream.dropped:,} tokens, for which there was no room"
        elif len(held) == 1:
            part += ", however long it gets"
        parts.append(translate(part))
        if len(all_counts := counts.get(name, ())) > 1:
            newest = " → ".join(f"{count:,}" for count in all_counts[-MOST_COUNTS:])
            trails.append(f"{spoken_name(name)} {'… ' if len(all_counts) > MOST_COUNTS else ''}{newest}")
    if not parts:
        return ""
    trail = small_html(f"Reply by reply: {escape('; '.join(trails))}.") if trails else ""
    told = escape(text("; ").join(parts) + text("."))
    return f'<div style="line-height:1.5;font-size:14px;margin-top:6px">{told}{trail}</div>'


def pictures_html(chats: Mapping[str, Chat]) -> str:
    shown = {name: chat for name, chat in chats.items() if chat.is_recurrent and chat.stream.read}
    if not shown:
        return ""
    titles = {name: spoken_name(name) if len(shown) > 1 else "" for name in shown}
    pictures = (context_picture(*chat.context_trace(), chat.model, titles[name]) for name, chat in shown.items())
    words = (
        "The context vector after each of the newest tokens: a column and the last token are all that the next token "
        "sees. Rows that keep their colour remember for long."
    )
    return small_html(words, "line-height:1.4;margin:6px 0 2px") + "".join(pictures)


class MemoryControls:
    """Save what a New-LLM remembers in the folder, and go on from it. `chats` gives the conversations that are spoken
    to; `changed` is called with the name of the model whose conversation has become another one, "" for none."""

    def __init__(self, folder: Path, chats: Callable[[], Mapping[str, Chat]], changed: Callable[[str], None]):
        self.folder, self.chats, self.changed = folder, chats, changed
        wide = widgets.Layout(width="190px")
        self.name = widgets.Text(value="conversation", layout=wide)
        self.with_words = widgets.Checkbox(indent=False, description=text("and the words, to read"), layout=wide)
        self.save_button = button("Save memory", lambda: self._in_notice(self.save), "120px")
        self.saved = widgets.Dropdown(options=[], layout=wide)
        self.resume_button = button("Go on from it", lambda: self._in_notice(self.resume), "120px")
        self.upload = widgets.FileUpload(accept=SUFFIX, description=text("from my computer"), layout=wide)
        self.upload.observe(lambda change: change["new"] and self._in_notice(self.take_upload), names="value")
        shows = {"description": text("show the context vector"), "layout": widgets.Layout(width="210px")}
        self.picture = widgets.Checkbox(value=True, indent=False, **shows)
        self.picture.observe(lambda change: self.changed(""), names="value")
        self.notice = html_widget()
        to_save = wrapping_row(self.name, self.save_button, self.with_words)
        saved = wrapping_row(self.saved, self.resume_button, self.upload)
        parts = [html_widget(small_html(MEMORY_HELP, "line-height:1.4")), to_save, saved, self.picture, self.notice]
        self.box = widgets.VBox(parts, layout=widgets.Layout(width="100%"))
        self.refresh()

    def refresh(self, chosen: str | None = None) -> None:
        paths = sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
        options = [(path.stem, str(path)) for path in paths] or [(text("none is saved yet"), "")]
        self.saved.options = options
        self.saved.value = chosen or options[0][1]

    def lock(self, is_locked: bool) -> None:
        for control in (self.save_button, self.resume_button, self.upload):
            control.disabled = is_locked

    def _in_notice(self, act: Callable[[], str]) -> None:
        """Do it, and show the HTML that it returns, or why it could not be done."""
        try:
            self.notice.value = act()
        except (InputError, OSError) as error:
            self.notice.value = error_html(error)

    def save(self) -> str:
        name, chat = self._recurrent()[0]
        path = chat.save_memory(self._new_path(self.name.value), self.with_words.value)
        self.refresh(str(path))
        sizes = f"{path.stat().st_size:,} bytes, {chat.state_bytes:,} of them what it remembers"
        return sentence_html(f"{spoken_name(name)}'s memory is saved as {path.stem}: {sizes}.")

    def resume(self) -> str:
        if not self.saved.value:
            return sentence_html("No memory is saved yet.", "note")
        name, chat = self._load()
        self.changed(name)
        heard = f"{chat.memory.tokens:,} tokens that it has heard before, in {chat.state_bytes:,} bytes"
        return sentence_html(f"{spoken_name(name)} goes on from {Path(self.saved.value).stem}: {heard}.")

    def _load(self) -> tuple[str, Chat]:
        """The model whose memory it is, and its conversation. Raises InputError: it is of no model here."""
        refusals = []
        for name, chat in self._recurrent():
            try:
                chat.load_memory(self.saved.value)
                return name, chat
            except InputError as error:  # of two models the memory may be the other's
                refusals.append(error)
        raise refusals[0]

    def take_upload(self) -> str:
        # ipywidgets 8 gives a tuple of files, 7 a dictionary by name.
        value = self.upload.value
        name, file = next(iter(value.items())) if isinstance(value, dict) else (value[0]["name"], value[0])
        path = self._new_path(Path(name).stem)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, bytes(file["content"]))
            read_memory(path)
        except (InputError, OSError):
            path.unlink(missing_ok=True)
            raise
        self.refresh(str(path))
        return self.resume()

    def _recurrent(self) -> list[tuple[str, Chat]]:
        """The conversations with models whose memory can be saved. Raises InputError: there is none."""
        found = [(name, chat) for name, chat in self.chats().items() if chat.is_recurrent]
        if not found:
            raise InputError("none of these models has a memory of fixed size; talk to a New-LLM.", "NL-405")
        return found

    def _new_path(self, name: str) -> Path:
        """A path that is not taken: nothing that was saved is written over."""
        stem = re.sub(r"[^\w-]+", "-", name).strip("-")[:60] or "conversation"
        path, number = self.folder / f"{stem}{SUFFIX}", 2
        while path.exists():
            path, number = self.folder / f"{stem}-{number}{SUFFIX}", number + 1
        return path
