"""The command `newllm <stage> --field value`: one function per command word, modules imported only when used."""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import __version__
from .errors import REFUSED, InputError
from .progress import ConsoleLine, Progress, take_over_bars, working
from .wings import wing


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 a fault of ours, 2 bad input, 130 interrupted with the run saved."""
    argv = list(sys.argv[1:] if argv is None else argv)
    accept_every_character()
    try:
        if not argv or argv[0] in ("-h", "--help", "--version"):
            words = "".join(f"\n  {word:<10} {text}" for word, (_, text) in COMMANDS.items())
            usage = f"usage: newllm COMMAND ...    (newllm COMMAND --help shows its fields)\n{words}"
            print(f"newllm {__version__}" if argv == ["--version"] else usage)
            return 0
        command, *rest = argv
        if command not in COMMANDS:
            raise InputError(f"unknown command {command!r}{nearest(command, COMMANDS)}; newllm --help lists them all.")
        set_up_output()
        if command not in WATCHING:
            quiet_libraries()
        run, purpose = COMMANDS[command]
        # Who talks to a model is not to see how long it takes.
        with contextlib.nullcontext() if command == "chat" else working():
            run(SentenceParser(prog=f"newllm {command}", description=f"{purpose}.", allow_abbrev=False), rest)
        return 0
    except InputError as error:
        sentence, code = str(error), 2
    except OSError as error:
        if error.errno not in {*REFUSED, errno.EIO, errno.ENAMETOOLONG, errno.ENOTDIR}:
            raise
        where = f" for {error.filename}" if error.filename else ""
        remedy = "make room, or name another folder, and give the same command again. Nothing that was saved is lost."
        sentence, code = str(InputError(f"the disk refuses{where}: {error.strerror}; {remedy}")), 2
    except KeyboardInterrupt as error:
        sentence, code = str(error) if error.args else "Interrupted; nothing that was saved is lost.", 130
    print(f"newllm: {sentence}", file=sys.stderr)
    return code


def accept_every_character() -> None:
    """Print the code of a character that a terminal cannot show; read what is not in its encoding as a mark."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # in a notebook it is another
            stream.reconfigure(errors=errors)


def set_up_output() -> None:
    """Our own log lines on standard output, the progress of long work on standard error."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    handler, line = logging.StreamHandler(sys.stdout), ConsoleLine()
    handler.addFilter(line.make_room)
    logging.basicConfig(level=logging.ERROR, format="%(message)s", handlers=[handler])
    logging.getLogger(__package__).setLevel(logging.INFO)
    if os.environ.get("RANK", "0") == "0" and sys.stderr is not None:  # of several processes the first
        Progress.place = line


def quiet_libraries() -> None:
    """Keep the libraries below us to errors, for what a run has to say it says itself: no warnings of transformers and
    datasets, whose progress bars become ours, nor of what one library calls by an old name in another; nor of
    bitsandbytes, which on a CPU with bf16 misses a package when it is imported."""
    with Progress(desc="loading the libraries"):
        import datasets
        import transformers

    warnings.filterwarnings("ignore", r".* is deprecated and will be removed in v6", FutureWarning)
    # Checkpoints may follow each other quickly; their numbers show their order as well.
    warnings.filterwarnings("ignore", "mtime may not be reliable")
    transformers.utils.logging.set_verbosity_error()
    datasets.utils.logging.set_verbosity_error()
    take_over_bars()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean X?' or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


class SentenceParser(argparse.ArgumentParser):
    """argparse whose complaint is one InputError in place of the usage and an exit."""

    def error(self, message: str):
        raise InputError(f"{message}; {self.prog} --help lists the fields.")

    def parse_known_args(self, args: Sequence[str], namespace: argparse.Namespace | None = None):
        if lost := [word for word in args if word.endswith("=--")]:  # argparse would set the flag to an empty list
            self.error(f"argument {lost[0].removesuffix('=--')}: expected a value, got '--'")
        return super().parse_known_args(args, namespace)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all of `argv`; an unknown flag is named with the nearest known one."""
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [option for action in self._actions for option in action.option_strings]
            word = unknown[0].split("=")[0]
            self.error(f"unknown argument {word!r}{nearest(word, flags)}")
        if vars(namespace).pop("which", "best") == "final":
            from .training.checkpoint import weights_folder

            if "models" in namespace:
                namespace.models = [weights_folder(path, "final") for path in namespace.models]
            else:
                namespace.path = weights_folder(namespace.path, "final")
        return namespace


