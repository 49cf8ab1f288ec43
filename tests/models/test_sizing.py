import pytest
import torch

from newllm_lib.models import MODEL_TYPES, build_config, build_model, count_parameters


@pytest.mark.parametrize(
    ("vocab_size", "target"), [(1000, 600_000), (1000, 1_674_000), (4096, 2_200_000), (4096, 8_000_000)]
)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_width_is_solved_within_two_percent(model_type, target, vocab_size):
    config = build_config(model_type, vocab_size, 128, num_parameters=target)
    assert abs(count_parameters(config) / target - 1) <= 0.02


def test_a_size_below_the_embedding_table_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"num_parameters 100,000 .*nearest size is 13\d,"):
        build_config("newllm", 4096, 128, num_parameters=100_000)


@pytest.mark.parametrize("model_type", ["tiny-gpt2", "lstm"])
def test_a_baseline_matches_the_default_newllm_when_no_size_is_given(model_type):
    newllm = count_parameters(build_config("newllm", 2048, 128))
    assert abs(count_parameters(build_config(model_type, 2048, 128)) / newllm - 1) <= 0.02


def test_count_is_that_of_the_built_model():
    for model_type in MODEL_TYPES:
        config = build_config(model_type, 600, 64, num_parameters=900_000)
        assert build_model(config).num_parameters() == count_parameters(config)


def test_built_models_are_fp32():
    model = build_model(build_config("tiny-gpt2", 600, 64, num_parameters=900_000))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_unknown_model_type_is_named():
    with pytest.raises(ValueError, match=r"model_type .*'gpt5'"):
        build_config("gpt5", 600, 64)


@pytest.mark.parametrize(
    ("num_parameters", "vocab_size", "layers", "width"),
    [(1_673_920, 2048, 3, 192), (4_000_000, 2048, 4, 256), (25_000_000, 8192, 6, 384), (100_000_000, 16_384, 12, 768)],
)
def test_layers_and_width_of_newllm_follow_its_size(num_parameters, vocab_size, layers, width):
    config = build_config("newllm", vocab_size, 128, num_parameters=num_parameters)
    assert (config.num_hidden_layers, config.hidden_size, config.context_size) == (layers, width, width)
    assert config.intermediate_size % 16 == 0


def test_sizes_given_by_name_are_kept():
    sizes = {"hidden_size": 96, "context_size": 144, "num_layers": 2}
    config = build_config("newllm", 1000, 128, num_parameters=900_000, **sizes)
    assert (config.hidden_size, config.context_size, config.num_hidden_layers) == (96, 144, 2)
    assert abs(count_parameters(config) / 900_000 - 1) <= 0.02


@pytest.mark.parametrize(
    ("model_type", "field"),
    [("newllm", "embedding_size"), ("newllm-reference", "intermediate_size"), ("lstm", "hidden_size")],
)
def test_a_size_that_the_model_does_not_have_is_refused(model_type, field):
    with pytest.raises(ValueError, match=rf"{field} 64 is no size of {model_type}"):
        build_config(model_type, 1000, 128, num_parameters=900_000, **{field: 64})
