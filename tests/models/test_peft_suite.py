"""PEFT's own tests of its methods on a decoder, run on New-LLM."""

import importlib
import sys
from types import ModuleType

import pytest
import torch
from library_suites import suite_package

from newllm_lib.adapters.lora import allow_old_torchao
from newllm_lib.models import NewLLMConfig, NewLLMForCausalLM

pytest.importorskip("peft")
allow_old_torchao()
SUITE = suite_package("peft")
if importlib.util.find_spec("diffusers") is None:  # which the suite imports for models of images
    sys.modules["diffusers"] = ModuleType("diffusers")
    sys.modules["diffusers"].StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
suite = importlib.import_module(f"{SUITE}.test_decoder_models")
if sys.modules["diffusers"].__spec__ is None:  # others ask whether it is there
    del sys.modules["diffusers"]

pytestmark = pytest.mark.slow
MODEL = "tiny-newllm"
LINEAR = ["forget_gate", "delta", "output_gate", "context_out", "mlp_gate", "mlp_in", "mlp_out"]
EXCEPTIONS = {
    "PrefixTuningConfig": "it writes keys and values, which a model without attention has none of",
    "CartridgeConfig": "the same",
    "CPTConfig": "it takes the number of attention heads from the model's config alone",
}


def settings_for_newllm(kind, settings: dict) -> dict:
    """PEFT knows neither the layers of a model that is not of transformers nor that one may have no attention."""
    fields = kind.__dataclass_fields__
    if "num_virtual_tokens" in fields:
        return {**settings, "num_attention_heads": 1}
    if "target_modules" in fields and kind.__name__ != "ShadowConfig":  # which finds its layers by itself
        settings = {**settings, "target_modules": LINEAR[:1] if kind.__name__ == "BeftConfig" else LINEAR}  # biases
    return {**settings, "feedforward_modules": LINEAR[-1:]} if "feedforward_modules" in fields else settings


suite.PEFT_DECODER_MODELS_TO_TEST[:] = [MODEL]
suite.ALL_CONFIGS[:] = [
    (kind, settings_for_newllm(kind, settings))
    for kind, settings in suite.ALL_CONFIGS
    if kind.__name__ not in EXCEPTIONS
]


def is_of_any_decoder(test) -> bool:
    return any(mark.args[1] is suite.PEFT_DECODER_MODELS_TO_TEST for mark in getattr(test, "pytestmark", ()))


class TestNewLLM(suite.TestDecoderModels):
    @pytest.fixture(autouse=True, scope="class")
    def folder(self, tmp_path_factory, byte_tokenizer):
        folder = tmp_path_factory.mktemp("models")
        torch.manual_seed(0)
        byte_tokenizer.save_pretrained(folder / MODEL)
        sizes = {"vocab_size": len(byte_tokenizer), "hidden_size": 32, "context_size": 32, "intermediate_size": 64}
        model = NewLLMForCausalLM(NewLLMConfig(**sizes, num_hidden_layers=2, pad_token_id=0, eos_token_id=2))
        model.save_pretrained(folder / MODEL)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            yield


for name in dir(TestNewLLM):
    if name.startswith("test_") and not is_of_any_decoder(getattr(TestNewLLM, name)):
        setattr(TestNewLLM, name, None)