def run_stage(name: str, parser: SentenceParser, argv: Sequence[str]) -> None:
    """The command of a stage: the function of the module `name` that is called like it; the fields are those of the
    dataclass that it takes."""
    stage, args = read_stage(name, parser.prog, argv)
    stage(args)


def read_stage(name: str, prog: str, argv: Sequence[str]) -> tuple[Callable[[Any], Any], Any]:
    """(the stage of the module `name`, its settings). A sweep has the fields of the stage that it is of."""
    with Progress(desc="loading the libraries"):
        module = wing(name)
    stage = getattr(module, name.split(".")[1])
    if name != "preferences.sweep":
        return stage, parse_stage(stage.__annotations__["args"], prog, argv)
    first = SentenceParser(prog=prog, allow_abbrev=False, add_help=False)
    first.add_argument("--stage", choices=module.STAGES, default="dpo")
    return stage, parse_stage(module.STAGES[first.parse_known_args(argv)[0].stage], prog, argv)


def run_start(parser: SentenceParser, argv: Sequence[str]) -> None:
    stages = {word: run.args[0] for word, (run, _) in COMMANDS.items() if isinstance(run, partial)}
    parser.usage = f"{parser.prog} [-h] STAGE [--field value ...]"
    parser.add_argument("stage", choices=stages, help="its fields follow; newllm STAGE --help shows them")
    stage = parser.parse(argv[:1]).stage
    _, args = read_stage(stages[stage], f"{parser.prog} {stage}", argv[1:])
    for line in wing("background.start").start(argv, args):
        print(line)


def run_status(parser: SentenceParser, argv: Sequence[str]) -> None:
    default = os.environ.get("NEWLLM_RUNS", "runs")
    parser.add_argument("run", nargs="?", default=default, help=f"its folder, or one with runs ({default} if left out)")
    parser.add_argument("--follow", action="store_true", help="until the run ends; Ctrl-C leaves it alone")
    parser.add_argument("--json", action="store_true", help="print JSON in place of sentences")
    fields = parser.parse(argv)
    for text in wing("background.status").report(fields.run, fields.follow, fields.json, sys.stdout.isatty()):
        print(text, end="", flush=True)


def run_stop(parser: SentenceParser, argv: Sequence[str]) -> None:
    parser.add_argument("run", help="its folder")
    for sentence in wing("background.stop").stop(parser.parse(argv).run):
        print(sentence, flush=True)


def run_export(parser: SentenceParser, argv: Sequence[str]) -> None:
    add_model_field(parser)
    forms = "html: a page that chats in any browser; gguf: for Ollama; transformers: a folder that others open with it"
    forms = f"{forms}; merged: adapters and base as one plain model"
    parser.add_argument("--format", required=True, help=forms)
    parser.add_argument("--output", help="file or folder to write, a folder must not exist yet; else beside the model")
    parser.add_argument("--int8", action="store_true", help="html, gguf: numbers of 8 bits, half the file")
    wing("export.export").export(**vars(parser.parse(argv)))


def run_data(parser: SentenceParser, argv: Sequence[str]) -> None:
    from transformers.hf_argparser import string_to_bool

    parser.add_argument(
        "dataset", metavar="name", nargs="?", help="a dataset of the list, or an id on the hub (owner/name)"
    )
    parser.add_argument("--data", help="file with the rows; the name then says which chat template they get")
    parser.add_argument("--data_source", default="auto", help="auto, hub, offline or file")
    parser.add_argument("--model", help="finished run whose tokenizer and chat template to use")
    parser.add_argument("--max_length", type=int, default=256, help="tokens per row in training")
    parser.add_argument("--max_samples", type=int, help="rows to look at, the first ones")
    flag = {"nargs": "?", "const": True, "default": False, "type": string_to_bool}
    parser.add_argument("--skip_bad_rows", **flag, help="count rows that do not fit, and leave them out")
    parser.add_argument("--template", choices=["instruction", "preference"], help="print rows to write your own after")
    fields = vars(parser.parse(argv))
    from .stages import data

    if template := fields.pop("template"):
        print(data.template_rows(template))
    elif fields["dataset"] is None and fields["data"] is None:
        print(data.catalogue_text())
    else:
        print(data.inspect_dataset(**fields))


