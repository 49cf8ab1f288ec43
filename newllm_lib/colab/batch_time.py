"""What one batch of training costs, measured on a trained model."""

from pathlib import Path

import torch

from ..stages.evaluate import open_model
from ..training.device import autocast_dtype, find_device
from ..training.update import timed_update


def batch_time(folder: str | Path) -> dict[str, float]:
    """{"rows", "length", "milliseconds"} of one update of the model in `folder`, its batch as in its training. What is
    trained here is thrown away."""
    trained = open_model(folder)
    model = trained.model.train()
    rows, length = trained.session["per_device_train_batch_size"], trained.run["max_length"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    dtype = autocast_dtype(find_device())
    input_ids = torch.randint(0, model.config.vocab_size, (rows, length), device=model.device)
    timed_update(model, optimizer, input_ids[:1], dtype)  # the first sets things up that the others find ready
    return {"rows": rows, "length": length, "milliseconds": 1000 * timed_update(model, optimizer, input_ids, dtype)}


def batch_time_cells(times: list[dict[str, float] | None]) -> list[str]:
    """A row for the comparison's table; None: not measured."""
    shapes = {f"{time['rows']} x {time['length']}" for time in times if time is not None}
    title = f"ms per batch of {shapes.pop()} tokens, training" if len(shapes) == 1 else "ms per batch, training"
    return [title, *("-" if time is None else f"{time['milliseconds']:,.0f}" for time in times)]
