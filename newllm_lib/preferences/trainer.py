"""Direct preference optimisation (Rafailov et al. 2023) with adapters: TRL's `DPOTrainer` in a run folder of ours.

Importing this module imports TRL, which takes seconds.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from trl import DPOConfig, DPOTrainer

from ..adapters.lora import allow_old_torchao, lora_config
from ..training.run_trainer import RunTrainerMixin
from ..training.samplers import EvenSampler
from .arguments import DpoArguments, values_for
from .pairs import EncodedPreference, Preferences, sample_pairs
from .scores import PairScores, chosen_falls, preference_metrics, score_pairs

logger = logging.getLogger(__name__)


def dpo_config(args: DpoArguments) -> DPOConfig:
    """Our settings for TRL, whose other fields keep their defaults."""
    weights = {args.loss_type: 1.0} | ({"sft": args.sft_weight} if args.sft_weight > 0 else {})
    ours = {"beta": args.beta, "label_smoothing": args.label_smoothing, "max_length": args.max_length}
    ours |= {"loss_type": list(weights), "loss_weights": list(weights.values())}
    ours |= {"learning_rate": args.peak_learning_rate}
    fixed = {"remove_unused_columns": False, "disable_dropout": True}
    config = DPOConfig(**{**values_for(TrainingArguments, args), **ours, **fixed})
    vars(config)["_setup_devices"] = args.device  # of a CPU without the number, which torch cannot load onto
    return config


class ShuffledLengthGroups(LengthGroupedSampler):
    """transformers' groups of like length, in a random order: its own puts long batches before short ones, which an
    optimizer's state follows. The order comes from seed and epoch, so that a resumed run takes the same one."""

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int):
        super().__init__(batch_size, lengths=list(lengths))
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        whole = len(indices) - len(indices) % self.batch_size  # an incomplete batch stays the last
        batches = torch.tensor(indices[:whole]).view(-1, self.batch_size)
        yield from batches[torch.randperm(len(batches), generator=generator)].flatten().tolist()
        yield from indices[whole:]


