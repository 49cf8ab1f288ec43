"""A model that New-LLM is compared with: torch's LSTM behind the same interface.

Dimensions: B rows, T tokens, E embedding, H hidden, L layers, V vocabulary.
"""

import itertools

import torch
from torch import nn
from transformers import initialization as init

from .configuration_newllm import RecurrentConfig
from .recurrent_model import RecurrentGenerationMixin, RecurrentPreTrainedModel, TimeLoopMixin


class LSTMConfig(RecurrentConfig):
    """Sizes of the LSTM language model: E, H and L, as in `torch.nn.LSTM`."""

    model_type = "newllm_lstm"
    sizes = {"vocab_size": 4096, "embedding_size": 256, "hidden_size": 400, "num_hidden_layers": 1}

    def __init__(self, **kwargs):
        super().__init__(**kwargs)  # newer transformers give a class without __init__ a dataclass's

    @property
    def context_numbers(self) -> int:
        """How many numbers the state has: h and c of every layer."""
        return 2 * self.num_hidden_layers * self.hidden_size


class LSTMPreTrainedModel(RecurrentPreTrainedModel):
    config_class = LSTMConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.embedding_size**-0.5)
        elif isinstance(module, nn.LSTM):
            for name, parameter in module.named_parameters():
                if name.startswith("weight_ih"):
                    init.xavier_uniform_(parameter)
                elif name.startswith("weight_hh"):
                    init.orthogonal_(parameter)
                else:
                    # torch adds two biases; the forget gate (second quarter) gets +1 in one of them.
                    bias = torch.zeros_like(parameter)
                    if name.startswith("bias_ih"):
                        bias[module.hidden_size : 2 * module.hidden_size] = 1.0
                    init.copy_(parameter, bias)
        elif isinstance(module, nn.Linear):
            init.xavier_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)


class LSTMModel(TimeLoopMixin, LSTMPreTrainedModel):
    """torch's LSTM and the way to New-LLM's own head: hidden states [B, T, E]."""

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        E, H, L = config.embedding_size, config.hidden_size, config.num_hidden_layers
        self.embed_tokens = nn.Embedding(config.vocab_size, E)
        self.lstm = nn.LSTM(E, H, L, batch_first=True, dropout=config.dropout if L > 1 else 0.0)
        self.dropout = nn.Dropout(config.dropout)
        # norm(P h), whose product with the embedding table gives the logits, of unit variance at first because
        # embeddings start with variance 1 / E.
        norm = nn.RMSNorm(E, eps=config.layer_norm_eps)
        self.head_transform = nn.ModuleDict({"projection": nn.Linear(H, E), "norm": norm})
        self.post_init()

    def read(self, x, context, mask, starts):
        """The state is h and c of every layer, [B, 2 L H]. torch's LSTM has no mask and no reset inside a row: run it
        over the stretches between such places."""
        layers, hidden_size = self.config.num_hidden_layers, self.config.hidden_size
        x = x * self.config.embedding_size**0.5
        batch_size, num_tokens = x.shape[:2]
        mask = x.new_ones(batch_size, num_tokens, dtype=torch.bool) if mask is None else mask
        starts = torch.zeros_like(mask) if starts is None else starts
        if context is None:
            context = x.new_zeros(batch_size, 2 * layers * hidden_size)
        edges = starts.any(dim=0)
        edges[1:] |= (mask[:, 1:] != mask[:, :-1]).any(dim=0)
        cuts = sorted({0, num_tokens, *edges.nonzero().flatten().tolist()})
        hidden_states = []
        for begin, end in itertools.pairwise(cuts):
            context = context.masked_fill(starts[:, begin, None], 0.0)
            state = context.view(batch_size, 2, layers, hidden_size).permute(1, 2, 0, 3).contiguous()
            output, (h, c) = self.lstm(x[:, begin:end], (state[0], state[1]))
            after = torch.stack([h, c]).permute(2, 0, 1, 3).reshape(batch_size, -1)
            context = torch.where(mask[:, begin, None], after, context)
            hidden_states.append(output)
        projection, norm = self.head_transform.values()
        x = projection(self.dropout(torch.cat(hidden_states, dim=1)))  # [B, T, E]
        return norm(x.to(norm.weight.dtype)), context  # in fp32 also under autocast, as torch does for LayerNorm


class LSTMForCausalLM(RecurrentGenerationMixin, LSTMPreTrainedModel):
    """torch's LSTM between a tied embedding and New-LLM's own head, so that only the recurrence differs."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.model = LSTMModel(config)
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size, bias=False)
        self.register_load_state_dict_pre_hook(_take_earlier_names)
        self.post_init()


def _take_earlier_names(model, state_dict, prefix, *_) -> None:
    """A run from before the network was a module of its own goes on: `from_pretrained` adds the prefix by itself, the
    Trainer's resuming does not."""
    for name in list(state_dict):
        if name.removeprefix(prefix).startswith(("embed_tokens.", "lstm.", "head_transform.")):
            state_dict[f"{prefix}model.{name.removeprefix(prefix)}"] = state_dict.pop(name)