def run_modules(parser: SentenceParser, argv: Sequence[str]) -> None:
    parser.add_argument("model", nargs="?", help="folder, id on the hub, or gemma-3-270m; none: stage 5's own")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters whose parameters are counted")
    fields = parser.parse(argv)
    if fields.rank < 1:
        raise InputError(f"rank has to be at least 1, got {fields.rank}.")
    print(wing("adapters.modules").modules_table(fields.model, fields.rank))


def run_evaluate(parser: SentenceParser, argv: Sequence[str]) -> None:
    add_model_field(parser)
    add_text_fields(parser)
    parser.add_argument("--max_length", type=int, help="tokens per forward pass; as in training if left out")
    parser.add_argument("--batch_size", type=int, help="rows per forward pass; as in training if left out")
    parser.add_argument("--tasks", help="benchmarks of lm-eval in place of a text: winogrande,mmlu (newllm[eval])")
    parser.add_argument("--limit", type=int, help="with --tasks: questions of each, the first ones")
    fields = parser.parse(argv)
    for name in ("max_length", "batch_size", "limit"):
        value = getattr(fields, name)
        if value is not None and value < 1:
            raise InputError(f"{name} has to be at least 1, got {value}.")
    from .stages.evaluate import evaluate, evaluate_tasks

    if fields.tasks is not None:
        asked = fields.tasks.split(","), fields.batch_size or 32, fields.limit
        print(json.dumps(evaluate_tasks(fields.path, *asked, fields.base), indent=2))
        return
    metrics = evaluate(fields.path, fields.data, fields.max_length, fields.batch_size, fields.base)
    if fields.json:
        print(json.dumps(metrics))
    else:
        for name, value in metrics.items():
            shown = "-" if value is None else f"{value:,.4f}" if isinstance(value, float) else value
            print(f"{name:<16} {shown}")


def run_compare(parser: SentenceParser, argv: Sequence[str]) -> None:
    parser.add_argument("models", nargs="+", help="folders of finished runs")
    add_which_field(parser)
    add_text_fields(parser)
    parser.add_argument("--picture", metavar="PNG", help="also draw the comparison into this file")
    parser.add_argument("--prompt", action="append", help="a beginning to continue; may be given several times")
    fields = parser.parse(argv)
    # matplotlib says so when the models are compared, which takes long.
    if fields.picture and not (fields.picture.lower().endswith(".png") and Path(fields.picture).parent.is_dir()):
        raise InputError(f"picture {fields.picture!r} has to be the name of a .png file, in a folder that is there.")
    from .stages.compare import compare, comparison_figure, comparison_table
    from .training.curves import png_of

    rows = compare(fields.models, fields.data, fields.prompt)
    if fields.picture:
        Path(fields.picture).write_bytes(png_of(comparison_figure(rows), 120))
    print(json.dumps(rows) if fields.json else comparison_table(rows))


def run_generate(parser: SentenceParser, argv: Sequence[str]) -> None:
    add_sampling_fields(parser)
    parser.add_argument("--prompt", required=True, help="beginning of the text")
    fields = parser.parse(argv)
    from .stages.generate import generate

    print(generate(**vars(fields)))


def run_chat(parser: SentenceParser, argv: Sequence[str]) -> None:
    add_sampling_fields(parser)
    parser.add_argument("--repetition_penalty", type=float, help="above 1: fewer repetitions; as trained if left out")
    kinds = "json, a .json file with a JSON schema, or a regular expression"
    parser.add_argument("--answer_format", help=f"what replies keep to: {kinds} (newllm[formats])")
    fields = vars(parser.parse(argv))
    from .chat import Chat
    from .training.trained_model import open_model

    chat = Chat(open_model(fields.pop("path"), fields.pop("base", None)), **fields)
    with contextlib.suppress(EOFError):
        while line := input("> "):
            for piece in chat.reply(line):
                print(piece, end="", flush=True)
            print()


def run_doctor(parser: SentenceParser, argv: Sequence[str]) -> None:
    parser.add_argument("--folder", default=".", help="where runs would be saved")
    fields = parser.parse(argv)
    from .doctor import doctor

    marks = {"ok": "✓", "note": "!", "fail": "✗"}
    for finding in doctor(fields.folder):
        print(f"{marks[finding.status]} {finding.subject:<14} {finding.value:<34} {finding.advice}".rstrip())


