"""Point every Colab badge, install cell and report at a repository and a release tag, or check that they agree.

usage: python scripts/badges.py --repo OWNER/NAME [--tag TAG]          (from anywhere; the default tag is the version's)
       python scripts/badges.py --check

Rewrites the address in newllm_lib/__init__.py and the links in notebooks/*.ipynb and README*.md, and nothing else, and
prints how many there were in each file. With --check nothing is written: every link has to name the repository of
newllm_lib/__init__.py and the version's tag, and git's remote "origin", if it is on GitHub, has to be that repository.
Exit codes: 0 done, 1 --check found a difference, 2 bad input.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "newllm_lib/__init__.py"
REPO = r"[\w.-]+/[\w.-]+"
# (before the repository, between it and the tag, after the tag)
LINKS = [
    re.compile(rf"(colab\.research\.google\.com/github/)({REPO})(/blob/)([^/\s\"]+)(/notebooks/)"),
    re.compile(rf"(//github\.com/)({REPO})(/archive/refs/tags/)([^\s\"]+?)(\.zip)"),
]
ISSUES = re.compile(rf"(//github\.com/)({REPO}?)(/issues|\.git )")
CONSTANT = re.compile(rf'(REPOSITORY = ")({REPO})(")')
VERSION = re.compile(r'__version__ = "(.+?)"')
REMOTE = re.compile(rf"github\.com[:/]({REPO}?)(?:\.git)?/?$")


def main() -> int:
    """Parse the arguments, then rewrite the files or check them."""
    tag = f"v{VERSION.search(PACKAGE.read_text(encoding='utf-8'))[1]}"
    parser = argparse.ArgumentParser(description="Point every Colab badge and install cell at a repository and a tag.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--repo", metavar="OWNER/NAME", help="repository on GitHub")
    what.add_argument("--check", action="store_true", help="write nothing; exit with 1 if two places differ")
    parser.add_argument("--tag", default=tag, help="release tag (default: %(default)s)")
    args = parser.parse_args()
    if args.check:
        differences = check(args.tag)
        print("\n".join(differences) or "Every badge, install cell and README names the same repository and tag.")
        return 1 if differences else 0
    if not re.fullmatch(REPO, args.repo):
        parser.error(f"--repo has to be OWNER/NAME, got {args.repo!r}")
    if not re.fullmatch(r"[\w.-]+", args.tag):
        parser.error(f"--tag has to be a tag without slashes, got {args.tag!r}")
    for path in [PACKAGE, *linking_files()]:
        before = path.read_text(encoding="utf-8")
        after, count = rewrite_links(before, args.repo, args.tag)
        if after != before:
            path.write_text(after, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {count} links")
    return 0


def linking_files() -> list[Path]:
    return [*sorted((ROOT / "notebooks").rglob("*.ipynb")), *sorted(ROOT.glob("README*.md"))]


def rewrite_links(text: str, repo: str, tag: str) -> tuple[str, int]:
    """The text with its links to us replaced, and how many there were."""
    counts = [0] * 4
    for at, pattern in enumerate(LINKS):
        text, counts[at] = pattern.subn(rf"\g<1>{repo}\g<3>{tag}\g<5>", text)
    for at, pattern in enumerate((ISSUES, CONSTANT), start=len(LINKS)):
        text, counts[at] = pattern.subn(rf"\g<1>{repo}\g<3>", text)
    return text, sum(counts)


def check(tag: str) -> list[str]:
    """One sentence for each place that names another repository or tag than the library does."""
    repo = CONSTANT.search(PACKAGE.read_text(encoding="utf-8"))[2]
    differences = []
    for path in linking_files():
        text = path.read_text(encoding="utf-8")
        found = {(match[2], match[4]) for pattern in LINKS for match in pattern.finditer(text)}
        found |= {(match[2], tag) for match in ISSUES.finditer(text)}
        mend = f"python scripts/badges.py --repo {repo} --tag {tag}"
        for other, its_tag in sorted(found - {(repo, tag)}):
            name = path.relative_to(ROOT)
            differences.append(f"{name} names {other} at {its_tag}, the library {repo} at {tag}; mend it: {mend}")
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    remote = REMOTE.search(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    if remote and remote[1] != repo:
        mend = f"python scripts/badges.py --repo {remote[1]}"
        differences.append(f"git's origin is {remote[1]}, but badges and install cells lead to {repo}; mend it: {mend}")
    return differences


if __name__ == "__main__":
    sys.exit(main())
