"""Training in 16 bits loses nothing: the losses are those of fp32."""

import numpy as np
import pytest
import torch

from newllm_lib.models import build_config, build_model

UPDATES, ROWS, LENGTH = 500, 8, 64


def mean_of_last_losses(text: bytes, dtype: torch.dtype | None, num_parameters: int, count: int = 100) -> float:
    """Of 500 updates on bytes of real text, as the Trainer makes them, the loss scaled in fp16."""
    torch.manual_seed(0)
    model = build_model(build_config("newllm", 256, LENGTH, num_parameters=num_parameters, dropout=0.0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    tokens = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).astype(np.int64))
    rows = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    losses = []
    for update in range(UPDATES):
        input_ids = rows[order[update * ROWS : (update + 1) * ROWS]]
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model(input_ids=input_ids, labels=input_ids, use_cache=False, skip_logits=True).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-count:]) / count


@pytest.mark.slow
def test_losses_in_16_bits_are_those_of_fp32(shared_data):
    text = (shared_data / "wikitext2-valid.txt").read_bytes()
    expected = mean_of_last_losses(text, None, 100_000)
    for dtype in (torch.bfloat16, torch.float16):
        assert mean_of_last_losses(text, dtype, 100_000) == pytest.approx(expected, rel=0.003), dtype