def parse_stage(arguments_class: type, prog: str, argv: Sequence[str]) -> Any:
    """Flags -> the stage's dataclass, one flag per field; a preset's values are defaults, flags win. Raises InputError:
    unknown flag or preset, or a value the field refuses."""
    from transformers import HfArgumentParser

    from .training.arguments import NO_EFFECT, SETTING_KEYS

    class StageParser(SentenceParser, HfArgumentParser):
        def add_argument(self, *names, **options):
            # A field's metadata reaches argparse whole; the slider's part means nothing to it.
            options = {key: value for key, value in options.items() if key not in SETTING_KEYS}
            name = names[0].removeprefix("--")
            if name in arguments_class.refused:
                options["help"] = f"cannot be used here: {arguments_class.refused[name]}."
            elif name in NO_EFFECT:
                options["help"] = f"has no effect here: {NO_EFFECT[name]}."
            return super().add_argument(*names, **options)

    types = {field: field.type for field in dataclasses.fields(arguments_class)}
    parser = StageParser(arguments_class, prog=prog, allow_abbrev=False)
    # HfArgumentParser rewrites the dataclass's own field types (`str | None` to `str`); other readers need them whole.
    for field, kind in types.items():
        field.type = kind
    preset, presets = parser.parse_known_args(argv)[0].preset, arguments_class.presets
    if preset is not None and preset not in presets:
        raise InputError(f"preset has to be one of {', '.join(presets)}, got {preset!r}{nearest(preset, presets)}.")
    parser.set_defaults(**presets.get(preset, {}))
    return arguments_class(**vars(parser.parse(argv)))


def add_model_field(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="model", help="folder of a finished run")
    parser.add_argument("--base", help="of adapters: the folder of the model they were trained on, if it has moved")
    add_which_field(parser)


def add_which_field(parser: argparse.ArgumentParser) -> None:
    """`parse` takes it out again: what is left are folders of weights."""
    parser.add_argument("--which", choices=["best", "final"], help="the best weights, or those after the last update")


def add_text_fields(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", help="text file to evaluate on; the run's own held-out text if left out")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")


def add_sampling_fields(parser: argparse.ArgumentParser) -> None:
    """What `generate` and `Chat` take alike; a field that is not given has their own default."""
    parser.argument_default = argparse.SUPPRESS
    add_model_field(parser)
    parser.add_argument("--max_new_tokens", type=int)
    parser.add_argument("--temperature", type=float, help="0 takes the most likely token")
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--seed", type=int, help="draw the same every time")


# word -> (its function, of a parser and the arguments; what it does)
COMMANDS: dict[str, tuple[Callable[[SentenceParser, Sequence[str]], None], str]] = {
    "pretrain": (partial(run_stage, "stages.pretrain"), "train New-LLM or a baseline from scratch on text"),
    "sft": (partial(run_stage, "stages.sft"), "teach a model to talk: conversations, instructions"),
    "qlora-lwf": (partial(run_stage, "adapters.qlora_lwf"),
                  "teach a large model in 4 bit a new task, keeping what it knew"),
    "dpo": (partial(run_stage, "preferences.dpo"), "teach a chat model which of two answers is wanted"),
    "sweep": (partial(run_stage, "preferences.sweep"),
              "look for good settings of dpo, sft or qlora-lwf: many short runs, one table"),
    "start": (run_start, "train in the background: a stage, and first what it starts from"),
    "status": (run_status, "what runs, how far it is and how long still; a run, or all"),
    "stop": (run_stop, "save a run that trains, wherever it was started, and end it"),
    "export": (run_export, "a model to take with you: as a page for any browser, for Ollama, as one plain model"),
    "modules": (run_modules, "the layers of a model that adapters can go on"),
    "data": (run_data, "look at a dataset: rows, tokens, lengths, duplicates; without a name, list those we know"),
    "evaluate": (run_evaluate, "metrics of a model on a text: perplexity, bits per byte"),
    "compare": (run_compare, "several models side by side: quality, speed, state, samples"),
    "generate": (run_generate, "continue a prompt"),
    "chat": (run_chat, "talk to a model; an empty line ends it"),
    "doctor": (run_doctor, "what this machine is and what will run on it"),
}  # fmt: skip
WATCHING = ("status", "stop")  # these read files: no library is loaded for them, which would take seconds
