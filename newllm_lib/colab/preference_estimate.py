"""What tuning by preferences will take: found out from the model's config, and from one step of such a model."""

import copy
import functools

from transformers import PreTrainedConfig

from ..data.preferences import GENERATED, GENERATED_SHARE
from ..errors import InputError
from ..models import count_parameters
from ..stages.dpo import check_window
from ..stages.reference import UPDATE_TOKENS
from ..stages.sweep import SweepArguments
from ..training.base_model import BaseModel
from ..training.device import choose_precision, find_device
from ..training.dpo_arguments import DpoArguments
from .adapter_disk import disk_phrase, tokenizer_bytes
from .adapter_estimate import base_of, config_of, count_trainable
from .estimate import Reckoning, kept_checkpoints, saved_bytes
from .languages import text
from .notices import escape
from .step_cost import Cost, StepCost, measure_step, memory_of_run, times

# Of generated pairs and a small tokenizer that has read no Japanese: without and with tokens of their own.
TOKENS_OF_A_SEQUENCE = (180, 65)
NEW_TOKENS = 550
PADDED = 1.17  # longest of a group of like length to the mean
# A token of a pair under model and reference, and one of an evaluation, in training tokens: measured with TinyGPT2
# (1.5 and 1.8, on two machines) and New-LLM (1.8 and 2.1).
DPO_COST, SCORING_COST = 1.7, 2.8
BF16_COST = 0.65  # a token of the reference's training where a CPU learns that in bf16, and the pairs in fp32
LAST_SCORES = 3  # of all held-out pairs, in evaluations
PREPARE_SECONDS, TRIAL_SECONDS = 3, 2  # libraries and tokenizer; adapters, answers
TRL_BYTES = 150_000_000
REFERENCE_CHECKPOINTS = 2  # half way, and at its end


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


def phrases(arguments: dict[str, DpoArguments]) -> list[str]:
    """What the live line says: what is tuned, and by how many pairs."""
    (args,) = arguments.values()
    base = base_of(args)
    trained = count_trainable(args, base)
    count = text("<b>{count}</b> trainable parameters", count=f"{trained:,}")
    return [f"<b>{escape(base.name)}</b>", count, *_extent(args), *_disk(args, trained)]


def trial_phrases(arguments: dict[str, SweepArguments]) -> list[str]:
    """What it says of a sweep."""
    (args,) = arguments.values()
    base, ranks = base_of(args), args.choices()["lora_r"]
    trials = text("<b>{trials}</b> trials of <b>{model}</b>", trials=str(args.trials), model=escape(base.name))
    trained = round(count_trainable(args, base) / args.lora_r * sum(ranks) / len(ranks))
    return [trials, text("each {extent}", extent=", ".join(_extent(args))), *_disk(args, trained)]


def _disk(args: DpoArguments, trained: int) -> list[str]:
    """What all of it takes on disk: a reference, and adapters with their checkpoints or, in a sweep, each trial's
    without; nothing for pairs that nobody has counted yet."""
    if (updates := _updates(args)) is None:
        return []
    base, is_sweep = base_of(args), isinstance(args, SweepArguments)
    tokenizer, parameters = tokenizer_bytes(base, config_of(base)), _parameters(base, _new_tokens(args))
    disk = saved_bytes(trained, 0 if is_sweep else kept_checkpoints(args, updates), tokenizer)
    if args.save_merged:
        disk += saved_bytes(parameters, 0, tokenizer)
    if is_sweep:
        disk *= args.trials
    if args.sft_epochs > 0:
        disk += saved_bytes(parameters, REFERENCE_CHECKPOINTS, tokenizer)
    return [disk_phrase(disk)]


def _extent(args: DpoArguments) -> list[str]:
    """Updates and pairs, or, of data that nobody has counted yet, epochs; and what comes before them."""
    if args.sft_epochs > 0:
        return [_updates_phrase(args), text("after {epochs} passes over all answers", epochs=f"{args.sft_epochs:g}")]
    return [_updates_phrase(args)]


