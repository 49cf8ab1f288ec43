"""Add this package, and the test packages that are missing, to the environment of the Python that runs this.

usage: DIR/bin/python scripts/join_image.py          (from the repository's root)

For environments whose packages must stay as they are, such as a copy of Colab's image. What is added is held
to the versions of DIR/constraints.txt, if there is one. Exit codes: 0 nothing else changed, 1 something did.
"""

import importlib
import subprocess
import sys
import tempfile
from importlib.metadata import distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("offline", "offline-gemma", "qlora", "dpo", "sweep", "test")
NOT_NEEDED = {"ruff"}  # the linter runs in the environment that the tested versions make


def main() -> int:
    """Install, and compare what was there before with what is there now."""
    before = installed()
    pip_install("--no-deps", "-e", ".")
    missing = missing_requirements(before)
    if missing:
        print("adding", *missing, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            constraints = Path(folder) / "constraints.txt"
            constraints.write_text("\n".join(constraint_lines(before)), encoding="utf-8")
            pip_install("-c", str(constraints), *missing)
    after = installed()
    changed = [
        f"{name} {version} -> {after.get(name)}" for name, version in before.items() if after.get(name) != version
    ]
    if changed:
        print("installing changed", ", ".join(changed), file=sys.stderr)
    return 1 if changed else 0


def installed() -> dict[str, str]:
    """Name -> version of every package in the environment but ours."""
    importlib.invalidate_caches()
    found = {canonicalize_name(package.metadata["Name"]): package.version for package in distributions()}
    found.pop("newllm", None)
    return found


def missing_requirements(present: dict[str, str]) -> list[str]:
    """What our package and its test extras ask for and the environment lacks."""
    importlib.invalidate_caches()
    missing = []
    for line in requires("newllm"):
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        asked = requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in EXTRAS)
        if asked and name not in present and name not in NOT_NEEDED:
            missing.append(f"{requirement.name}{requirement.specifier}")
    return missing


def constraint_lines(present: dict[str, str]) -> list[str]:
    """Every package at the version it has; for those not there yet, the lines of DIR/constraints.txt."""
    lines = [f"{name}=={version}" for name, version in present.items()]
    own = Path(sys.prefix) / "constraints.txt"
    if own.exists():
        for line in own.read_text(encoding="utf-8").splitlines():
            if line.strip() and canonicalize_name(Requirement(line).name) not in present:
                lines.append(line)
    return lines


def pip_install(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
