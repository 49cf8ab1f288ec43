"""What a report to strangers must not hold: tokens, addresses, names of folders and files, and the user's own text."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

LEFT_OUT = "[left out]"
SECRET_NAMES = re.compile(r"token|secret|passw|api_?key|credential|auth", re.IGNORECASE)
SHORTEST_SECRET = 6  # characters; a shorter value would blot out half the report

TOKENS = re.compile(
    r"\b(?:hf_|api_org_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abp]-|ya29\.|AKIA|AIza)[\w.~+/-]{6,}"
    r"|(?i:\bbearer\s+)[\w.~+/=-]{6,}"
    r"|(?i:\b(?:token|secret|password|api_?key)\b\s*[=:]\s*)\S+"
)
EMAILS = re.compile(r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)+")
URLS = re.compile(r"\b\w+://[^\s'\"<>]+")
# Up to the end of a quotation or of the line: names of folders may contain spaces.
ROOTED = r"[^'\"\n]*"
PATHS = re.compile(r"(?<![\w.<])(?:~|\.\.?)?(?:/[^\s'\":;,()<>|]+)+|\b[A-Za-z]:\\[^\s'\"]+")
FILES = re.compile(r"[^\s'\"/\\]+\.(?:txt|jsonl|json|csv|tsv|parquet|safetensors|zip|ipynb)\b", re.IGNORECASE)
# A quotation opens after no letter and closes before none: an apostrophe is neither.
QUOTED = re.compile(r"(?<!\w)'(?:\\.|[^'\\]|'(?=\w))*'(?!\w)|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
OURS = re.compile(r"(?:site-packages|dist-packages)/(.+)|(newllm_lib/.+)|lib/python3\.\d+/(.+)")


def redact(text: str, private: Iterable[str] = ()) -> str:
    """`text` without anything of the kinds above.

    Args:
        private: values that are the user's own, to be left out wherever they stand.
    """
    own = {value for value in (*private, *_secrets()) if len(value) >= SHORTEST_SECRET}
    for value in sorted(own, key=len, reverse=True):
        text = text.replace(value, LEFT_OUT)
    for root in _roots():
        text = re.sub(re.escape(root) + ROOTED, "[path]", text)
    for pattern, replacement in ((TOKENS, LEFT_OUT), (EMAILS, LEFT_OUT), (URLS, "[address]"), (QUOTED, "'…'")):
        text = pattern.sub(replacement, text)
    return FILES.sub("[file]", PATHS.sub("[path]", text))


def short_path(path: str) -> str:
    """Where in which library a line of code stands; of a file of the user's own not even its name."""
    match = OURS.search(path.replace("\\", "/"))
    return next(filter(None, match.groups())) if match else "[a cell or file of yours]"


def _secrets() -> list[str]:
    return [value for name, value in os.environ.items() if SECRET_NAMES.search(name)]


def _roots() -> list[str]:
    """Folders below which everything is the user's: Drive, and their home where they have one of their own."""
    home = str(Path.home())
    return ["/content/drive", *([home] if len(Path(home).parts) > 1 else [])]
