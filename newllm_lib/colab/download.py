"""Links that save something small to the user's computer: the content stands in the link itself, so that they work in
Colab, in Jupyter and with the kernel gone."""

import base64

from .notices import GRID, escape


def download_html(name: str, content: bytes | str, label: str, kind: str = "text/plain") -> str:
    """A link that looks like a button.

    Args:
        name: of the file.
        kind: its MIME type.
    """
    content = content.encode() if isinstance(content, str) else content
    return (
        f'<a download="{escape(name)}" href="data:{kind};base64,{base64.b64encode(content).decode()}" '
        f'style="display:inline-block;border:1px solid {GRID};border-radius:6px;padding:2px 10px;margin:4px 8px 4px 0;'
        f'font-size:13px;color:inherit;text-decoration:none">↓ {escape(label)}</a>'
    )
