"""A trained New-LLM as one page that runs in any browser: from a double click, with no server and no network.

The page holds the weights in half precision, the tokenizer and the programs beside this file. What comes from a model
or its card is data in it, never HTML or script; its Content-Security-Policy lets it load nothing from anywhere.
"""

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..data.chat_template import ROLE_TEMPLATE
from ..data.tokenizer import SPECIAL_TOKENS, end_token_ids, has_role_tokens
from ..errors import InputError
from ..evaluation.memory_file import header_of
from ..models import NewLLMForCausalLM
from ..training.checkpoint import run_of
from ..training.disk import read_json, saying, write_text
from ..training.trained_model import TrainedModel, open_model, weights_hash
from .model_folder import read_card

HERE = Path(__file__).parent
PAGE = "chat.html"
# Nothing from outside, and no script but the page's own, which it runs in a worker, too.
POLICY = (
    "default-src 'none'; script-src 'sha256-{hash}'; worker-src blob:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
SIZES = ("hidden_size", "context_size", "intermediate_size", "num_hidden_layers", "vocab_size", "layer_norm_eps")


def export_html(path: str | Path, output: str | Path | None = None, int8: bool = False) -> Path:
    """Write the page of the model in `path` to `output`, by default PAGE in its folder. With `int8` the matrices
    have 8 bits and a scale for each row, which halves the page.

    Raises:
        InputError: `path` holds no New-LLM with a tokenizer of bytes and no other chat template than ours, its card
            lacks a licence, or `output` cannot be written to.
    """
    trained = open_model(path)
    what = f"model {str(trained.folder)!r}"
    if not isinstance(trained.model, NewLLMForCausalLM):
        raise InputError(f"{what} is a {trained.name}; only a New-LLM can be exported as a page.")
    if not has_role_tokens(trained.tokenizer):
        raise InputError(f"{what} was trained with another tokenizer than bpe or byte, which a page cannot run.")
    if trained.tokenizer.chat_template not in (None, ROLE_TEMPLATE):
        raise InputError(f"{what} has a chat template of its own, which a page cannot run.")
    target = Path(os.path.expanduser(output or trained.folder / PAGE))
    with saying(f"output {str(target)!r} cannot be written to", "name another one"):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, page_of(trained, int8))
    return target


def page_of(trained: TrainedModel, int8: bool = False) -> str:
    """The page as HTML."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    weights = {name: tensor.cpu() for name, tensor in trained.model.state_dict().items() if name != "lm_head.weight"}
    layout = [(name, list(tensor.shape), int8 and tensor.dim() > 1) for name, tensor in weights.items()]
    numbers = b"".join(packed(weights[name], is_small) for name, _, is_small in layout)
    parts = {
        "policy": POLICY.format(hash=digest),
        "model": as_json({**description(trained), "layout": layout}),
        "weights": base64.b64encode(numbers).decode(),
        "worker": "".join((HERE / name).read_text(encoding="utf-8") for name in ("engine.js", "worker.js")),
        "texts": as_json(read_json(HERE / "texts.json")),
        "script": script,
    }
    page = (HERE / "page.html").read_text(encoding="utf-8")
    return re.sub(rf"\{{({'|'.join(parts)})\}}", lambda found: parts[found[1]], page)


def packed(tensor: torch.Tensor, is_small: bool) -> bytes:
    """A tensor as engine.js reads it: halves; or, of a matrix [rows, N], rows scales as halves and rows * N bytes."""
    if not is_small:
        return tensor.half().numpy().tobytes()
    scales = (tensor.abs().amax(dim=1, keepdim=True) / 127).half().clamp(min=2**-14)
    values = (tensor / scales.float()).round().clamp(-127, 127).to(torch.int8).numpy().tobytes()
    return scales.numpy().tobytes() + values + bytes(len(values) % 2)


def description(trained: TrainedModel) -> dict[str, Any]:
    """What the page's programs have to know of the model, but for its weights."""
    tokenizer, config = trained.tokenizer, trained.model.config
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    card = read_card(run_of(trained.folder))
    score = card.get("bits_per_byte", "-") if run_of(trained.folder) == trained.folder else "-"  # of the best weights
    about = {
        "name": "New-LLM", "parameters": trained.model.num_parameters(), "version": f"New-LLM {__version__}",
        "trained": card["trained on"], "held": card.get("tested on", card["held out"]), "score": score,
    }  # fmt: skip
    return {
        "about": about,
        "config": {name: getattr(config, name) for name in SIZES},
        "tokenizer": {
            "tokens": tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))),
            "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in backend["merges"]],
            "special": {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS},
        },
        "memory": header_of(config, trained.name, weights_hash(trained.folder)),
        "chats": tokenizer.chat_template is not None,
        "ends": end_token_ids(tokenizer),
    }


def as_json(content: Any) -> str:
    """JSON that can stand in HTML: no letter of it begins a tag."""
    return json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
