"""Point every Colab badge and install cell at a repository and a release tag.

usage: python scripts/badges.py --repo OWNER/NAME [--tag TAG]          (from anywhere; the default tag is the version's)

Rewrites the links in notebooks/*.ipynb and README*.md and nothing else, and prints how many there were in each file.
Exit codes: 0 done, 2 bad input.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLAB_LINK = re.compile(r"(colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+(/blob/)[^/\s\"]+(/notebooks/)")
SOURCE_LINK = re.compile(r"(//github\.com/)[\w.-]+/[\w.-]+(/archive/refs/tags/)[^\s\"]+?(\.zip)")
VERSION = re.compile(r'__version__ = "(.+?)"')


def main() -> int:
    """Parse the arguments and rewrite the files."""
    version = VERSION.search((ROOT / "newllm_lib/__init__.py").read_text(encoding="utf-8"))[1]
    parser = argparse.ArgumentParser(description="Point every Colab badge and install cell at a repository and a tag.")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="repository on GitHub")
    parser.add_argument("--tag", default=f"v{version}", help="release tag (default: %(default)s)")
    args = parser.parse_args()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repo):
        parser.error(f"--repo has to be OWNER/NAME, got {args.repo!r}")
    if not re.fullmatch(r"[\w.-]+", args.tag):
        parser.error(f"--tag has to be a tag without slashes, got {args.tag!r}")
    for path in [*sorted((ROOT / "notebooks").rglob("*.ipynb")), *sorted(ROOT.glob("README*.md"))]:
        before = path.read_text(encoding="utf-8")
        after, count = rewrite_links(before, args.repo, args.tag)
        if after != before:
            path.write_text(after, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {count} links")
    return 0


def rewrite_links(text: str, repo: str, tag: str) -> tuple[str, int]:
    """The text with its links to us replaced, and how many there were."""
    count = 0
    for pattern in (COLAB_LINK, SOURCE_LINK):
        text, found = pattern.subn(rf"\g<1>{repo}\g<2>{tag}\g<3>", text)
        count += found
    return text, count


if __name__ == "__main__":
    sys.exit(main())
