"""The best checkpoint is the best by the metric that was chosen, in the direction that is better of it."""

import json

import pytest
from lwf_runs import lwf_arguments
from preference_runs import dpo_arguments
from safetensors.numpy import load_file

from newllm_lib.adapters.arguments import QloraLwfArguments
from newllm_lib.adapters.merge import merge
from newllm_lib.adapters.qlora_lwf import qlora_lwf
from newllm_lib.errors import InputError
from newllm_lib.preferences.arguments import DpoArguments
from newllm_lib.preferences.dpo import dpo
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.stages.sft import SftArguments
from newllm_lib.training.checkpoint import METRICS_FILE
from newllm_lib.training.trained_model import open_model
from newllm_lib.training.trainer import LanguageModelTrainer

LESS = ["loss", "perplexity", "bits_per_byte", "word_perplexity", "eval_perplexity"]
LESS_OF = {
    PretrainArguments: LESS,
    SftArguments: LESS,
    QloraLwfArguments: [*LESS, "general_bits_per_byte", "general_kl_to_base"],
    DpoArguments: ["loss", "kl", "rejected_logp", "train_loss", "train_kl"],
}
MORE_OF = {
    PretrainArguments: ["token_accuracy"],
    QloraLwfArguments: ["token_accuracy"],
    DpoArguments: ["accuracy", "margin", "chosen_logp", "train_accuracy", "train_margin"],
}
SMALL = {
    "tokenizer": "byte", "max_length": 32, "num_parameters": 80_000, "max_steps": 6, "logging_steps": 1,
    "per_device_train_batch_size": 4, "eval_steps": 2, "save_steps": 2, "max_eval_tokens": 300,
    "save_total_limit": None, "auto_precision": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "metric", "more"),
    [(kind, name, False) for kind, names in LESS_OF.items() for name in names]
    + [(kind, name, True) for kind, names in MORE_OF.items() for name in names],
)
def test_the_direction_is_the_metrics(kind, metric, more):
    assert kind(metric_for_best_model=metric).greater_is_better is more
    with pytest.raises(InputError, match=f"greater_is_better {not more} contradicts metric_for_best_model"):
        kind(metric_for_best_model=metric, greater_is_better=not more)


@pytest.mark.parametrize("metric", ["unk_rate", "tokens", "perplexty", "accuracy", "runtime", "None"])
def test_what_is_no_metric_or_the_same_for_every_checkpoint_is_refused(metric):
    with pytest.raises(InputError, match=f"metric_for_best_model has to be one of loss, .*, got '{metric}'"):
        PretrainArguments(metric_for_best_model=metric)


def of_pretrain(folder, text_file, **fields):
    return pretrain(PretrainArguments(data=str(text_file), output_dir=str(folder / "run"), **SMALL, **fields))


def of_dpo(folder, text_file, **fields):
    pytest.importorskip("trl")
    return dpo(dpo_arguments(folder, save_total_limit=None, **fields))


def of_qlora_lwf(folder, text_file, **fields):
    pytest.importorskip("peft")
    return qlora_lwf(lwf_arguments(folder, save_total_limit=None, **fields))


@pytest.mark.parametrize(
    ("train", "metric", "better"),
    [(of_pretrain, "perplexity", min), (of_pretrain, "token_accuracy", max), (of_pretrain, "bits_per_byte", min),
     (of_qlora_lwf, "general_kl_to_base", min), (of_dpo, "kl", min), (of_dpo, "margin", max)],
)  # fmt: skip
def test_the_best_is_kept_and_stopping_early_waits_for_worse_ones(
    tmp_path, text_file, monkeypatch, train, metric, better
):
    """The second of three evaluations is the best; patience is one evaluation."""
    from newllm_lib.adapters import trainer as lwf_trainer
    from newllm_lib.preferences import trainer as preference_trainer

    of_update = dict(zip((0, 2, 4, 6), (6.0, 5.0, 3.0, 4.0) if better is min else (2.0, 3.0, 5.0, 4.0), strict=True))
    for kind in (LanguageModelTrainer, lwf_trainer.LwfTrainer, preference_trainer.PreferenceTrainer):
        real = kind.scores
        monkeypatch.setattr(
            kind,
            "scores",
            lambda self, held_out, real=real: {**real(self, held_out), metric: of_update[self.state.global_step]},
        )
    folder = train(tmp_path, text_file, metric_for_best_model=metric, early_stopping_patience=1)
    results = json.loads((folder / "results.json").read_text())
    assert (results["updates"], results["best_update"]) == (6, 4)
    (weights,) = [name for name in ("model.safetensors", "adapter_model.safetensors") if (folder / name).exists()]
    places = (folder, folder / "checkpoint-4", folder / "checkpoint-6", folder / "final-weights")
    kept, best, last, final = (load_file(place / weights) for place in places)
    assert all((kept[name] == best[name]).all() for name in best)
    assert all((final[name] == last[name]).all() for name in last)
    opened = open_model(folder / "final-weights")
    assert opened.run == open_model(folder).run, "it can be talked to as the best one can"
    if weights.startswith("adapter"):
        assert open_model(merge(folder / "final-weights", tmp_path / "whole")).run == opened.run
    assert any((kept[name] != last[name]).any() for name in last)
    assert len((folder / METRICS_FILE).read_text().splitlines()) > 6


def test_a_metric_that_an_incomplete_tokenizer_has_not_is_refused_before_training(tmp_path, text_file):
    fields = {**SMALL, "tokenizer": "word", "vocab_size": 20, "metric_for_best_model": "bits_per_byte"}
    with pytest.raises(
        InputError, match=r"metric_for_best_model bits_per_byte is no figure of .*; choose loss or perp"
    ):
        pretrain(PretrainArguments(data=str(text_file), output_dir=str(tmp_path / "run"), **fields))
    assert not (tmp_path / "run").exists()
