"""The layers of a model that adapters can go on, from its sizes alone: no weights are read."""

from .base_model import base_config, find_base_model
from .memory_budget import LinearSize, model_sizes

NARROWEST = 12


def modules_table(model: str | None = None, rank: int = 8) -> str:
    """The names that `lora_target_modules` takes of the model, as `find_base_model` finds it: how many layers each is
    of, their sizes, and what adapters of this rank on all of them hold. Raises InputError: there is no such model."""
    base = find_base_model(model)
    layers = model_sizes(base_config(base)).linear
    named: dict[str, list[LinearSize]] = {}
    for layer in layers:
        named.setdefault(layer.name.rsplit(".", 1)[-1], []).append(layer)
    width = max(NARROWEST, *map(len, named))
    lines = [f"{base.name}: {len(layers)} linear layers below the head", ""]
    lines += [f"{'name':<{width}} {'layers':>6} {'inputs x outputs':>18} {'weights':>15} {f'rank {rank}':>12}"]
    for name, those in [*named.items(), ("all-linear", layers)]:
        shapes = dict.fromkeys(f"{layer.inputs:,} x {layer.outputs:,}" for layer in those)
        shape = next(iter(shapes)) if len(shapes) == 1 else f"{len(shapes)} sizes"
        weights = sum(layer.weights for layer in those)
        trained = rank * sum(layer.inputs + layer.outputs for layer in those)
        lines.append(f"{name:<{width}} {len(those):>6,} {shape:>18} {weights:>15,} {trained:>12,}")
    return "\n".join([*lines, "", f"Such as: --lora_target_modules {','.join(list(named)[:2])}"])
