"""An update of learning without forgetting (notebook 05) on a model of Gemma-2B's sizes with random weights in NF4,
beside TRL's SFTTrainer: the same model, adapters, micro-batches, checkpointing and precision, but no distillation.

Seconds of an update are the median after two to warm up, each waited for; memory is torch's peak, beside what
adapters/memory_budget.py says. TRL turns adapters on 4-bit weights into bf16, ours are fp32: it is timed with both.

    python benchmarks/lwf_speed.py --max_length 512 1024 --profile
    python benchmarks/lwf_speed.py --tiny          # a small model, to try the script on a CPU
"""

import argparse
import gc
import itertools
import statistics
import tempfile
import time

import datasets
import torch
from gemma_memory_budget import GEMMA_2B, budget
from peft import PeftModel
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, GemmaConfig, PreTrainedModel, Trainer, TrainerCallback

from newllm_lib.adapters.arguments import QloraLwfArguments
from newllm_lib.adapters.lora import add_adapters, set_compute_dtype
from newllm_lib.adapters.mixture import ExampleMix
from newllm_lib.adapters.trainer import LwfTrainer
from newllm_lib.data.text import EvaluationDocuments
from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.training.disk import GB

TINY = {
    "vocab_size": 3000, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
}  # fmt: skip
RANK, ALPHA, DROPOUT = 8, 16.0, 0.05
WARM_UP = 2
CUDA = torch.cuda.is_available()


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def nf4_model(config: GemmaConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Random weights, made where they stay; every linear layer but the head in NF4 with double quantisation, as
    `adapters.lora.four_bit_config` has it."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    device = torch.device("cuda" if CUDA else "cpu")
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or module is model.get_output_embeddings():
            continue
        parent, _, child = name.rpartition(".")
        with torch.device("meta"):
            quantised = Linear4bit(module.in_features, module.out_features, bias=False, quant_type="nf4")
        nf4 = {"quant_type": "nf4", "compress_statistics": True, "module": quantised}
        quantised.weight = Params4bit(module.weight.data, requires_grad=False, **nf4)
        setattr(model.get_submodule(parent), child, quantised.to(device))
    model.is_loaded_in_4bit = True  # PEFT asks the model, and not the layers
    set_compute_dtype(model, dtype)
    return model.requires_grad_(False)


class Clock(TrainerCallback):
    """Seconds from the end of an update to the end of the next, and the profile of the last one."""

    def __init__(self, updates: int, profiler: profile | None = None):
        self.updates, self.profiler, self.ends = updates, profiler, []

    def on_train_begin(self, args, state, control, **kwargs):
        if CUDA:
            torch.cuda.reset_peak_memory_stats()

    def on_step_begin(self, args, state, control, **kwargs):
        if self.profiler is not None and state.global_step == self.updates - 1:
            self.profiler.start()

    def on_step_end(self, args, state, control, **kwargs):
        wait()
        self.ends.append(time.perf_counter())
        if self.profiler is not None and state.global_step == self.updates:
            self.profiler.stop()

    @property
    def seconds(self) -> list[float]:
        kept = self.ends[WARM_UP - 1 : len(self.ends) - (self.profiler is not None)]
        return [after - before for before, after in itertools.pairwise(kept)]


def lwf_trainer(model: PeftModel, rows: list[list[int]], settings: dict) -> LwfTrainer:
    args = QloraLwfArguments(
        model="none", load_in_4bit=True, lora_r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, rehearsal_ratio=0.0,
        eval_on_start=False, load_best_model_at_end=False, eval_strategy="no", save_strategy="no", **settings,
    )  # fmt: skip
    supervised = [[number > 0 for number in range(len(row))] for row in rows]
    mix = ExampleMix(
        datasets.Dataset.from_dict({"input_ids": rows, "supervised": supervised}).with_format("numpy"), None
    )
    held_out = EvaluationDocuments([], "nothing")
    return LwfTrainer(model, args, mix, held_out, build_tokenizer("byte", []), held_out)


def trl_trainer(model: PeftModel, rows: list[list[int]], settings: dict, keep_fp32: bool) -> Trainer:
    """`keep_fp32`: TRL turns the adapters of a model in 4 bit into bf16; turn them back."""
    from trl import SFTConfig, SFTTrainer

    settings = dict(settings)
    checkpointing = settings.pop("activation_checkpointing")
    args = SFTConfig(
        **settings, gradient_checkpointing=checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False},
        dataset_kwargs={"skip_prepare_dataset": True}, report_to="none", save_strategy="no", weight_decay=0.0,
        use_cpu=not CUDA, dataloader_pin_memory=CUDA,
    )  # fmt: skip
    rows = [row[: settings["max_length"]] for row in rows]
    data = datasets.Dataset.from_dict({"input_ids": rows, "labels": rows})
    trainer = SFTTrainer(model, args, train_dataset=data, processing_class=build_tokenizer("byte", []))
    if keep_fp32:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainer


