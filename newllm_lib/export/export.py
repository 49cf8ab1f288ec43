"""A finished run in a form that goes where New-LLM is not: the command `newllm export`."""

import logging
from collections.abc import Callable
from pathlib import Path

from ..adapters.merge import merge
from ..errors import InputError
from ..training.checkpoint import check_model_folder, run_of
from ..training.disk import size
from .gguf_file import export_gguf
from .html import export_html
from .model_folder import export_folder

logger = logging.getLogger(__name__)


def export(
    path: str | Path, format: str, output: str | Path | None = None, int8: bool = False, base: str | None = None
) -> Path:
    """Write the model in `path` in another form.

    Args:
        format: one of FORMATS.
        output: the file or folder to write; None: beside the model, by the form's own name.
        int8: 8-bit matrices, about half the file, where the form has them.
        base: where the model is now that adapters were trained on; None: where it was.

    Returns:
        The file or folder.

    Raises:
        InputError: `path` holds no model that has this form, or `output` cannot be written to.
    """
    if format not in FORMATS:
        raise InputError(f"format has to be one of {', '.join(FORMATS)}, got {format!r}.")
    if int8 and format not in ("html", "gguf"):
        raise InputError(f"int8 is for the formats html and gguf; leave it out with {format}.")
    folder = check_model_folder(path)
    if format == "transformers" and run_of(folder) != folder:
        raise InputError("format transformers takes the best weights, of which its card is; leave out --which final.")
    written = FORMATS[format](folder, output, int8, base)
    length = f" ({size(written.stat().st_size)})" if written.is_file() else ""
    logger.info("Written: %s%s.", written, length)
    return written


def _page(folder: Path, output: str | Path | None, int8: bool, base: str | None) -> Path:
    return export_html(folder, output, int8)


def _merged(folder: Path, output: str | Path | None, int8: bool, base: str | None) -> Path:
    return merge(folder, output or folder.with_name(f"{folder.name}-merged"), base)


FORMATS: dict[str, Callable[[Path, str | Path | None, bool, str | None], Path]] = {
    "html": _page,
    "gguf": export_gguf,
    "transformers": export_folder,
    "merged": _merged,
}
