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
    with pytest.raises(ValueError, match=r"num_parameters 600,000 .*nearest size is 1,0"):
        build_config("newllm", 4096, 128, num_parameters=600_000)


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
