"""What can be learned from preference pairs without reading them: how often a classifier finds the wanted answer of a
held-out pair if it knows only the lengths of both, or only the characters in them."""

import itertools
import zlib
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import softplus

BUCKETS = 4096  # for hashed characters and pairs of them
WEIGHT_DECAY = 1e-3

Features = Callable[[Sequence[str]], torch.Tensor]  # texts -> (texts, features)


def length_features(measure: Callable[[str], int], curve: bool = False) -> Features:
    """Length and, with `curve`, its square and its logarithm: "too short" and "too long" can be seen, too."""

    def features(texts: Sequence[str]) -> torch.Tensor:
        lengths = torch.tensor([[measure(text) / 100] for text in texts])
        return torch.cat([lengths, lengths**2, lengths.log()], dim=1) if curve else lengths

    return features


def character_features(texts: Sequence[str]) -> torch.Tensor:
    """log(1 + count) of every character and every two in a row, in buckets by their hash."""
    counts = torch.zeros(len(texts), BUCKETS)
    for row, text in enumerate(texts):
        grams = [*text, *map("".join, itertools.pairwise(text))]
        buckets = torch.tensor([zlib.crc32(gram.encode()) % BUCKETS for gram in grams])
        counts[row] = torch.bincount(buckets, minlength=BUCKETS)
    return counts.log1p()


CLASSIFIERS: dict[str, Features] = {
    "length in characters": length_features(len),
    "length in bytes": length_features(lambda text: len(text.encode())),
    "curve of length in characters": length_features(len, curve=True),
    "curve of length in bytes": length_features(lambda text: len(text.encode()), curve=True),
    "bag of characters": character_features,
}


def fit(examples: torch.Tensor) -> torch.Tensor:
    """Weights (features) of a logistic regression that scores every row above 0. No intercept: which of two answers
    is shown first says nothing."""
    weight = torch.zeros(examples.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = softplus(-(examples @ weight)).mean() + WEIGHT_DECAY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach()


def held_out_accuracy(train: Sequence, held_out: Sequence, features: Features) -> dict[str, float]:
    """Share of the held-out pairs whose chosen answer scores higher, a tie counting half: overall under "all", and for
    every kind of flaw."""

    def differences(pairs: Sequence) -> torch.Tensor:  # [pairs, features]
        return features([pair.chosen for pair in pairs]) - features([pair.rejected for pair in pairs])

    margins = differences(held_out) @ fit(differences(train))
    right = ((margins > 0).double() + (margins == 0).double() / 2).tolist()
    groups = {"all": right}
    for pair, value in zip(held_out, right, strict=True):
        groups.setdefault(pair.kind, []).append(value)
    return {kind: sum(values) / len(values) for kind, values in groups.items()}
