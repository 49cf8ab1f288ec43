"""transformers' own tests of a model and of its training, run on ours.

Its source distribution lacks two mixins: of `generate`, whose cases are in test_causal_lms.py and
test_model_arguments.py, and of exporters.
"""

import importlib
import unittest

import pytest
import torch
from library_suites import stand_in, suite_package

from newllm_lib.models import (
    LSTMConfig,
    LSTMForCausalLM,
    LSTMModel,
    NewLLMConfig,
    NewLLMForCausalLM,
    NewLLMModel,
    NewLLMReferenceConfig,
    NewLLMReferenceForCausalLM,
    NewLLMReferenceModel,
)

pytest.importorskip("parameterized")
SUITE = suite_package("transformers")
stand_in(f"{SUITE}.exporters.test_export", ExportTesterMixin=object)
stand_in(f"{SUITE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
common = importlib.import_module(f"{SUITE}.test_modeling_common")
training = importlib.import_module(f"{SUITE}.test_training_mixin")
EXCEPTIONS = {
    ("TestNewLLMReference", "test_training_overfit"): "the gradients of the published cell fall by less than 90 %",
}
SIZES = {"vocab_size": 99, "hidden_size": 32, "dropout": 0.0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


class Tester:
    is_training = True
    batch_size, seq_length, num_hidden_layers = 3, 7, 1

    def __init__(self, network, causal_lm, config):
        self.base_model_class, self.causal_lm_class, self.config = network, causal_lm, config
        self.hidden_size = config.hidden_size

    def get_config(self):
        return type(self.config)(**self.config.to_diff_dict())

    def prepare_config_and_inputs_for_common(self):
        input_ids = torch.randint(3, 99, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def get_values(names):
    """The suite knows a model's kind by the name of its class in transformers' tables."""
    ours = {id(common.MODEL_MAPPING_NAMES): 0, id(common.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES): 1}
    return [*names.values(), *(kind.all_model_classes[ours[id(names)]].__name__ for kind in KINDS if id(names) in ours)]


common.get_values = get_values


class Cases(common.ModelTesterMixin, common.GenerationTesterMixin, training.TrainingTesterMixin):
    has_attentions = False
    model_tester = None

    def setUp(self):
        if reason := EXCEPTIONS.get((type(self).__name__, self._testMethodName)):
            self.skipTest(reason)
        self.model_tester = Tester(*self.all_model_classes, self.config)


class TestNewLLM(Cases, unittest.TestCase):
    all_model_classes = NewLLMModel, NewLLMForCausalLM
    config = NewLLMConfig(**SIZES, context_size=24, intermediate_size=40, num_hidden_layers=1)


class TestNewLLMReference(Cases, unittest.TestCase):
    all_model_classes = NewLLMReferenceModel, NewLLMReferenceForCausalLM
    config = NewLLMReferenceConfig(**SIZES, embedding_size=32, context_size=24)


class TestLSTM(Cases, unittest.TestCase):
    all_model_classes = LSTMModel, LSTMForCausalLM
    config = LSTMConfig(**SIZES, embedding_size=32)


KINDS = TestNewLLM, TestNewLLMReference, TestLSTM
