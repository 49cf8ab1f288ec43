"""From words of the command line to settings, with one sentence for whatever is wrong. Quick to import: what is large
is imported when it is used."""

import argparse
import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import InputError


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean X?' or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


class SentenceParser(argparse.ArgumentParser):
    """argparse whose complaint is one InputError in place of the usage and an exit."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str):
        raise InputError(f"{message}; {self.prog} --help lists the fields.")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all of `argv`; an unknown flag is named with the nearest known one."""
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [option for action in self._actions for option in action.option_strings]
            word = unknown[0].split("=")[0]
            raise InputError(f"unknown argument {word!r}{nearest(word, flags)}; {self.prog} --help lists the fields.")
        return namespace


def parse_stage(arguments_class: type, presets: dict[str, dict[str, Any]], prog: str, argv: Sequence[str]) -> Any:
    """Flags -> the stage's dataclass, one flag per field; a preset's values are defaults, flags win.

    Raises:
        InputError: unknown flag or preset, or a value the field refuses.
    """
    from transformers import HfArgumentParser

    from .arguments import SLIDER_KEYS
    from .trainer_fields import NO_EFFECT

    class StageParser(SentenceParser, HfArgumentParser):
        def add_argument(self, *names, **options):
            # A field's metadata reaches argparse whole; the slider's part means nothing to it.
            options = {key: value for key, value in options.items() if key not in SLIDER_KEYS}
            name = names[0].removeprefix("--")
            if name in arguments_class.refused:
                options["help"] = f"cannot be used here: {arguments_class.refused[name]}."
            elif name in NO_EFFECT:
                options["help"] = f"has no effect here: {NO_EFFECT[name]}."
            return super().add_argument(*names, **options)

    fields = dataclasses.fields(arguments_class)
    types = [field.type for field in fields]
    parser = StageParser(arguments_class, prog=prog)
    # HfArgumentParser rewrites the dataclass's own field types (`str | None` to `str`); other readers need them whole.
    for field, kind in zip(fields, types, strict=True):
        field.type = kind
    preset = parser.parse_known_args(argv)[0].preset
    if preset is not None:
        if preset not in presets:
            raise InputError(f"preset has to be one of {', '.join(presets)}, got {preset!r}{nearest(preset, presets)}.")
        parser.set_defaults(**presets[preset])
    values = vars(parser.parse(argv))
    try:
        return arguments_class(**values)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(" ".join(str(error).split())) from error
