"""What a recurrent model remembers of a conversation, as a file that any program can read: safetensors
(https://github.com/huggingface/safetensors), with one fp32 tensor `state` [1, S] and a header of strings.

A New-LLM of L layers with context_size C and hidden_size E has S = L * (C + 2 E) numbers, in this order: the contexts
of layers 1 to L, C numbers each, which together are the context vector; the last token's u in layers 1 to L (see
models/modeling_newllm.py), E numbers each; its v in layers 1 to L, E numbers each.

The header (safetensors' `__metadata__`) has `format`, FORMAT; `model` and `weights`, whose state it is; `tokens`, how
many were read; `context_numbers`, how many of the state's first numbers are the context vector; of the model's config
LAYOUT_FIELDS, as far as it has them; and, where the words are saved, too, `messages`, as JSON.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import PreTrainedConfig

from ..errors import InputError

FORMAT = "newllm memory 2"
LAYOUT_FIELDS = ("model_type", "num_hidden_layers", "context_size", "hidden_size")


@dataclass(frozen=True)
class Memory:
    """All that a recurrent model keeps of a conversation."""

    state: torch.Tensor  # [1, S] fp32
    tokens: int  # how many it is of
    model: str  # whose it is
    weights: str  # their hash
    messages: tuple[dict[str, str], ...] = ()  # what was said, if that was saved, for people to read

    def file(self, config: PreTrainedConfig) -> bytes:
        """As a file; `config` is the model's."""
        header = {**header_of(config, self.model, self.weights), "tokens": str(self.tokens)}
        if self.messages:
            header["messages"] = json.dumps(self.messages, ensure_ascii=False)
        return save({"state": self.state.float().cpu().contiguous()}, header)


def header_of(config: PreTrainedConfig, model: str, weights: str) -> dict[str, str]:
    """What the header says of the model, which is the same in all its memories."""
    fields = config.to_dict() | {"context_numbers": config.context_numbers}
    layout = {name: str(fields[name]) for name in ("context_numbers", *LAYOUT_FIELDS) if name in fields}
    return {"format": FORMAT, "model": model, "weights": weights, **layout}


def read_memory(path: str | Path) -> Memory:
    """What `Memory.file` has written. Raises InputError: no such file, or not one of ours."""
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise InputError(f"memory {str(path)!r} does not exist; name a file that a chat has saved.", "NL-405")
    try:
        if path.stat().st_size > 2**24:  # ours have some thousand bytes
            raise ValueError("it is far too large")
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if (found := header.get("format", "unknown")) != FORMAT:
                raise ValueError(f"its format is {found[:60]!r}, not {FORMAT!r}")
            if list(file.keys()) != ["state"]:
                raise ValueError("it holds other tensors")
            state = file.get_tensor("state")
        if state.dtype != torch.float32 or state.dim() != 2 or len(state) != 1 or not state.isfinite().all():
            raise ValueError("its numbers are no state")
        roles = {"user": "user", "assistant": "assistant"}
        said = json.loads(header.get("messages", "[]"))
        messages = tuple({"role": roles[turn["role"]], "content": str(turn["content"])} for turn in said)
        return Memory(state, int(header["tokens"]), header["model"][:60], header["weights"][:60], messages)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"memory {path.name!r} is not a memory that a chat has saved ({' '.join(str(error).split())[:120]})"
        raise InputError(f"{what}; name another file.", "NL-405") from error
