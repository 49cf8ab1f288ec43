"""Longer than it was trained: bits per token by position, and how many tokens back a rare word still helps.

Stretches of 4,096 tokens of held-out text are read from their first token on. New-LLM carries its state; TinyGPT2 reads
windows as long as the rows it was trained on, each token with at least half a window before it. The copy probe puts a
rare word into held-out text, and again some tokens later: by how many nats is its second time easier than without the
first?

    python benchmarks/long_text.py runs/book runs/book-gpt2 --data VALID.txt
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import functional
from transformers import PreTrainedModel

from newllm_lib.models.recurrent_model import RecurrentGenerationMixin
from newllm_lib.training.disk import write_json
from newllm_lib.training.trained_model import open_model

STRETCH = 4096
CHUNK = 64
DISTANCES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
WORDS, PLACES = 40, 4  # rare words, and how often each is tried


@torch.no_grad()
def token_nats(model: PreTrainedModel, input_ids: torch.LongTensor, window: int) -> torch.Tensor:
    """Of every token but the first of each row [B, T], its nats [B, T - 1]."""
    parts = []
    if isinstance(model, RecurrentGenerationMixin):
        cache = None
        for begin in range(0, input_ids.shape[1] - 1, CHUNK):
            piece = input_ids[:, begin : begin + CHUNK + 1]
            output = model(piece[:, : min(CHUNK, piece.shape[1] - 1)], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(functional.cross_entropy(output.logits.mT, piece[:, 1:], reduction="none"))
    else:
        begin = scored = 0
        while scored < input_ids.shape[1] - 1:
            piece = input_ids[:, begin : begin + window + 1]
            nats = functional.cross_entropy(model(piece[:, :-1]).logits.mT, piece[:, 1:], reduction="none")
            parts.append(nats[:, scored - begin :])
            scored, begin = begin + nats.shape[1], begin + window // 2
    return torch.cat(parts, dim=1)


def by_position(model: PreTrainedModel, tokens: torch.LongTensor, window: int) -> list[tuple[int, float]]:
    """(last position of an octave, bits per token in it)."""
    rows = tokens[: len(tokens) // STRETCH * STRETCH].view(-1, STRETCH)
    nats = torch.cat([token_nats(model, part, window) for part in rows.split(16)]).mean(dim=0) / np.log(2)
    edges = [0, 8, *(2**power for power in range(4, 13))]
    return [(end, float(nats[begin:end].mean())) for begin, end in itertools.pairwise(edges)]


def copy_probe(model: PreTrainedModel, tokenizer, tokens: torch.LongTensor, window: int) -> list[tuple[int, float]]:
    """(tokens between, nats that the word's second time is easier because of its first)."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(tokens, minlength=len(tokenizer))
    pieces = [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    rare = [i for i in counts.argsort().tolist() if counts[i] and pieces[i].startswith("Ġ") and len(pieces[i]) > 4]
    gains = []
    for distance in DISTANCES:
        with_word, without, places = [], [], []
        for word in rare[:WORDS]:
            for begin in torch.randint(0, len(tokens) - STRETCH, (PLACES,), generator=generator).tolist():
                text = tokens[begin : begin + 32 + distance + 1].clone()
                other = text.clone()
                text[32] = text[-1] = other[-1] = word
                with_word.append(text)
                without.append(other)
        places = [token_nats(model, torch.stack(rows), window)[:, -1].mean() for rows in (with_word, without)]
        gains.append((distance, float(places[1] - places[0])))
    return gains


def picture(results: dict[str, dict]) -> Figure:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, name, label, title in zip(
        figure.subplots(1, 2),
        ("by_position", "copy_probe"),
        ("position in the text (tokens)", "tokens since the word's first time"),
        ("bits per token", "nats that a rare word is easier\nits second time"),
        strict=True,
    ):
        for model, found in results.items():
            axes.plot(*zip(*found[name], strict=True), marker="o", markersize=3, label=model)
        axes.set_xscale("log", base=2)
        axes.set_xlabel(label)
        axes.set_ylabel(title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.axvline(found["window"], color="0.8", zorder=0)
    axes.axhline(0, color="0.8", zorder=0)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/long_text"))
    options = parser.parse_args()
    results = {}
    for folder in options.runs:
        trained = open_model(folder)
        text = options.data.read_text(encoding="utf-8")
        tokens = torch.tensor(trained.tokenizer.encode(text, add_special_tokens=False))
        window = trained.run["max_length"]
        results[trained.name] = {
            "window": window,
            "by_position": by_position(trained.model, tokens, window),
            "copy_probe": copy_probe(trained.model, trained.tokenizer, tokens, window),
        }
        for name in ("by_position", "copy_probe"):
            line = "  ".join(f"{at}: {value:.3f}" for at, value in results[trained.name][name])
            print(f"{trained.name}, {name}: {line}")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(options.output_dir / "long_text.json", results)
    picture(results).savefig(options.output_dir / "long_text.png", dpi=120)


if __name__ == "__main__":
    main()
