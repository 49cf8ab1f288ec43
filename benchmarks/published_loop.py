"""New-LLM's cell run as it was published: one time step after another under autograd, with the three gates and the head
as separate layers inside the loop. What `throughput.py` measures the fast recurrence against."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutput

from newllm_lib.models import NewLLMConfig


class PublishedLoop(nn.Module):
    """The reference cell of `config`, its weights drawn as torch's layers draw them (they do not matter for time)."""

    def __init__(self, config: NewLLMConfig):
        super().__init__()
        self.context_size = config.context_size
        self.clamp = config.context_clamp
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        widths = [config.embedding_size + config.context_size] + [config.hidden_size] * config.num_hidden_layers
        layers = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU(), nn.Dropout(config.dropout)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.delta = nn.Linear(config.hidden_size, config.context_size)
        self.forget = nn.Linear(config.hidden_size, config.context_size)
        self.write = nn.Linear(config.hidden_size, config.context_size)
        self.norm = nn.LayerNorm(config.context_size)

    def forward(self, input_ids: torch.LongTensor, labels: torch.LongTensor, use_cache: bool) -> CausalLMOutput:
        """[B, T] -> logits [B, T, V] and the mean loss; it has no cache."""
        embedded = self.embedding(input_ids)
        context = embedded.new_zeros(len(input_ids), self.context_size)
        logits = []
        for t in range(input_ids.shape[1]):
            hidden = self.layers(torch.cat([embedded[:, t], context], dim=-1))
            logits.append(self.head(hidden))
            delta = self.delta(hidden)
            forget, write = torch.sigmoid(self.forget(hidden)), torch.sigmoid(self.write(hidden))
            context = self.norm(forget * context + write * delta).clamp(-self.clamp, self.clamp)
        logits = torch.stack(logits, dim=1)
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)
