"""What the recurrence multiplies by where an adapter stands on one of its layers."""

import pytest
import torch

from newllm_lib.models import build_config, build_model
from newllm_lib.models.context_recurrence import is_plain_lora, weight_and_bias
from newllm_lib.training.adapters import allow_old_torchao

peft = pytest.importorskip("peft")

SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
VARIANTS = {"plain": {}, "two": {}, "dora": {"use_dora": True}, "bias": {"lora_bias": True}, "dropout": {}}


@pytest.fixture
def adapted():
    """kind of adapter -> a tiny New-LLM with it, its matrices random."""

    allow_old_torchao()

    def make(kind: str):
        config = build_config("newllm", vocab_size=258, num_parameters=80_000, max_length=16, **SPECIAL)
        dropout = 0.5 if kind == "dropout" else 0.0
        settings = {"r": 3, "lora_alpha": 7, "target_modules": "all-linear", "lora_dropout": dropout, **VARIANTS[kind]}
        model = peft.get_peft_model(build_model(config), peft.LoraConfig(**settings))
        if kind == "two":
            model.add_adapter("other", peft.LoraConfig(**settings))
            model.base_model.set_adapter(["default", "other"])
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter.data)
        return model.eval()

    return make


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("switched_off", [False, True])
def test_it_is_what_the_layer_makes_of_any_input(adapted, kind, switched_off):
    model = adapted(kind)
    recurrence = model.base_model.model.model.recurrence
    for layer in (recurrence.layers[0], recurrence.gates):
        assert is_plain_lora(layer) == (kind in ("plain", "two"))
        inputs = torch.randn(5, layer.in_features)
        if switched_off:
            with model.disable_adapter():
                weight, bias = weight_and_bias(layer)
                expected = layer(inputs)
            assert torch.equal(weight, layer.base_layer.weight) or kind not in ("plain", "two")
        else:
            weight, bias = weight_and_bias(layer)
            expected = layer(inputs)
        torch.testing.assert_close(inputs @ weight.t() + bias, expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_both_matrices_and_not_the_base(adapted):
    layer = adapted("plain").base_model.model.model.recurrence.gates
    inputs = torch.randn(5, layer.in_features)
    wanted = [*layer.lora_A.parameters(), *layer.lora_B.parameters()]
    weight, bias = weight_and_bias(layer)
    ours = torch.autograd.grad((inputs @ weight.t() + bias).square().sum(), wanted)
    theirs = torch.autograd.grad(layer(inputs).square().sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not layer.base_layer.weight.requires_grad


def test_merged_adapters_are_part_of_the_weight(adapted):
    model = adapted("plain")
    layer = model.base_model.model.model.recurrence.gates
    before = weight_and_bias(layer)[0].detach().clone()
    model.merge_adapter()
    torch.testing.assert_close(weight_and_bias(layer)[0], before, rtol=1e-4, atol=1e-5)
