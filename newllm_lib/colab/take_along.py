"""The cell *Take it with you*: a New-LLM as one page that chats in any browser, tried where it was trained."""

import html
from collections.abc import Sequence
from pathlib import Path

from IPython.display import HTML, display

from ..errors import InputError
from ..export.html import PAGE, export_html
from ..models import NewLLMConfig
from ..training.disk import size
from ..training.trained_model import read_config
from .page.languages import language
from .page.notices import in_one_sentence, say
from .share import offer

SHOWN_BYTES = 20 * 2**20  # of a page inside the notebook, which is saved with it
# The frame may run its own programs and give files away; it has no origin, so nothing of the notebook is in its reach.
FRAME = (
    '<div><iframe title="{name}" sandbox="allow-scripts allow-forms allow-downloads" srcdoc="{page}" loading="lazy" '
    'style="width:100%;height:760px;border:1px solid rgba(128,128,128,.35);border-radius:6px"></iframe></div>'
)


@in_one_sentence()
def take_with_you(folders: Sequence[str | Path]) -> None:
    """Write the page of each New-LLM in `folders`, show the first and offer them for download. What has no page, such
    as one with a vocabulary of words, is said."""
    is_shown = False
    for folder in (Path(folder) for folder in folders if isinstance(read_config(folder), NewLLMConfig)):
        try:
            page = export_html(folder)
        except InputError as error:
            say(f"{folder.name} has no page: {error}", "note")
            continue
        length = page.stat().st_size
        if not is_shown and length <= SHOWN_BYTES:
            spoken = page.read_text(encoding="utf-8").replace('<html lang="en">', f'<html lang="{language()}">', 1)
            display(HTML(FRAME.format(name=PAGE, page=html.escape(spoken))))
            is_shown = True
        offer(page, ask=True)
        say(f"{folder.name}: {page.name} ({size(length)}) runs from a double click, without a network.")
