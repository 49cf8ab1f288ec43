"""What came out: the models side by side, what they write, and where everything is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from IPython.display import HTML, display

from ..adapters.qlora_lwf import FORGETTING_FILE
from ..preferences.dpo import MERGED_FOLDER, PREFERENCES_FILE
from ..stages.compare import compare, comparison_cells, comparison_figure
from ..stages.generate import generate
from ..training import checkpoint
from ..training.callbacks import CURVES_FILE, METRICS_FILE
from ..training.device import autocast_dtype, find_device, size
from ..training.disk import read_json, write_json
from ..training.model_card import CARD_FILE
from ..training.trained_model import open_model
from ..training.trainer import timed_update
from .page.notices import in_one_sentence, say
from .page.pieces import AS_WRITTEN, FAINT, beside_html, escape, figure_html, table_html
from .storage import drive_copier

COMPARISON_FILE = "comparison.json"
PICTURE_FILE = "comparison.png"
# Whatever a run of any stage may leave in a model's folder.
PURPOSES = {
    checkpoint.MODEL_FILES[1]: "the weights of the best checkpoint",
    checkpoint.MODEL_FILES[0]: "the model's sizes",
    checkpoint.ADAPTER_WEIGHTS: "the adapters of the best checkpoint; the base stays where it is",
    checkpoint.ADAPTER_CONFIG: "which layers they belong to, and to which base",
    "generation_config.json": "how to generate: when to stop, the repetition penalty",
    FORGETTING_FILE: "metrics and answers before and after",
    checkpoint.REFERENCE_FOLDER: "the model that the adapters are on: it has learned the answers as such",
    PREFERENCES_FILE: "metrics by kind of flaw, answers before and after",
    MERGED_FOLDER: "one plain model of adapters and base, for transformers",
    "tokenizer.json": "the tokenizer, without which the weights mean nothing",
    checkpoint.SETTINGS_FILE: "all settings of the run",
    CARD_FILE: "the model card: text, licence, metrics, how to use it",
    METRICS_FILE: "every logged number",
    CURVES_FILE: "the learning curves",
    checkpoint.RESULTS_FILE: "the final metrics",
}


@in_one_sentence
def show_comparison(folders: Sequence[Path]) -> None:
    """Measure the trained models on the held-out text, side by side, and say which is better."""
    rows = measured_rows(folders)
    picture = Path(folders[0]).parent / PICTURE_FILE
    times = [row["batch_time"] for row in rows]
    shapes = {f" of {time['rows']} x {time['length']} tokens" for time in times}
    shape = shapes.pop() if len(shapes) == 1 else ""
    milliseconds = [f"ms per batch{shape}, training", *(f"{time['milliseconds']:,.0f}" for time in times)]
    lines = [*comparison_cells(rows), milliseconds]
    cells = [[escape(cell) for cell in line] for line in lines]
    display(HTML(f"<div>Held-out text: {escape(rows[0]['text'])}</div>{table_html(cells, header=True, numbers=True)}"))
    display(HTML(figure_html(comparison_figure(rows), "comparison", picture)))
    samples = {prompt: {row["name"]: row["samples"][prompt] for row in rows} for prompt in rows[0]["samples"]}
    is_chat = checkpoint.read_settings(Path(folders[0]))["run"]["stage"] == "sft"
    display(HTML(samples_html(samples, between="\n" if is_chat else "")))
    say(verdict(rows))


def measured_rows(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The comparison, from its file if it was made after the models were finished."""
    path = Path(folders[0]).parent / COMPARISON_FILE
    finished = max((Path(folder) / checkpoint.RESULTS_FILE).stat().st_mtime for folder in folders)
    if path.exists() and path.stat().st_mtime >= finished and (rows := read_json(path)):
        return rows
    rows = [{**row, "batch_time": batch_time(row["folder"])} for row in compare(folders)]
    write_json(path, rows)
    return rows


