"""transformers' `Trainer` for language models of ours: it hands a batch to the model, which computes the loss
(models/recurrent_model.py), carries the context from batch to batch, and scores every held-out token once.

Dimensions: B rows of a batch, T tokens, V vocabulary, S size of a context, N contexts held.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, Trainer

from ..data.text import IGNORED, NO_ROW, EvaluationDocuments, collate_rows, positions_within_row
from ..evaluation.perplexity import TextMetrics, score_documents
from ..models.gpu import GraphedBackward, can_be_captured
from ..models.recurrent_model import ContextCache, RecurrentGenerationMixin, loss_only, state_after
from .arguments import StageArguments
from .run_trainer import RunTrainerMixin
from .samplers import EvenSampler, LaneSampler

CONTEXT_FILE = "carried_context.safetensors"


class GraphedTrainer(Trainer):
    """transformers' `Trainer`; forward and backward of a micro-batch are one CUDA graph where the model allows it."""

    is_graphed = False
    graphed: GraphedBackward | None = None

    def training_step(self, model, inputs, num_items_in_batch=None):
        step = super().training_step
        if not (self.is_graphed and isinstance(num_items_in_batch, torch.Tensor)):
            return step(model, inputs, num_items_in_batch)
        if self.graphed is None:
            self.graphed = GraphedBackward(lambda num_items, **batch: step(model, batch, num_items), model)
        return self.graphed(num_items=num_items_in_batch, **self._prepare_inputs(inputs))


