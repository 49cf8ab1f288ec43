"""The line of `Progress` in a notebook: one display a cell, replaced in place. It needs little, for it is there before
the libraries are loaded."""

import html
from typing import Any

from IPython import get_ipython
from IPython.display import HTML, display

from ...progress import Line

GRID, BLUE = "rgba(128,128,128,.35)", "#1f6feb"


def progress_html(line: Line) -> str:
    """A bar, where the share is known, and the facts behind the names."""
    bar, share = "", []
    if line.share is not None:
        done = f"{min(100 * line.share, 100):.0f}%"
        share = [done.replace("%", " %")]
        bar = (
            f'<span style="width:120px;height:8px;border-radius:4px;background:{GRID};overflow:hidden">'
            f'<span style="display:block;width:{done};height:100%;background:{BLUE}"></span></span>'
        )
    names, facts = html.escape(": ".join(line.names)), html.escape(" · ".join(share + line.facts))
    style = "display:flex;flex-wrap:wrap;gap:0 10px;align-items:center;font-size:14px;line-height:1.5;opacity:.85"
    return f'<div style="{style}">{bar}<span>{names} · {facts}</span></div>'


class NotebookLine:
    """Shows the lines below the cell that runs."""

    def __init__(self):
        self.handle: Any = None
        self.cell: int | None = None  # the one whose display it is

    def show(self, line: Line) -> None:
        content, cell = HTML(progress_html(line)), get_ipython().execution_count
        if self.handle is None or self.cell != cell:
            self.handle, self.cell = display(content, display_id=True), cell
        else:
            self.handle.update(content)

    def clear(self) -> None:
        if self.handle is not None:
            self.handle.update(HTML(""))
