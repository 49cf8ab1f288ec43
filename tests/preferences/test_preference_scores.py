"""Log-probabilities, KL and metrics against the plain formula on full logits."""

import math

import pytest
import torch
from preference_runs import opened, tiny_chat_model

from newllm_lib.adapters.lora import add_adapters
from newllm_lib.preferences.pairs import EncodedPreference
from newllm_lib.preferences.scores import PairScores, accuracy_by_kind, preference_metrics, score_pairs


def random_pairs(count: int) -> list[EncodedPreference]:
    generator = torch.Generator().manual_seed(1)

    def ids(length):
        return torch.randint(0, 256, (length,), generator=generator).tolist()

    return [EncodedPreference(ids(3 + n), ids(2 + 2 * n), ids(9 - n), "ab"[n % 2]) for n in range(count)]


@pytest.mark.parametrize("model_type", ["tiny-gpt2", "newllm", "newllm-reference"])
def test_scores_are_those_of_full_logits(tmp_path, model_type):
    model = add_adapters(opened(tiny_chat_model(tmp_path / "model", model_type)), 4, 8.0, 0.0, "all-linear").eval()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    pairs = random_pairs(5)
    scores = score_pairs(model, pairs, batch_size=2)
    for number, pair in enumerate(pairs):
        for side in ("chosen", "rejected"):
            answer = getattr(pair, side)
            log_p = own_log_probs(model, pair.prompt + answer)[len(pair.prompt) - 1 :]
            with model.disable_adapter():
                log_q = own_log_probs(model, pair.prompt + answer)[len(pair.prompt) - 1 :]
            targets = torch.tensor(answer)[:, None]
            for name, log in ((side, log_p), (f"reference_{side}", log_q)):
                expected = float(log.gather(1, targets).sum())
                assert float(getattr(scores, name)[number]) == pytest.approx(expected, abs=1e-4)
            if side == "chosen":
                kl = (log_p.exp() * (log_p - log_q)).sum()
                assert float(kl) > 1e-4
                assert float(scores.kl[number]) == pytest.approx(float(kl), rel=1e-3)
                assert scores.tokens[number] == len(answer)


@torch.no_grad()
def own_log_probs(model, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)


def test_metrics_are_means_over_pairs():
    def column(*values):
        return torch.tensor(values, dtype=torch.float64)

    scores = PairScores(
        column(-10, -20, -30), column(-15, -25, -20), column(-12, -20, -30), column(-12, -20, -20),
        column(1.0, 2.0, 0.0), column(4, 6, 5),
    )  # fmt: skip
    metrics = preference_metrics(scores, beta=0.5)
    assert scores.margins(0.5).tolist() == [2.5, 2.5, 0.0]
    assert metrics["accuracy"] == pytest.approx(2.5 / 3) and metrics["margin"] == pytest.approx(5 / 3)
    assert metrics["loss"] == pytest.approx((2 * math.log1p(math.exp(-2.5)) + math.log(2)) / 3)
    assert [metrics[name] for name in ("chosen_logp", "rejected_logp", "kl", "pairs")] == [-20, -20, 0.2, 3]
    pairs = [EncodedPreference([1], [2], [3], kind) for kind in ("rude", "", "vague")]
    assert accuracy_by_kind(scores, pairs, 0.5) == {"rude": 1.0, "vague": 0.5}
