"""Which layers the adapters changed most: the figures, and the picture of them."""

import pytest
import torch
from tiny_gemma import tiny_gemma_folder

from newllm_lib.adapters.base_model import find_base_model, open_base
from newllm_lib.adapters.forgetting import changes_figure, layer_changes
from newllm_lib.adapters.lora import add_adapters
from newllm_lib.models import build_config, build_model


def with_adapters(model, targets="all-linear"):
    """Adapters of which every second one has learned something."""
    torch.manual_seed(0)
    adapted = add_adapters(model, 2, 6.0, 0.0, targets)
    layers = {name: layer for name, layer in adapted.base_model.model.named_modules() if hasattr(layer, "lora_B")}
    for layer in list(layers.values())[::2]:
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    return adapted, layers


@pytest.mark.parametrize("kind", ["gemma", "gemma in 4 bit", "tiny-gpt2", "newllm"])
def test_a_change_is_that_of_the_merged_weights(kind, tmp_path):
    if kind.startswith("gemma"):
        pytest.importorskip("bitsandbytes")
        model = open_base(find_base_model(str(tiny_gemma_folder(tmp_path / "gemma"))), "4 bit" in kind)
    else:
        model = build_model(build_config(kind, 300, 32, num_parameters=80_000))
    adapted, layers = with_adapters(model)
    changes = layer_changes(adapted)
    assert changes.keys() == layers.keys()
    assert [change > 0 for change in changes.values()] == [number % 2 == 0 for number in range(len(layers))]
    if kind != "gemma in 4 bit":
        weights = {name: layer.get_base_layer().weight.detach().clone() for name, layer in layers.items()}
        merged = dict(adapted.merge_and_unload().named_modules())
        for name, change in changes.items():
            expected = (merged[name].weight - weights[name]).norm() / weights[name].norm()
            assert change == pytest.approx(float(expected), rel=1e-3, abs=1e-6), name


def test_the_picture_has_a_row_for_each_kind_and_a_column_for_each_block():
    changes = {f"model.layers.{block}.mlp.{kind}": block + 0.5 for block in range(30) for kind in ("up", "down")}
    del changes["model.layers.3.mlp.up"]
    axes = changes_figure(changes | {"projection": 0.25}).axes[0]
    table = axes.images[0].get_array()
    assert table.shape == (3, 31) and float(table[0, 29]) == 2950 and float(table[2, 30]) == 25
    assert not table.mask[1, 3] and table.mask[0, 3]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["up", "down", "projection"]
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["0", "2", "4"]