class PreferenceTrainer(RunTrainerMixin, DPOTrainer):
    """Trains adapters on pairs; the reference is the model with its adapters off. The loss is TRL's as a mean over
    the pairs of an update, however they fall into micro-batches. The metrics of an evaluation are those of
    `preference_metrics`: exact means over pairs, on held-out pairs and on as many training pairs. The model is a plain
    one, which gets its adapters here; the pairs are those of `drop_too_long`."""

    def __init__(
        self, model, args: DpoArguments, train_pairs: Preferences, held_out: Preferences, tokenizer, callbacks=()
    ):
        allow_old_torchao()
        self.settings = args
        self.lengths = [pair.length for pair in train_pairs.encoded]
        self.train_sample, self.held_out_sample = (
            sample_pairs(side.encoded, args.max_eval_tokens) for side in (train_pairs, held_out)
        )
        sides = ("prompt", "chosen", "rejected")
        rows = [{f"{side}_ids": getattr(pair, side) for side in sides} for pair in train_pairs.encoded]
        blank = {"prompt_ids": rows[0]["prompt_ids"][:1] * 2, "chosen_ids": [], "rejected_ids": []}
        set_seed(args.seed)  # TRL 0.29 draws the adapters before it seeds, newer ones after
        super().__init__(
            model=model,
            args=dpo_config(args),
            train_dataset=Dataset.from_list([*rows, blank] if args.world_size > 1 else rows),
            eval_dataset=Dataset.from_list(rows[:1]),  # evaluation is ours, but a Trainer that evaluates wants one
            processing_class=tokenizer,
            peft_config=lora_config(model, args.lora_r, args.lora_alpha, 0.0, args.targets),
            callbacks=[*callbacks, ChosenFalls()],
        )

    def _prepare_dataset(self, dataset: Dataset, *args) -> Dataset:
        """As it is: TRL would make the same token ids of the conversations."""
        return dataset

    def _get_train_sampler(self, train_dataset=None) -> Sampler[int]:
        args = self.settings
        order = ShuffledLengthGroups(args.effective_batch_size, self.lengths, args.seed)
        if args.world_size == 1:
            return order
        return EvenSampler(order, len(self.lengths), args.per_device_train_batch_size * args.world_size)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = sum(map(pairs_and_tokens, batches), torch.zeros(2, dtype=torch.long, device=device))
        self.update_counts = self.accelerator.gather(counts[None]).sum(dim=0)
        return batches, items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's. Its loss is the mean over the micro-batch's pairs and, with `sft_weight`, over the tokens of their
        chosen answers; the Trainer averages micro-batches, and processes their gradients. Each mean is weighed by its
        part of the update. A blank pair has a loss, which no weight can change: it is taken off again."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        configured, counts = (self.loss_types, self.loss_weights), pairs_and_tokens(inputs)
        pairs, processes = len(inputs["input_ids"]) // 2, self.accelerator.num_processes
        share = self.current_gradient_accumulation_steps * processes / self.update_counts
        parts = pairs * share[0], counts[1] * share[1]
        weights = [weight * part for weight, part in zip(self.loss_weights, parts, strict=False)]
        learned = len(weights) if processes == 1 or counts[1] > 0 else 1  # a mean over no tokens is no number
        self.loss_types, self.loss_weights = self.loss_types[:learned], weights[:learned]
        try:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self.loss_types, self.loss_weights = configured
        return loss - blank_loss(self.settings) * (pairs - counts[0]) * share[0]

    def score_pairs(self, pairs: Sequence[EncodedPreference]) -> PairScores:
        """Every pair under the model as it is now, and under its reference."""
        return score_pairs(self.accelerator.unwrap_model(self.model), pairs, self.settings.per_device_eval_batch_size)

    def scores(self, held_out: Any) -> dict[str, Any]:
        on_held_out, on_train = (
            preference_metrics(self.score_pairs(pairs), self.settings.beta)
            for pairs in (self.held_out_sample, self.train_sample)
        )
        return {**on_held_out, **{f"train_{name}": value for name, value in on_train.items() if name != "pairs"}}

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if any(name.startswith("eval_") for name in logs):
            # TRL would add to it, and forget, what it has counted since the last line about training.
            Trainer.log(self, logs, *args, **kwargs)
        else:
            super().log(logs, *args, **kwargs)

    def line_so_far(self) -> dict[str, Any]:
        return {**super().line_so_far(), "metrics": self._metrics["train"]}

    def take_up(self, line: dict[str, Any]) -> float:
        for name, values in line["metrics"].items():
            self._metrics["train"][name][:0] = values
        return super().take_up(line)

    def create_model_card(self, *args, **kwargs) -> None:
        """Nothing: TRL's has other contents, and the run writes its own."""


def pairs_and_tokens(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[2]: pairs of TRL's batch that are not blank, and tokens of their chosen answers. The batch holds all chosen
    answers before all rejected ones."""
    chosen, _ = batch["completion_mask"].chunk(2)
    return torch.stack([chosen.any(dim=1).sum(), chosen[:, 1:].sum()])


def blank_loss(args: DpoArguments) -> float:
    """What TRL's loss is of a pair whose answers have no tokens."""
    return {"hinge": 1.0, "apo_zero": 1.0, "ipo": 1 / (2 * args.beta) ** 2}.get(args.loss_type, math.log(2))


class ChosenFalls(TrainerCallback):
    """Warns, once, when the chosen answers become less likely while the margin grows."""

    first: dict[str, float] | None = None
    has_warned = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.first = next((entry for entry in state.log_history if "eval_chosen_logp" in entry), None)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.first = self.first or metrics
        if not self.has_warned and (sentence := chosen_falls(self.first, metrics)):
            self.has_warned = True
            logger.warning("%s", sentence)
