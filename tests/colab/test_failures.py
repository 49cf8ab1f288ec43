"""Whatever ends a cell has a code and one sentence; only a fault of ours shows its traceback, too."""

import errno

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from newllm_lib.colab.page.notices import CellFailed, CellStopped, code_and_sentence, in_one_sentence
from newllm_lib.errors import CODES, InputError


def chained(outer, inner):
    outer.__cause__ = inner
    return outer


class GatedRepoError(Exception):
    """As huggingface_hub has it."""


class OfAHttpLibrary(Exception):
    __module__ = "httpx._exceptions"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "NL-103"),
        (MemoryError(), "NL-103"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you"), "NL-103"),
        (OSError(errno.ENOSPC, "No space left on device"), "NL-104"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "NL-104"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "NL-104"),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), "NL-202"),
        (OSError(errno.EIO, "Input/output error"), "NL-202"),
        (GatedRepoError("403"), "NL-302"),
        (chained(OSError("You are trying to access a gated repo."), GatedRepoError("x")), "NL-302"),
        (ConnectionError("refused"), "NL-301"),
        (OfAHttpLibrary("timed out"), "NL-301"),
        (chained(ValueError("no rows"), OfAHttpLibrary("timed out")), "NL-301"),
        (OSError("We couldn't connect to 'the hub' to load this file"), "NL-301"),
        (KeyboardInterrupt(), "NL-501"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "NL-901"),
        (ZeroDivisionError("division by zero"), "NL-901"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__} {value}"[:40],
)
def test_every_failure_has_a_code_and_a_remedy(error, code):
    found, sentence = code_and_sentence(error)
    assert found == code and CODES[code][1] in sentence and "\n" not in sentence
    if code == "NL-901":
        assert type(error).__name__ in sentence


def test_our_own_sentences_stay_as_they_are():
    assert code_and_sentence(InputError("data 'x' is empty.", "NL-402")) == ("NL-402", "data 'x' is empty.")
    assert InputError("dropout has to lie in [0, 1).").code == "NL-401"


def test_an_error_that_was_handled_before_does_not_count():
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("other") from None
    except ValueError as error:
        assert code_and_sentence(error)[0] == "NL-901"


def shown(error):
    @in_one_sentence()
    def cell():
        raise error

    with pytest.raises(CellStopped) as stopped:
        cell()
    shell = InteractiveShell.instance()
    shell.showtraceback((type(stopped.value), stopped.value, stopped.tb))
    return stopped.value


def test_a_known_failure_ends_a_cell_in_one_sentence(capsys):
    value = shown(OSError(errno.ENOSPC, "No space left on device"))
    output = capsys.readouterr().out.strip()
    assert output == str(value) and output.startswith("✗ The disk is full") and output.endswith("[NL-104]")


def test_stopping_by_hand_is_no_failure(capsys):
    shown(KeyboardInterrupt())
    assert capsys.readouterr().out.startswith("■ The cell was stopped by hand.")


def test_a_fault_of_ours_shows_where_it_is_and_the_sentence_last(capsys):
    value = shown(ZeroDivisionError("division by zero"))
    output = capsys.readouterr().out.strip()
    assert isinstance(value, CellFailed) and "raise error" in output
    assert output.splitlines()[-1].startswith("✗ A fault of ours (ZeroDivisionError: division by zero).")


def test_a_cell_that_has_ended_in_its_sentence_keeps_it():
    with pytest.raises(CellStopped, match=r"^■ Stopped at update 7$"):
        in_one_sentence()(lambda: (_ for _ in ()).throw(CellStopped("■ Stopped at update 7")))()