def measure(trainer: Trainer, clock: Clock) -> tuple[float, float]:
    """(median seconds of an update, GB at the peak, 0 on a CPU)."""
    trainer.add_callback(clock)
    trainer.train()
    return statistics.median(clock.seconds), torch.cuda.max_memory_allocated() / GB if CUDA else 0.0


def clean() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def kernel_table(profiler: profile, count: int) -> str:
    """The kernels (operators on a CPU) that took most of an update."""
    events = [event for event in profiler.key_averages() if not event.key.startswith("Optimizer.step")]  # a range
    rows = [(event.self_device_time_total if CUDA else event.self_cpu_time_total, event) for event in events]
    rows = sorted((row for row in rows if row[0] > 0), key=lambda row: -row[0])
    whole = sum(microseconds for microseconds, _ in rows)
    calls = sum(event.count for _, event in rows)
    lines = [f"one update of ours: {whole / 1000:.1f} ms in {calls:,} {'kernels' if CUDA else 'operators'}"]
    lines += [f"{time / 1000:9.2f} ms {event.count:6d}  {event.key[:100]}" for time, event in rows[:count]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_length", type=int, nargs="+", default=[512])
    parser.add_argument("--micro_batch", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--updates", type=int, default=8, help="of each, beside those to warm up")
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), default="bf16" if CUDA else "fp32")
    parser.add_argument("--without_trl", action="store_true", help="ours alone")
    parser.add_argument("--profile", action="store_true", help="which kernels an update of ours spends its time in")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script")
    options = parser.parse_args()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[options.precision]
    config = GemmaConfig(**(TINY if options.tiny else GEMMA_2B))
    started = time.perf_counter()
    model = add_adapters(nf4_model(config, dtype), RANK, ALPHA, DROPOUT, "all-linear")
    clean()
    wait()
    name = torch.cuda.get_device_name() if CUDA else "a CPU"
    held = torch.cuda.memory_allocated() / GB if CUDA else 0.0
    print(
        f"{name}, {options.precision}, {model.num_parameters() / 1e9:.2f} G parameters in {held:.2f} GB, made in "
        f"{time.perf_counter() - started:.1f} s; {options.accumulation} micro-batches of {options.micro_batch} rows"
    )
    print(
        f"{'tokens':>6} {'':<20} {'s/update':>9} {'tokens/s':>9} {'to TRL':>7} {'peak GB':>8} {'budget':>7}", flush=True
    )
    updates = WARM_UP + options.updates
    generator = torch.Generator().manual_seed(0)
    profiler = None
    for max_length in options.max_length:
        shape = updates * options.micro_batch * options.accumulation, max_length + 1
        rows = torch.randint(10, config.vocab_size, shape, generator=generator).tolist()
        with tempfile.TemporaryDirectory() as folder:
            settings = {
                "output_dir": folder, "max_length": max_length, "per_device_train_batch_size": options.micro_batch,
                "gradient_accumulation_steps": options.accumulation, "max_steps": updates, "disable_tqdm": True,
                "bf16": options.precision == "bf16", "fp16": options.precision == "fp16", "learning_rate": 2e-4,
                "logging_strategy": "no", "activation_checkpointing": True,
            }  # fmt: skip
            # Ours first: what TRL does to the model stays.
            makers = {"ours, LwF": lambda rows=rows, settings=settings: lwf_trainer(model, rows, settings)}
            if not options.without_trl:
                for kind, keep in {"fp32": True, "bf16": False}.items():
                    makers[f"TRL, SFT, {kind} LoRA"] = lambda rows=rows, settings=settings, keep=keep: trl_trainer(
                        model, rows, settings, keep
                    )
            found = {}
            for kind, make in makers.items():
                if kind == "ours, LwF":
                    for parameter in model.parameters():
                        if parameter.requires_grad:
                            parameter.data = parameter.data.float()
                wanted = options.profile and kind == "ours, LwF" and max_length == options.max_length[0]
                watch = (
                    profile(activities=[ProfilerActivity.CUDA if CUDA else ProfilerActivity.CPU]) if wanted else None
                )
                profiler = watch or profiler
                trainer = make()
                found[kind] = measure(trainer, Clock(updates, watch))
                trainer.model = trainer.model_wrapped = trainer.optimizer = None
                del trainer
                clean()
        limit = sum(budget(config, options.micro_batch, max_length, RANK).values()) / GB
        ours = found["ours, LwF"][0]
        tokens = options.micro_batch * options.accumulation * max_length
        for kind, (seconds, peak) in found.items():
            ratio = "" if kind.startswith("ours") else f"{ours / seconds:.2f}"
            most = f"{limit:.2f}" if kind.startswith("ours") else ""
            print(
                f"{max_length:>6,} {kind:<20} {seconds:9.3f} {tokens / seconds:9,.0f} {ratio:>7} {peak:8.2f} {most:>7}"
            )
    if profiler is not None:
        print(kernel_table(profiler, 15))
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
