"""What a finished run's folder holds, for whoever tests it."""

RUN_FILES = {
    "config.json", "model.safetensors", "tokenizer.json", "settings.json", "metrics.jsonl", "curves.png", "README.md",
    "results.json",
}  # fmt: skip