class LanguageModelTrainer(RunTrainerMixin, GraphedTrainer):
    """Trains on rows of `packed_rows`, evaluates on whole documents.

    Args:
        carry_context: hand the context from row to row (recurrent models only); otherwise rows are shuffled and each
            starts afresh.
        teacher: a model with the same tokenizer; the loss is then `distillation_loss`.
    """

    def __init__(self, model, args: StageArguments, rows, documents, tokenizer, carry_context, teacher=None, **kwargs):
        self.teacher = None if teacher is None else teacher.to(args.device).requires_grad_(False).eval()
        self.carries_context = carry_context and isinstance(model, RecurrentGenerationMixin)
        self.carrier = ContextCarrier(args.effective_batch_size)
        args.accelerator_config.non_blocking = args.dataloader_pin_memory  # or each batch waits for the one before
        sets = {"train_dataset": rows, "eval_dataset": documents.sample(args.max_eval_tokens)}
        super().__init__(model, args, collate_rows, processing_class=tokenizer, **sets, **kwargs)
        is_plain = not (args.torch_compile or args.gradient_checkpointing or args.torch_empty_cache_steps)
        # The thread that pins what worker processes load would disturb a capture.
        is_alone = args.world_size == args.n_gpu == 1 and not args.dataloader_num_workers
        self.is_graphed = is_alone and is_plain and teacher is None and can_be_captured(model)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return optimizer, options | {"lr": args.peak_learning_rate}

    def before_resume(self, checkpoint: Path) -> None:
        super().before_resume(checkpoint)
        self.carrier.load(checkpoint, self.args.device)

    def before_seal(self, checkpoint: Path) -> None:
        super().before_seal(checkpoint)
        if self.args.process_index == 0:
            self.carrier.save(checkpoint)

    def _get_train_sampler(self, train_dataset=None):
        args, num_rows = self.args, len(self.train_dataset)
        if self.carries_context:
            order = LaneSampler(num_rows, args.effective_batch_size, args.seed)
        else:
            order = SeedableRandomSampler(range(num_rows), data_seed=args.seed)
        if args.world_size == 1:
            return order
        return EvenSampler(order, num_rows, args.per_device_train_batch_size * args.world_size)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a batch. Without a teacher the model computes it itself: transformers calls
        `RecurrentGenerationMixin.forward` (models/recurrent_model.py)."""
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
            # Processes take batches in turn, and each holds the contexts of all: as one process alone would.
            self.carrier.keep(*self.accelerator.gather((rows, state_after(outputs).context.detach())))
        return (loss, outputs) if return_outputs else loss

    def _loss_with_teacher(self, model, inputs, num_items_in_batch):
        labels = inputs.pop("shift_labels")
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        with torch.no_grad():
            # The teacher sees a row at a time: it has no context of the row before.
            position_ids = positions_within_row(inputs["position_ids"])
            read = {"input_ids": inputs["input_ids"], "position_ids": position_ids, "use_cache": False}
            # Some models have more rows in their head than there are tokens.
            teacher_logits = self.teacher(**read).logits[..., : outputs.logits.shape[-1]]
        total = distillation_loss(
            outputs.logits, teacher_logits, labels, self.args.teacher_weight, self.args.teacher_temperature
        )
        # Gradients are averaged over the processes, which together have `num_items_in_batch` supervised tokens.
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total / num_items_in_batch * processes, outputs

    def score(self, documents: EvaluationDocuments) -> TextMetrics:
        """Metrics of the model as it is now."""
        model, args = self.accelerator.unwrap_model(self.model), self.args
        how = documents, self.processing_class.bos_token_id, args.max_length, args.per_device_eval_batch_size
        if not self.is_fsdp_enabled:
            return score_documents(model, *how)
        # No process holds all weights: the first gets them for once, and tells the others what it finds.
        weights, found = self.accelerator.get_state_dict(self.model), [None]
        if args.process_index == 0:
            whole = AutoModelForCausalLM.from_config(model.config, trust_remote_code=False)
            whole.load_state_dict(weights)
            found = [score_documents(whole.to(args.device), *how)]
        return broadcast_object_list(found)[0]

    def scores(self, documents: EvaluationDocuments) -> dict[str, Any]:
        return dataclasses.asdict(self.score(documents))


def count_training_tokens(args: StageArguments, num_rows: int) -> tuple[int, int]:
    """(updates, tokens) of a run over `num_rows` rows."""
    updates = args.updates(num_rows)
    return updates, updates * min(args.effective_batch_size, num_rows) * args.max_length


class ContextCarrier:
    """Holds the context after each row last seen, and hands it to the row that follows it in the text.

    The row number alone says which, so it is right under accumulation, after a resume and at the seam of two epochs,
    where no row follows the one before and all contexts begin at zero. Everything stays on the device, and in place:
    the host never waits for a row number, and a CUDA graph finds the contexts where they were.

    Attributes:
        rows: [lanes], NO_ROW where none is held yet.
        contexts: [lanes, S].
    """

    def __init__(self, lanes: int):
        self.lanes = lanes
        self.rows: torch.Tensor | None = None
        self.contexts: torch.Tensor | None = None

    def take(self, rows: torch.Tensor) -> ContextCache:
        """The cache to start rows [B] with; a row whose predecessor is not held starts from zero."""
        if self.contexts is None:
            return ContextCache()
        follows = self.rows[None, :] + 1 == rows[:, None]  # [B, lanes]
        contexts = self.contexts[follows.int().argmax(dim=1)]
        return ContextCache(torch.where(follows.any(dim=1, keepdim=True), contexts, 0.0))

    def keep(self, rows: torch.Tensor, contexts: torch.Tensor) -> None:
        """Hold `contexts` [B, S] after `rows` [B] in the place of the oldest."""
        if self.contexts is None:
            self.rows = rows.new_full((self.lanes,), NO_ROW)
            self.contexts = contexts.new_zeros(self.lanes, contexts.shape[1])
        for held, new in ((self.rows, rows), (self.contexts, contexts.detach())):
            held.copy_(torch.cat([held, new])[-self.lanes :])

    def save(self, checkpoint: Path) -> None:
        if self.contexts is not None:
            tensors = {"rows": self.rows, "contexts": self.contexts}
            save_file({name: tensor.cpu() for name, tensor in tensors.items()}, checkpoint / CONTEXT_FILE)

    def load(self, checkpoint: Path, device: torch.device) -> None:
        if (checkpoint / CONTEXT_FILE).exists():
            tensors = load_file(checkpoint / CONTEXT_FILE)
            self.keep(tensors["rows"].to(device), tensors["contexts"].to(device))


def distillation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, weight: float, temperature: float
) -> torch.Tensor:
    """Learn from a larger model beside the data (Hinton et al. 2015, https://arxiv.org/abs/1503.02531): its whole
    distribution over the next token says more than the token that came.

    Args:
        student_logits, teacher_logits: [B, T, V].
        labels: [B, T], shifted; -100 is not supervised.
        temperature: both distributions are softened by it; its square keeps the gradients' size.

    Returns:
        Nats: the sum over the supervised tokens of
        (1 - weight) * cross-entropy + weight * temperature² * KL(teacher ‖ student).
        `adapters.lwf_loss` is such a loss through a frozen head, which holds no logits of a whole batch.
    """
    supervised = labels != IGNORED
    precision = torch.promote_types(student_logits.dtype, torch.float32)  # fp32 at least
    student, teacher = student_logits[supervised].to(precision), teacher_logits[supervised].to(precision)
    task = functional.cross_entropy(student, labels[supervised], reduction="sum")
    softened = (functional.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    divergence = functional.kl_div(*softened, reduction="sum", log_target=True)
    return (1 - weight) * task + weight * temperature**2 * divergence
