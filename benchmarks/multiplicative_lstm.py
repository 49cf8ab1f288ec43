"""The multiplicative LSTM (Krause et al. 2016, https://arxiv.org/abs/1609.07959) behind the LSTM baseline's interface:
the strongest cell with a loop that was found, a peer for benchmarks."""

import math

import torch
from torch import nn

from newllm_lib.models import LSTMConfig, LSTMForCausalLM


class MultiplicativeLSTM(nn.Module):
    """An LSTM whose recurrent matrices read h' = (M x_t) * (Q h_{t-1}) in the place of h_{t-1}.

    Dimensions: B rows, T tokens, E embedding, H hidden.
    """

    def __init__(self, embedding_size: int, hidden_size: int):
        super().__init__()
        self.from_input = nn.Linear(embedding_size, 4 * hidden_size)
        self.factor = nn.Linear(embedding_size, hidden_size, bias=False)
        self.mix = nn.Linear(hidden_size, hidden_size, bias=False)
        self.from_hidden = nn.Linear(hidden_size, 4 * hidden_size, bias=False)

    def forward(self, inputs: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]):
        """[B, T, E] and h, c [1, B, H] -> [B, T, H] and h, c after the row."""
        h, c = (part[0] for part in state)
        outputs = []
        for given, factor in zip(self.from_input(inputs).unbind(1), self.factor(inputs).unbind(1), strict=True):
            gates = (given + self.from_hidden(factor * self.mix(h))).to(c.dtype)
            i, f, update, o = gates.chunk(4, dim=-1)
            c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), update.tanh())
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h[None], c[None])


class MultiplicativeLSTMForCausalLM(LSTMForCausalLM):
    """The LSTM baseline with the multiplicative one in its place."""

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.model.lstm = MultiplicativeLSTM(config.embedding_size, config.hidden_size)
        with torch.no_grad():
            nn.init.xavier_uniform_(self.model.lstm.from_input.weight)
            nn.init.normal_(self.model.lstm.factor.weight, std=config.embedding_size**-0.5)
            nn.init.orthogonal_(self.model.lstm.mix.weight)
            nn.init.orthogonal_(self.model.lstm.from_hidden.weight)
            self.model.lstm.from_input.bias.zero_()
            self.model.lstm.from_input.bias[config.hidden_size : 2 * config.hidden_size] = 1.0  # the forget gate's


def multiplicative_lstm_of_size(config: LSTMConfig, num_parameters: int) -> MultiplicativeLSTMForCausalLM:
    """The one nearest to `num_parameters`, embedding and vocabulary as in `config`: parameters are quadratic in H."""
    fixed = (config.vocab_size + 2) * config.embedding_size
    linear = 6 * config.embedding_size + 4  # per hidden unit
    hidden_size = round((-linear + math.sqrt(linear**2 + 20 * (num_parameters - fixed))) / 10)
    return MultiplicativeLSTMForCausalLM(LSTMConfig(**{**config.to_diff_dict(), "hidden_size": hidden_size}))
