"""What a finished run's folder holds, for whoever tests it."""

RUN_FILES = {
    "config.json", "model.safetensors", "tokenizer.json", "settings.json", "metrics.jsonl", "curves.png", "README.md",
    "results.json",
}  # fmt: skip
ADAPTER_FILES = RUN_FILES - {"config.json", "model.safetensors"} | {
    "adapter_config.json", "adapter_model.safetensors", "generation_config.json", "forgetting.json",
}  # fmt: skip
