"""transformers' `Trainer` for language models of ours: the context carried from batch to batch, and evaluation that
scores every token once."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from transformers import PreTrainedModel, Trainer

from ..data.batches import IGNORED, EvaluationDocuments, collate_rows, positions_within_row
from ..evaluation.perplexity import TextMetrics, score_documents
from ..models.context_cache import RecurrentGenerationMixin
from ..models.language_model_head import loss_only
from .arguments import StageArguments
from .context_carrier import ContextCarrier, LaneSampler
from .distillation import distillation_loss
from .even_rows import EvenSampler, RowsAndBlank
from .run_trainer import RunTrainerMixin


class LanguageModelTrainer(RunTrainerMixin, Trainer):
    """Trains on rows of `packed_rows`, evaluates on whole documents.

    Args:
        carry_context: hand the context from row to row (recurrent models only); otherwise rows are shuffled and each
            starts afresh.
        teacher: a model with the same tokenizer; the loss is then (1 - args.teacher_weight) times the cross-entropy
            plus args.teacher_weight times the KL divergence from it, see `distillation_loss`.
    """

    def __init__(
        self,
        model,
        args: StageArguments,
        train_rows,
        documents: EvaluationDocuments,
        tokenizer,
        carry_context: bool,
        teacher: PreTrainedModel | None = None,
        **kwargs,
    ):
        self.teacher = None if teacher is None else teacher.to(args.device).requires_grad_(False).eval()
        self.carries_context = carry_context and isinstance(model, RecurrentGenerationMixin)
        # The rows of one update that this process sees.
        self.carrier = ContextCarrier(args.effective_batch_size // args.world_size)
        super().__init__(
            model=model,
            args=args,
            data_collator=collate_rows,
            train_dataset=train_rows if args.world_size == 1 else RowsAndBlank(train_rows),
            eval_dataset=documents.sample(args.max_eval_tokens),
            processing_class=tokenizer,
            **kwargs,
        )
        self.num_rows = len(train_rows)

    def before_resume(self, checkpoint: Path) -> None:
        self.carrier.load(checkpoint, self.args.device)
        self.carrier.share_out(self.args)

    def before_seal(self, checkpoint: Path) -> None:
        held = self.carrier.gathered(self.accelerator, self.args)
        if self.args.process_index == 0:
            held.save(checkpoint)

    def _get_train_sampler(self, train_dataset=None):
        args = self.args
        if self.carries_context:
            order = LaneSampler(self.num_rows, args.effective_batch_size, args.seed)
        elif args.world_size == 1:
            return super()._get_train_sampler(train_dataset)
        else:  # in the order that one process has
            order = SeedableRandomSampler(range(self.num_rows), data_seed=args.seed)
        if args.world_size == 1:
            return order
        return EvenSampler(order, self.num_rows, args.per_device_train_batch_size * args.world_size)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        rows = inputs.pop("row")
        if self.carries_context:
            inputs |= {"past_key_values": self.carrier.take(rows), "use_cache": True}
        else:
            inputs |= {"position_ids": positions_within_row(inputs["position_ids"]), "use_cache": False}
        if self.teacher is not None:
            loss, outputs = self._loss_with_teacher(model, inputs, num_items_in_batch)
        else:
            inputs |= loss_only(self.accelerator.unwrap_model(model))
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.carries_context:
            self.carrier.keep(rows, outputs.past_key_values.context)
        return (loss, outputs) if return_outputs else loss

    def _loss_with_teacher(self, model, inputs, num_items_in_batch):
        labels = inputs.pop("shift_labels")
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        with torch.no_grad():
            # The teacher sees a row at a time: it has no context of the row before.
            position_ids = positions_within_row(inputs["position_ids"])
            teacher_logits = self.teacher(
                input_ids=inputs["input_ids"], position_ids=position_ids, use_cache=False
            ).logits
        total = distillation_loss(
            outputs.logits, teacher_logits, labels, self.args.teacher_weight, self.args.teacher_temperature
        )
        if num_items_in_batch is None:
            return total / (labels != IGNORED).sum(), outputs
        # Gradients are averaged over the processes, which together scored `num_items_in_batch` tokens.
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total / num_items_in_batch * processes, outputs

    def score(self, documents: EvaluationDocuments) -> TextMetrics:
        """Metrics of the model as it is now."""
        return score_documents(
            self.accelerator.unwrap_model(self.model),
            documents,
            self.processing_class.eos_token_id,
            self.args.max_length,
            self.args.per_device_eval_batch_size,
        )

    def scores(self, documents: EvaluationDocuments) -> dict[str, Any]:
        return dataclasses.asdict(self.score(documents))


def count_training_tokens(args: StageArguments, num_rows: int) -> tuple[int, int]:
    """(updates, tokens) of a run over `num_rows` rows."""
    lanes = min(args.effective_batch_size, num_rows)
    steps = args.max_steps if args.max_steps > 0 else max(round(args.num_train_epochs * (num_rows // lanes)), 1)
    return steps, steps * lanes * args.max_length
