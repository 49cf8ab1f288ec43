"""New-LLM and its baselines. Importing this package registers them with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .baselines import LSTMConfig, LSTMForCausalLM, LSTMModel
from .configuration_newllm import NewLLMConfig
from .modeling_newllm import NewLLMForCausalLM, NewLLMModel
from .modeling_newllm_reference import NewLLMReferenceConfig, NewLLMReferenceForCausalLM, NewLLMReferenceModel
from .recurrent_model import ContextCache
from .sizing import MODEL_TYPES, build_config, build_model, count_parameters

for config, model, causal_lm in (
    (NewLLMConfig, NewLLMModel, NewLLMForCausalLM),
    (NewLLMReferenceConfig, NewLLMReferenceModel, NewLLMReferenceForCausalLM),
    (LSTMConfig, LSTMModel, LSTMForCausalLM),
):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
