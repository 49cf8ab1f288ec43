"""What a test does with a settings panel and with a page: set a slider, and read the words without their tags."""

import re
from html import unescape


def plain(html: str) -> str:
    return unescape(re.sub("<[^>]*>", "", html))


def set_to(panel, name, value) -> None:
    panel.controls[name].set(value)
    panel.refresh()
