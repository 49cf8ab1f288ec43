"""How the copy of a run on Drive stands, in the words of the training panel."""

from dataclasses import dataclass

from ...data.cache import FULL
from ..page.failures import GONE
from .verified_copy import DamagedCopy


@dataclass(frozen=True)
class CopyStatus:
    """How the copy of one run on Drive stands.

    Attributes:
        age: seconds since the newest copy was verified, None if there is none of this session.
        is_waiting: a newer checkpoint is on its way.
        share: how much of it is there, from 0 to 1; None if it has not begun.
        problem: why the last try failed, "" if it did not.
        retry_seconds: until the next try.
    """

    age: float | None = None
    is_waiting: bool = False
    share: float | None = None
    problem: str = ""
    retry_seconds: float = 0.0

    @property
    def is_current(self) -> bool:
        """True if all that was saved is on Drive."""
        return self.age is not None and not self.is_waiting and not self.problem

    def sentence(self) -> str:
        """For the training panel, such as "saved to Drive 38 s ago ✓"."""
        if self.problem:
            return f"{self.problem}, next try in {span(self.retry_seconds)}"
        if self.share is not None:
            return f"copying to Drive, {self.share:.0%}"
        if self.is_waiting or self.age is None:
            return "not on Drive yet"
        return f"saved to Drive {span(self.age)} ago ✓"


def problem_of(error: Exception) -> str:
    """A few words on what is wrong with Drive."""
    if isinstance(error, DamagedCopy):
        return f"Drive did not keep what was written ({error})"
    if isinstance(error, OSError) and error.errno in FULL:
        return "Drive is full"
    if isinstance(error, OSError) and error.errno in GONE:
        return "Drive does not answer"
    words = error.strerror if isinstance(error, OSError) else str(error)
    return f"Drive cannot be written to ({words or type(error).__name__})"


def span(seconds: float) -> str:
    """A time in the unit that suits it."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
