"""A stand-in for the package google.colab, as shared/COLAB.md describes it: a Drive that is mounted and outlives the
machine, secrets, downloads, and the ways in which each of them fails."""

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class MessageError(Exception):
    """What the browser's refusal becomes."""


class ColabError(Exception):
    """google.colab.errors.Error."""


class NotebookAccessError(Exception):
    def __init__(self, key):
        super().__init__(f"Notebook does not have access to secret {key}")


class SecretNotFoundError(ColabError):
    def __init__(self, key):
        super().__init__(f"Secret {key} does not exist.")


class TimeoutException(ColabError):
    def __init__(self, key):
        super().__init__(
            f"Requesting secret {key} timed out. Secrets can only be fetched when running from the Colab UI."
        )


class StandIn:
    """The state behind the stand-in.

    Args:
        drive_root: the folder that is the user's My Drive.

    Attributes:
        mount_error: what mounting raises, None if it works.
        secrets: name -> value, or the exception that asking for it raises.
        mounts, downloads: what was mounted and downloaded, in order.
    """

    def __init__(self, drive_root: Path):
        self.drive_root = drive_root
        self.mount_error: BaseException | None = None
        self.download_error: Exception | None = None
        self.secrets: dict[str, str | Exception] = {}
        self.mounts: list[tuple[str, bool]] = []
        self.downloads: list[str] = []

    def mount(self, mountpoint, force_remount=False, timeout_ms=120_000, readonly=False):
        self.mounts.append((mountpoint, force_remount))
        if self.mount_error is not None:
            raise self.mount_error
        place = os.path.join(mountpoint, "MyDrive")
        if os.path.isdir(place) and not force_remount:
            sys.stdout.write(f"Drive already mounted at {mountpoint}.\n")
            return
        if os.path.islink(place):
            os.unlink(place)
        if os.path.isdir(mountpoint) and os.listdir(mountpoint):
            raise ValueError("Mountpoint must not already contain files")
        if not os.path.isdir(os.path.dirname(mountpoint)):
            raise ValueError("Mountpoint must be in a directory that exists")
        self.drive_root.mkdir(parents=True, exist_ok=True)
        os.makedirs(mountpoint, exist_ok=True)
        os.symlink(self.drive_root, place)
        sys.stdout.write(f"Mounted at {mountpoint}\n")

    def get(self, key):
        value = self.secrets.get(key, SecretNotFoundError(key))
        if isinstance(value, Exception):
            raise value
        return value

    def download(self, filename):
        if self.download_error is not None:
            raise self.download_error
        if not os.path.exists(filename):
            raise FileNotFoundError(f"Cannot find file: {filename}")
        self.downloads.append(filename)

    def modules(self) -> dict[str, ModuleType]:
        """Name -> module, as sys.modules has them in Colab's kernel."""
        drive, userdata, files, errors = (
            ModuleType(f"google.colab.{name}") for name in ("drive", "userdata", "files", "errors")
        )
        drive.mount, files.download, userdata.get, errors.Error = self.mount, self.download, self.get, ColabError
        for error in (NotebookAccessError, SecretNotFoundError, TimeoutException):
            setattr(userdata, error.__name__, error)
        colab, google = ModuleType("google.colab"), ModuleType("google")
        for module in (drive, userdata, files, errors):
            setattr(colab, module.__name__.rpartition(".")[2], module)
        google.colab = colab
        google.__path__ = colab.__path__ = []  # packages
        modules = (google, colab, drive, userdata, files, errors)
        for module in modules:  # accelerate looks for google.colab by its specification
            module.__spec__ = ModuleSpec(module.__name__, None, is_package=module in (google, colab))
        return {module.__name__: module for module in modules}


def install(drive_root: Path) -> StandIn:
    """For a process of its own, such as a notebook's kernel: google.colab is there from now on."""
    stand_in = StandIn(drive_root)
    sys.modules.update(stand_in.modules())
    return stand_in