def batch_time(folder: str | Path) -> dict[str, float]:
    """One update in the batch of its training, of a model that is thrown away."""
    trained = open_model(folder)
    model = trained.model.train()
    rows, length = trained.session["per_device_train_batch_size"], trained.run["max_length"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    dtype = autocast_dtype(find_device())
    input_ids = torch.randint(0, model.config.vocab_size, (rows, length), device=model.device)
    timed_update(model, optimizer, input_ids[:1], dtype)  # the first sets things up that the others find ready
    return {"rows": rows, "length": length, "milliseconds": 1000 * timed_update(model, optimizer, input_ids, dtype)}


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """Which model predicts the held-out text better, whichever it is."""
    key, words = "bits_per_byte", "bits per byte"
    if any(row[key] is None for row in rows):
        key, words = "loss", "nats per token"
    best, *others = sorted(rows, key=lambda row: row[key])
    if not others:
        return f"{best['name']}: {best[key]:.3f} {words}."
    second = others[0]
    less = 1 - best[key] / second[key]
    if less < 0.005:
        both = f"{best['name']} {best[key]:.3f}, {second['name']} {second[key]:.3f} {words}"
        return f"No clear winner: {both}, less than half a per cent apart."
    return (
        f"{best['name']} predicts the held-out text better: {best[key]:.3f} against {second[key]:.3f} {words} of "
        f"{second['name']}, {less:.1%} less. One run with one seed: another seed moves both a little."
    )


@in_one_sentence
def show_samples(folders: Sequence[Path], prompt: str, max_new_tokens: int = 60, seed: int = 0) -> None:
    """Let every model continue `prompt`, side by side."""
    written = {Path(f).name: generate(f, prompt, max_new_tokens, seed)[len(prompt) :] for f in folders}
    display(HTML(samples_html({prompt: written})))
    say(f"{len(written)} continuations of the same beginning; another seed gives others.")


def samples_html(samples: dict[str, dict[str, str]], between: str = "") -> str:
    """prompt -> model -> continuation, side by side; `between` stands between a prompt and what follows it."""
    style = f"flex:1 1 260px;min-width:240px;max-height:240px;overflow-y:auto;background:{FAINT};padding:6px 10px;"
    style += f"{AS_WRITTEN};font-size:13px;line-height:1.45"
    blocks = []
    for prompt, continuations in samples.items():
        cards = []
        for model, text in continuations.items():
            written = f"<b>{escape(prompt)}</b>{between}{escape(text.strip() if between else text)}"
            cards.append(f'<div style="{style}"><div style="opacity:.75">{escape(model)}</div>{written}</div>')
        blocks.append(beside_html(cards))
    return "".join(blocks)


@in_one_sentence
def show_saved_files(folders: Sequence[Path]) -> None:
    """Every kept file of the run with its size in each model's folder, and what it is for."""
    folders = [Path(folder) for folder in folders]
    run, adapters = folders[0].parent, checkpoint.has_adapters(folders[0])
    display(HTML(files_html(folders, [folder.name for folder in folders], PURPOSES)))
    unfinished = [folder.name for folder in folders if checkpoint.read_results(folder) is None]
    if unfinished:
        say(f"{', '.join(unfinished)} is not finished: run the training cell again.", "note")
        return
    more = "the comparison too; later notebooks continue from there"
    if adapters:
        more = "newllm merge makes one plain model of the adapters and their base"
    if (folders[0] / MERGED_FOLDER).exists():
        more = f"{MERGED_FOLDER} holds the same as one plain model"
    say(f"Everything is in {run}{';' if adapters else ','} {more}.{copied(run)}")


def files_html(folders: Sequence[Path], names: Sequence[str], purposes: Mapping[str, str]) -> str:
    """A row for each file that there is, with its size in each of the folders, which are called `names`."""
    rows = [["file", *(f'<span style="white-space:nowrap">{escape(name)}</span>' for name in names), "what it is"]]
    for file, purpose in purposes.items():
        if any((folder / file).exists() for folder in folders):
            rows.append([file, *(size_html(folder / file) for folder in folders), purpose])
    return table_html(rows, header=True)


def copied(run: Path) -> str:
    """Where the copy of a run on Drive is, after a blank; nothing where there is none."""
    copier = drive_copier(run)
    return "" if copier is None else f" Its copy on Drive is {copier.copy_of(run)}."


def size_html(path: Path) -> str:
    if not path.exists():
        return "-"
    count = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    return size(count).replace(" ", "&nbsp;")
