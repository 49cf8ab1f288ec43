"""The models New-LLM is compared with: transformers' GPT-2, and torch's LSTM behind the same interface.

Dimensions: B rows, T tokens, E embedding, H hidden, L layers, V vocabulary.
"""

import itertools

import torch
from torch import nn
from transformers import GPT2Config, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .context_cache import ContextCache, RecurrentGenerationMixin
from .modeling_newllm import CausalLMHeadMixin, TiedHead


def tiny_gpt2_config(hidden_size: int, **fields) -> GPT2Config:
    """A small GPT-2: 4 heads, `hidden_size` a multiple of 4; learned positions cover `n_positions` tokens."""
    return GPT2Config(n_embd=hidden_size, n_head=4, **fields)


class LSTMConfig(PreTrainedConfig):
    """Sizes of the LSTM language model: E embedding, H hidden, L layers, as in `torch.nn.LSTM`."""

    model_type = "newllm_lstm"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 4096,
        embedding_size: int = 256,
        hidden_size: int = 400,
        num_hidden_layers: int = 1,
        dropout: float = 0.1,
        layer_norm_eps: float = 1e-5,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.dropout = dropout
        self.layer_norm_eps = layer_norm_eps
        self.use_cache = use_cache
        super().__init__(
            tie_word_embeddings=tie_word_embeddings,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            **kwargs,
        )


class LSTMForCausalLM(CausalLMHeadMixin, PreTrainedModel, RecurrentGenerationMixin):
    """torch's LSTM between a tied embedding and New-LLM's own head, so that only the recurrence differs."""

    config_class = LSTMConfig
    base_model_prefix = "lstm"
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.lstm = nn.LSTM(
            config.embedding_size,
            config.hidden_size,
            config.num_hidden_layers,
            batch_first=True,
            dropout=config.dropout if config.num_hidden_layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head_transform = TiedHead(config.hidden_size, config.embedding_size, config.layer_norm_eps)
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size, bias=False)
        self.post_init()

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

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: ContextCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Arguments as `NewLLMForCausalLM.forward`; the carried context is [B, 2 L H]: h and c of every layer."""
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        batch_size, num_tokens = inputs_embeds.shape[:2]
        mask = inputs_embeds.new_ones(batch_size, num_tokens, dtype=torch.bool)
        if attention_mask is not None:
            mask = attention_mask[:, -num_tokens:].bool()
        starts = torch.zeros_like(mask)
        if position_ids is not None:
            starts = (position_ids == 0).expand(batch_size, num_tokens) & mask
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = ContextCache()
        hidden_states, context = self._recur(
            inputs_embeds * self.config.embedding_size**0.5,
            None if past_key_values is None else past_key_values.context,
            mask,
            starts,
        )
        if past_key_values is not None:
            past_key_values.update(context, num_tokens)
        outputs = BaseModelOutputWithPast(
            last_hidden_state=self.dropout(hidden_states), past_key_values=past_key_values
        )
        return self.lm_output(outputs, labels, logits_to_keep, **kwargs)

    def _recur(self, inputs_embeds, context, mask, starts):
        """torch's LSTM has no mask and no reset inside a row: run it over the stretches between such places."""
        layers, hidden_size = self.config.num_hidden_layers, self.config.hidden_size
        batch_size, num_tokens = mask.shape
        if context is None:
            context = inputs_embeds.new_zeros(batch_size, 2 * layers * hidden_size)
        edges = starts.any(dim=0)
        edges[1:] |= (mask[:, 1:] != mask[:, :-1]).any(dim=0)
        cuts = sorted({0, num_tokens, *edges.nonzero().flatten().tolist()})
        hidden_states = []
        for begin, end in itertools.pairwise(cuts):
            context = context.masked_fill(starts[:, begin, None], 0.0)
            state = context.view(batch_size, 2, layers, hidden_size).permute(1, 2, 0, 3).contiguous()
            output, (h, c) = self.lstm(inputs_embeds[:, begin:end], (state[0], state[1]))
            after = torch.stack([h, c]).permute(2, 0, 1, 3).reshape(batch_size, -1)
            context = torch.where(mask[:, begin, None], after, context)
            hidden_states.append(output)
        return torch.cat(hidden_states, dim=1), context