def _updates(args: DpoArguments) -> int | None:
    """None for pairs that nobody has counted yet."""
    if is_generated(args):
        return args.updates(generated_for_training(args))
    return args.max_steps if args.max_steps > 0 else None


def _updates_phrase(args: DpoArguments) -> str:
    updates, rows = _updates(args), str(args.effective_batch_size)
    if updates is None:
        phrase = "<b>{epochs}</b> epochs in updates of {rows} pairs"
        return text(phrase, epochs=f"{args.num_train_epochs:g}", rows=rows)
    if not is_generated(args):
        return text("<b>{updates}</b> updates of {rows} pairs", updates=f"{updates:,}", rows=rows)
    phrase = "<b>{updates}</b> updates of {rows} pairs, out of <b>{pairs}</b> generated ones"
    return text(phrase, updates=f"{updates:,}", rows=rows, pairs=f"{generated_for_training(args):,}")


def measure(args: DpoArguments) -> StepCost:
    """What a training step of a model of that size takes on this machine, on as many tokens as an update has."""
    config = _grown_config(base_of(args), _new_tokens(args))
    return measure_step(config, args, 2 * args.per_device_train_batch_size, _padded_tokens(args))


def _new_tokens(args: DpoArguments) -> int:
    """How many generated answers give the model."""
    return min(args.new_tokens, NEW_TOKENS) if is_generated(args) and args.sft_epochs > 0 else 0


def _grown_config(base: BaseModel, new_tokens: int) -> PreTrainedConfig:
    config = copy.deepcopy(config_of(base))
    config.vocab_size += new_tokens
    return config


@functools.lru_cache(maxsize=8)
def _parameters(base: BaseModel, new_tokens: int) -> int:
    return count_parameters(_grown_config(base, new_tokens))


def cost(arguments: dict[str, DpoArguments], measured: dict[str, StepCost]) -> Cost:
    """What the run, or all trials of a sweep, will take: the reference, which is made once, then the pairs. For data
    that nobody has counted yet there are no minutes."""
    ((model, args),) = arguments.items()
    step, trials = measured[model], getattr(args, "trials", 1)
    memory = memory_of_run([step.memory(step.parameters, max(UPDATE_TOKENS, step.tokens))])
    device = find_device(args.use_cpu)
    if memory is not None and device.kind == "cpu":
        memory += TRL_BYTES
    if not is_generated(args):
        return Cost(memory_bytes=memory)
    pairs, updates = generated_for_training(args), _updates(args)
    evaluations = times(args.eval_steps, updates)
    of_trial = DPO_COST * 2 * updates * args.effective_batch_size * _padded_tokens(args)
    of_trial += SCORING_COST * (1 + evaluations + LAST_SCORES) * args.max_eval_tokens
    of_reference = args.sft_epochs * 2 * pairs * sequence_tokens(args)
    if choose_precision(device)[0] == "bf16" and not args.bf16:
        of_reference *= BF16_COST
    seconds = step.seconds(step.parameters, of_reference + trials * of_trial) + PREPARE_SECONDS + trials * TRIAL_SECONDS
    return Cost(seconds / 60, memory)


def sequence_tokens(args: DpoArguments) -> int:
    """Of prompt and answer of a generated pair, on average."""
    return min(TOKENS_OF_A_SEQUENCE[args.sft_epochs > 0], args.max_length)


def _padded_tokens(args: DpoArguments) -> int:
    return min(round(PADDED * sequence_tokens(args)), args.max_length)


def is_generated(args: DpoArguments) -> bool:
    """True if the pairs are neither a file's nor a dataset's of the hub."""
    return args.data is None and args.dataset in (None, GENERATED)


def generated_for_training(args: DpoArguments) -> int:
    """How many of the generated pairs are not held out, without making them."""
    share = GENERATED_SHARE if args.held_out_share is None else args.held_out_share
    return args.pairs - round(args.pairs * share)


PREFERENCE_PAIRS = Reckoning(check, phrases, measure, cost, complete)
TRIALS = Reckoning(check, trial_phrases, measure, cost, complete)
