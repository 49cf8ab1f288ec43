"""New-LLM and its baselines. Importing this package registers them with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .baselines import LSTMConfig, LSTMForCausalLM, tiny_gpt2_config
from .configuration_newllm import NewLLMConfig
from .context_cache import ContextCache
from .modeling_newllm import NewLLMForCausalLM, NewLLMModel
from .sizing import MODEL_TYPES, build_config, build_model, count_parameters, load_model

AutoConfig.register(NewLLMConfig.model_type, NewLLMConfig, exist_ok=True)
AutoModel.register(NewLLMConfig, NewLLMModel, exist_ok=True)
AutoModelForCausalLM.register(NewLLMConfig, NewLLMForCausalLM, exist_ok=True)
AutoConfig.register(LSTMConfig.model_type, LSTMConfig, exist_ok=True)
AutoModelForCausalLM.register(LSTMConfig, LSTMForCausalLM, exist_ok=True)

__all__ = [
    "MODEL_TYPES",
    "ContextCache",
    "LSTMConfig",
    "LSTMForCausalLM",
    "NewLLMConfig",
    "NewLLMForCausalLM",
    "NewLLMModel",
    "build_config",
    "build_model",
    "count_parameters",
    "load_model",
    "tiny_gpt2_config",
]
