"""Learning without forgetting (Li and Hoiem 2017) with adapters: the model learns a new task while its frozen base,
seen through the same weights with the adapters switched off, holds it to what it knew."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from ..data.text import IGNORED, EvaluationDocuments
from ..evaluation.perplexity import TextMetrics, score_against_base
from ..models.frozen_head import adapters_off, split_head
from ..training.trainer import LanguageModelTrainer
from .lwf_loss import lwf_loss
from .mixture import MixSampler, collate_examples


class LwfTrainer(LanguageModelTrainer):
    """Trains on an `ExampleMix`. The loss per supervised token is

        cross-entropy + distill_weight * temperature² * KL(teacher ‖ student),

    its sum over an update divided by the update's number of supervised tokens, however they fall into micro-batches.

    Args:
        general: the text on which forgetting is measured.
        separate_teacher: another model with the same tokenizer, on a device of its own or on the model's; None: the
            model itself with its adapters off, for which nothing has to be held twice.
    """

    def __init__(self, model, args, train_rows, documents, tokenizer, general, separate_teacher=None, **kwargs):
        self.separate_teacher = separate_teacher
        if separate_teacher is not None:
            self.teacher_decoder, self.teacher_head = split_head(separate_teacher.eval())
            # The network may wait on the CPU; a copy of its head is where the loss is taken.
            bias = None if self.teacher_head.bias is None else self.teacher_head.bias.to(args.device)
            weight = self.teacher_head.weight.to(args.device)
            self.teacher_head = replace(self.teacher_head, weight=weight, bias=bias)
        self.general_documents = general.sample(args.max_eval_tokens)
        # Since the last line of the log: task, KL, tokens. Where the loss is taken: nothing waits for a GPU.
        exact = torch.float32 if args.device.type == "mps" else torch.float64  # as the device has it
        self.sums = torch.zeros(3, dtype=exact, device=args.device)
        super().__init__(model, args, train_rows, documents, tokenizer, carry_context=False, **kwargs)
        self.data_collator = collate_examples
        self.model_accepts_loss_kwargs = True  # the loss divides by the tokens of the update

    def _get_train_sampler(self, train_dataset=None):
        args = self.args
        return MixSampler(self.train_dataset, args.rehearsal_ratio, args.effective_batch_size, args.seed)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        # Counted here: transformers leaves out the first label, which for most models means nothing.
        return batches, sum((batch["labels"] != IGNORED).sum() for batch in batches)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        args, chosen = self.args, inputs["supervised"]
        labels = inputs["labels"].flatten()[chosen]
        weight = scheduled(args.distill_weight, args.distill_weight_end, self.state)
        temperature = scheduled(args.temperature, args.temperature_end, self.state)
        teacher_hidden = teacher_head = None
        # accelerate has autocast around the whole model's forward, which is not called here. Without it the adapters'
        # products are in fp32, which on a GPU takes longer than the base's.
        with self.accelerator.autocast() if labels.is_cuda else nullcontext():
            decoder, head = split_head(self.accelerator.unwrap_model(model))
            hidden = rows_of(decoder, inputs["input_ids"], chosen)
            if weight > 0:
                teacher_hidden, teacher_head = self._teach(model, inputs["input_ids"], chosen)
        options = weight, temperature, args.label_smoothing_factor
        loss = lwf_loss(hidden, head, labels, teacher_hidden, teacher_head, *options)
        tokens = torch.full_like(loss.task, len(chosen))
        self.sums += torch.stack([loss.task, loss.kl, tokens])
        total = loss.total / (len(chosen) if num_items_in_batch is None else num_items_in_batch)
        return (total, {"loss": total}) if return_outputs else total

    @torch.no_grad()
    def _teach(self, model: nn.Module, input_ids: torch.Tensor, chosen: torch.Tensor):
        """(the teacher's last hidden states at the supervised tokens, its head or None for the student's)."""
        if self.separate_teacher is None:
            plain = self.accelerator.unwrap_model(model)
            with adapters_off(plain):
                return rows_of(split_head(plain)[0], input_ids, chosen), None
        there = self.separate_teacher.device
        hidden = rows_of(self.teacher_decoder, input_ids.to(there), chosen.to(there))
        return hidden.to(input_ids.device), self.teacher_head

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs and self.sums[2] > 0:
            task, divergence, tokens = self.sums.tolist()
            logs |= {"task_loss": task / tokens, "kl_to_teacher": divergence / tokens}
            self.sums.zero_()
        super().log(logs, *args, **kwargs)

    def line_so_far(self) -> dict[str, Any]:
        return {**super().line_so_far(), "sums": self.sums.tolist()}

    def take_up(self, line: dict[str, Any]) -> float:
        self.sums += self.sums.new_tensor(line["sums"])
        return super().take_up(line)

    def score_with_kl(self, documents: EvaluationDocuments) -> tuple[TextMetrics, float]:
        """(metrics of the model as it is now, its KL from the base per supervised token in nats)."""
        args, model = self.args, self.accelerator.unwrap_model(self.model)
        shape = args.max_length, args.per_device_eval_batch_size
        return score_against_base(model, documents, self.processing_class.bos_token_id, *shape)

    def scores(self, documents: EvaluationDocuments) -> dict[str, Any]:
        general, divergence = self.score_with_kl(self.general_documents)
        measured = {"general_bits_per_byte": general.bits_per_byte, "general_kl_to_base": divergence}
        return {**super().scores(documents), **measured}


def rows_of(
    decoder: nn.Module, input_ids: torch.Tensor, chosen: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The last hidden states [N, H] of the tokens with these numbers in the batch."""
    read = decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return read.last_hidden_state.flatten(0, 1).index_select(0, chosen)


def scheduled(start: float, end: float | None, state) -> float:
    """A setting that goes in a straight line from `start` to `end` over the run; `end` None: it stays."""
    if end is None or state.max_steps <= 1:
        return start
    return start + (end - start) * min(state.global_step / (state.max_steps - 1), 1.0)


class SaveEveryEpoch(TrainerCallback):
    """A checkpoint at the end of every epoch, beside those in between."""

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save = True
