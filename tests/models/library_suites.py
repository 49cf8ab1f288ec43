"""Test suites of other libraries, which come in their source distributions alone: those of the installed versions are
downloaded once into the environment that runs the tests."""

import importlib
import importlib.util
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest


def suite_package(library: str) -> str:
    """The name under which the `tests` of the installed version of `library` can be imported; or skips, saying why."""
    name = f"suite_of_{library}"
    if name not in sys.modules:
        folder = downloaded(library, version(library))
        spec = importlib.util.spec_from_loader(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return name


def downloaded(library: str, release: str) -> Path:
    folder = Path(sys.prefix) / "library-suites" / f"{library}-{release}"
    if folder.exists():
        return folder
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        options = ["--quiet", "--retries", "0", "--no-deps", "--no-binary", ":all:", "--dest", temporary]
        command = [sys.executable, "-m", "pip", "download", *options, f"{library}=={release}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1]
            pytest.skip(f"the suite of {library} {release} could not be had: {reason}", allow_module_level=True)
        with tarfile.open(next(Path(temporary).glob("*.tar.gz"))) as archive:
            archive.extractall(temporary, filter="data")
        try:
            next(Path(temporary).glob("*/tests")).rename(folder)
        except OSError:
            if not folder.exists():  # another process of the same run was quicker
                raise
    return folder


def stand_in(name: str, **contents) -> None:
    """A module that a suite imports and its source distribution lacks."""
    module = ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
