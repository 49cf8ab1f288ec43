"""What tuning by preferences will take: found out from the model's config alone, as for adapters."""

from ..data.preferences import GENERATED, GENERATED_SHARE
from ..errors import InputError
from ..stages.dpo import check_window
from ..stages.sweep import SweepArguments
from ..training.dpo_arguments import DpoArguments
from .adapter_estimate import base_of, config_of, count_trainable
from .estimate import Reckoning
from .languages import text
from .notices import escape


def complete(args: DpoArguments) -> dict[str, str]:
    """What a run is known by beside its pairs: the weights of the model that is tuned.

    Raises:
        InputError: no such model.
    """
    return {"base": base_of(args).identity}


def check(args: DpoArguments) -> None:
    """Raises InputError if the model reads too few tokens, or has none of the layers that are to get adapters."""
    base = base_of(args)
    check_window(args, base, config_of(base))
    if count_trainable(args, base) == 0:
        raise InputError(
            f"{base.name} has no layers called {args.lora_target_modules}, as this preset wants; choose another preset."
        )


def phrases(arguments: dict[str, DpoArguments], seconds_per_flop: None = None) -> list[str]:
    """What the live line says: what is tuned, and by how many pairs. No minutes: they could only come from an update
    of a model that is not loaded yet."""
    (args,) = arguments.values()
    base = base_of(args)
    trained = count_trainable(args, base)
    count = text("<b>{count}</b> trainable parameters", count=f"{trained:,}")
    return [f"<b>{escape(base.name)}</b>", count, *_extent(args)]


def trial_phrases(arguments: dict[str, SweepArguments], seconds_per_flop: None = None) -> list[str]:
    """What it says of a sweep."""
    (args,) = arguments.values()
    model = escape(base_of(args).name)
    trials = text("<b>{trials}</b> trials of <b>{model}</b>", trials=str(args.trials), model=model)
    return [trials, text("each {extent}", extent=", ".join(_extent(args)))]


def _extent(args: DpoArguments) -> list[str]:
    """Updates and pairs, or, of data that nobody has counted yet, epochs; and what comes before them."""
    if args.sft_epochs > 0:
        return [_updates(args), text("after {epochs} passes over all answers", epochs=f"{args.sft_epochs:g}")]
    return [_updates(args)]


def _updates(args: DpoArguments) -> str:
    rows = str(args.effective_batch_size)
    if is_generated(args):
        pairs = generated_for_training(args)
        phrase = "<b>{updates}</b> updates of {rows} pairs, out of <b>{pairs}</b> generated ones"
        return text(phrase, updates=f"{args.updates(pairs):,}", rows=rows, pairs=f"{pairs:,}")
    if args.max_steps > 0:
        return text("<b>{updates}</b> updates of {rows} pairs", updates=f"{args.max_steps:,}", rows=rows)
    phrase = "<b>{epochs}</b> epochs in updates of {rows} pairs"
    return text(phrase, epochs=f"{args.num_train_epochs:g}", rows=rows)


def is_generated(args: DpoArguments) -> bool:
    """True if the pairs are neither a file's nor a dataset's of the hub."""
    return args.data is None and args.dataset in (None, GENERATED)


def generated_for_training(args: DpoArguments) -> int:
    """How many of the generated pairs are not held out, without making them."""
    share = GENERATED_SHARE if args.held_out_share is None else args.held_out_share
    return args.pairs - round(args.pairs * share)


PREFERENCE_PAIRS = Reckoning(check=check, phrases=phrases, complete=complete)
TRIALS = Reckoning(check=check, phrases=trial_phrases, complete=complete)
