"""What came out of a training: the models side by side, before and after it, what they write, and the files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from ..adapters.forgetting import changes_figure
from ..adapters.qlora_lwf import ANSWER_TOKENS, FORGETTING_FILE
from ..data.chat_template import borrowed_template
from ..errors import InputError
from ..evaluation.generation import continue_prompt, reply_to
from ..evaluation.perplexity import score_documents
from ..export.html import PAGE
from ..preferences.dpo import MERGED_FOLDER, PREFERENCES_FILE
from ..stages.compare import compare, comparison_cells, comparison_figure, goal_cells
from ..stages.evaluate import held_out_documents, held_out_text, score
from ..stages.generate import generate
from ..stages.sft import advice
from ..training import checkpoint
from ..training.checkpoint import CURVES_FILE, METRICS_FILE
from ..training.curves import plain
from ..training.device import autocast_dtype, find_device
from ..training.disk import read_json, size, write_json
from ..training.run import CARD_FILE
from ..training.trained_model import open_model, read_tokenizer
from .page.languages import text, translate
from .page.notices import in_one_sentence, say, show
from .page.pieces import AS_WRITTEN, FAINT, beside_html, escape, figure_html, label_of, small_html, table_html
from .panel.controls import in_the_panels_words
from .panel.settings_panel import SettingsPanel
from .storage import drive_copier
from .timed_update import TimedUpdate

COMPARISON_FILE = "comparison.json"
# Whatever a run of any stage may leave in a model's folder.
PURPOSES = {
    checkpoint.MODEL_FILES[1]: "the weights of the best checkpoint",
    checkpoint.MODEL_FILES[0]: "the model's sizes",
    checkpoint.FINAL_FOLDER: "the weights after the last update, where the best are another's: --which final",
    checkpoint.ADAPTER_WEIGHTS: "the adapters of the best checkpoint; the base stays where it is",
    checkpoint.ADAPTER_CONFIG: "which layers they belong to, and to which base",
    "generation_config.json": "how to generate: when to stop, the repetition penalty",
    FORGETTING_FILE: "metrics and answers before and after",
    checkpoint.REFERENCE_FOLDER: "the model that the adapters are on: it has learned the answers as such",
    PREFERENCES_FILE: "metrics by kind of flaw, answers before and after",
    MERGED_FOLDER: "one plain model of adapters and base, for transformers",
    "tokenizer.json": "the tokenizer, without which the weights mean nothing",
    PAGE: "the model as one page, which runs in any browser",
    checkpoint.SETTINGS_FILE: "all settings of the run",
    CARD_FILE: "the model card: text, licence, metrics, how to use it",
    METRICS_FILE: "every logged number",
    CURVES_FILE: "the learning curves",
    checkpoint.RESULTS_FILE: "the final metrics",
}
MAX_NEW_TOKENS = 60
UNTRAINED_TOKENS = 2_000  # scored before training
METRIC_TITLES = ("bits per byte", "perplexity (per token)", "token accuracy")
FORGETTING_PICTURE, LAYERS_PICTURE = "forgetting.png", "layers.png"
KINDS = {"new_task": "new task", "general_text": "general text"}
BETTER, WORSE, UNCHANGED = "#1a7f37", "#cf222e", "#6e7781"
NO_CHANGE = 0.002  # a smaller change is none: another held-out sample would move the figures as far

Answers = tuple[Sequence[str], int]  # of one model to each prompt, and how many ended by themselves


@in_one_sentence()
def show_comparison(folders: Sequence[Path]) -> None:
    """Measure the trained models on the held-out text, side by side, and say which is better."""
    run, rows = Path(folders[0]).parent, measured_rows(folders)
    times = [row["batch_time"] for row in rows]
    shapes = {f" of {time['rows']} x {time['length']} tokens" for time in times}
    shape = shapes.pop() if len(shapes) == 1 else ""
    milliseconds = [f"ms per batch{shape}, training", *(f"{time['milliseconds']:,.0f}" for time in times)]
    reached = [["", "goal of the guides", "figure"], *([escape(cell) for cell in line] for line in goal_cells(rows))]
    cells = [[escape(cell) for cell in line] for line in (*comparison_cells(rows), milliseconds)]
    source = translate(f"Held-out text ({rows[0]['split']}): {rows[0]['text']}")
    show(f"<div>{escape(source)}</div>{table_html(cells, header=True, numbers=True)}")
    if len(reached) > 1:
        show(table_html(reached, header=True))
    show(figure_html(comparison_figure(rows), "comparison", run / "comparison.png"))
    samples = {prompt: {row["name"]: row["samples"][prompt] for row in rows} for prompt in rows[0]["samples"]}
    is_chat = checkpoint.read_settings(Path(folders[0]))["run"]["stage"] == "sft"
    show(samples_html(samples, between="\n" if is_chat else ""))
    say(verdict(rows))


def measured_rows(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The comparison, from its file if it was made after the models were finished."""
    path = Path(folders[0]).parent / COMPARISON_FILE
    finished = max((Path(folder) / checkpoint.RESULTS_FILE).stat().st_mtime for folder in folders)
    if path.exists() and path.stat().st_mtime >= finished and (rows := read_json(path)) and "goals" in rows[0]:
        return rows  # that of an earlier version has none
    rows = [{**row, "batch_time": batch_time(row["folder"])} for row in compare(folders)]
    write_json(path, rows)
    return rows


def batch_time(folder: str | Path) -> dict[str, float]:
    """One update in the batch of its training, of a model that is thrown away."""
    trained = open_model(folder)
    model = trained.model.train()
    rows, length = trained.session["per_device_train_batch_size"], trained.run["max_length"]
    input_ids = torch.randint(0, model.config.vocab_size, (rows, length), device=model.device)
    update = TimedUpdate(model, torch.optim.AdamW(model.parameters()), input_ids, autocast_dtype(find_device()))
    update()  # the first sets things up that the others find ready
    return {"rows": rows, "length": length, "milliseconds": 1000 * update()}


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


@in_one_sentence()
def show_samples(folders: Sequence[Path], prompt: str, max_new_tokens: int = 60, seed: int = 0) -> None:
    written = {Path(f).name: generate(f, prompt, max_new_tokens, seed)[len(prompt) :] for f in folders}
    show(samples_html({prompt: written}))
    say(f"{len(written)} continuations of the same beginning; another seed gives others.")


def samples_html(samples: dict[str, dict[str, str]], between: str = "") -> str:
    """prompt -> model -> continuation, side by side; `between` stands between a prompt and what follows it."""
    style = f"flex:1 1 260px;min-width:240px;max-height:240px;overflow-y:auto;background:{FAINT};padding:6px 10px;"
    style += f"{AS_WRITTEN};font-size:13px;line-height:1.45"
    blocks = []
    for prompt, continuations in samples.items():
        cards = []
        for model, continuation in continuations.items():
            written = f"<b>{escape(prompt)}</b>{between}{escape(continuation.strip() if between else continuation)}"
            cards.append(f'<div style="{style}"><div style="opacity:.75">{escape(model)}</div>{written}</div>')
        blocks.append(beside_html(cards))
    return "".join(blocks)


@in_one_sentence()
def show_saved_files(folders: Sequence[Path]) -> None:
    """Every kept file of the run with its size in each model's folder, and what it is for."""
    folders = [Path(folder) for folder in folders]
    run, adapters = folders[0].parent, checkpoint.has_adapters(folders[0])
    show(files_html(folders, [folder.name for folder in folders], PURPOSES))
    if unfinished := [folder.name for folder in folders if checkpoint.read_results(folder) is None]:
        say(f"{', '.join(unfinished)} is not finished: run the training cell again.", "note")
        return
    more = "the comparison too; later notebooks continue from there"
    if adapters:
        more = "newllm export --format merged makes one plain model of the adapters and their base"
    if (folders[0] / MERGED_FOLDER).exists():
        more = f"{MERGED_FOLDER} holds the same as one plain model"
    say(f"Everything is in {run}{';' if adapters else ','} {more}.{copied(run)}")


def files_html(folders: Sequence[Path], names: Sequence[str], purposes: Mapping[str, str]) -> str:
    """A row for each file that there is, with its size in each of the folders, which are called `names`."""
    # Names of files and folders stand in a div, so that no language changes them.
    rows = [["file", *(f'<div style="white-space:nowrap">{escape(name)}</div>' for name in names), "what it is"]]
    for file, purpose in purposes.items():
        if any((folder / file).exists() for folder in folders):
            rows.append([f"<div>{file}</div>", *(size_html(folder / file) for folder in folders), purpose])
    return table_html(rows, header=True)


def copied(run: Path) -> str:
    copier = drive_copier(run)
    return "" if copier is None else f" Its copy on Drive is {copier.copy_of(run)}."


def size_html(path: Path) -> str:
    if not path.exists():
        return "-"
    count = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    return size(count).replace(" ", "&nbsp;")


@in_one_sentence()
def show_untrained(panel: SettingsPanel) -> None:
    """The models as they are before training: metrics on a sample of the held-out text, and what they write."""
    rows, written, prompt = [["before training", *METRIC_TITLES]], {}, ""
    for name in panel.models:
        args = panel.arguments(name)
        prepared = panel.stage.prepare(args)
        model, tokenizer = prepared.model, prepared.tokenizer
        prompt = prompt or " ".join(next(iter(prepared.splits.validation.strings())).split()[:8])
        sample = prepared.held_out.sample(UNTRAINED_TOKENS)
        found = score_documents(model, sample, tokenizer.bos_token_id, args.max_length, args.per_device_eval_batch_size)
        rows.append([escape(name), *metric_cells(asdict(found))])
        written[name] = continue_prompt(model, tokenizer, prompt, MAX_NEW_TOKENS)
    show(table_html(rows, header=True, numbers=True) + samples_html({prompt: written}))
    types = f"{len(tokenizer):,}"
    say(f"Nothing is learned yet: a blind guess among the {types} types has a perplexity of {types}.")


@in_one_sentence()
def show_progress(panel: SettingsPanel, folders: Sequence[Path]) -> None:
    """A table of the metrics of what is learned, before and after, and a sentence that sums it up."""
    rows, sentences = [["", *METRIC_TITLES]], []
    for model, folder in ((Path(folder).name, folder) for folder in folders):
        after, start = checkpoint.read_results(checkpoint.check_model_folder(folder)), panel.start_model(model)
        rows[0][0], now = f"{after.get('split', 'validation')} split", f"{after['perplexity']:,.1f}"
        sentence = f"{model}: perplexity {now} on held-out answers; it was new, so there is no before."
        if start is not None:
            trained = open_model(folder)
            # The tokens are the same: a model keeps its tokenizer. Its rows are as long as its own training made them.
            before = score(open_model(start), held_out_documents(trained, held_out_text(trained)))
            rows.append([f"{escape(model)} before", *metric_cells(before)])
            moved = "fell" if after["perplexity"] < before["perplexity"] else "rose"
            sentence = f"{model}: perplexity on held-out answers {moved} from {before['perplexity']:,.1f} to {now}."
        sentence += f" {in_the_panels_words(advice(checkpoint.read_settings(folder)['run'], after))}"
        rows.append([f"<b>{escape(model)} after</b>", *metric_cells(after)])
        sentences.append(sentence)
    show(table_html(rows, header=True, numbers=True))
    say(" ".join(sentences))


def metric_cells(metrics: dict[str, Any]) -> list[str]:
    bits = "-" if metrics["bits_per_byte"] is None else f"{metrics['bits_per_byte']:.3f}"
    return [bits, f"{metrics['perplexity']:,.1f}", f"{metrics['token_accuracy']:.1%}"]


@in_one_sentence()
def show_answers(panel: SettingsPanel, folders: Sequence[Path]) -> None:
    """Put the stage's prompts to every model as it was before this notebook and as it is now."""
    prompts, answers = panel.stage.prompts, {}
    for model, folder in ((Path(folder).name, folder) for folder in folders):
        if (before := panel.start_model(model)) is not None:
            answers[f"{model} before"] = ask(before, prompts, folder)
        answers[f"{model} after"] = ask(folder, prompts, folder)
    _show(prompts, answers, MAX_NEW_TOKENS, "" if panel.start_run else " There is no before: the models were new.")


def ask(folder: str | Path, prompts: Sequence[str], template_of: str | Path) -> Answers:
    """The likeliest answers of the model in `folder`; if it has no chat template, it borrows that of `template_of`."""
    trained = open_model(folder)
    if trained.tokenizer.chat_template is None:
        trained.tokenizer.chat_template = borrowed_template(trained.tokenizer, read_tokenizer(template_of))
    asked = ([{"role": "user", "content": prompt}] for prompt in prompts)
    replies = [reply_to(trained.model, trained.tokenizer, messages, MAX_NEW_TOKENS) for messages in asked]
    return [text for text, _ in replies], sum(ended for _, ended in replies)


def read_measured(folder: str | Path, file: str) -> dict[str, Any]:
    """What the run in `folder` has measured, in its `file`. Raises InputError: it is not finished."""
    measured = read_json(Path(folder) / file)
    if measured is None:
        raise InputError(f"{Path(folder).name} is not finished: run the training cell again.", "NL-404")
    return measured


def show_before_and_after(measured: dict[str, Any], before: str, max_new_tokens: int, remark: str = "") -> None:
    """The answers of `replies_before_and_after` side by side, those without adapters under the name `before`."""
    answers, ended = measured["answers"], measured["ended_by_themselves"]
    columns = {n: ([a[key] for a in answers], ended[key]) for n, key in ((before, "before"), ("tuned", "after"))}
    _show([answer["prompt"] for answer in answers], columns, max_new_tokens, remark)


def _show(prompts: Sequence[str], answers: Mapping[str, Answers], max_new_tokens: int, remark: str) -> None:
    """A row per prompt, a column per model, and the count of answers that came to an end."""
    style = f"min-width:150px;max-height:120px;overflow-y:auto;{AS_WRITTEN};background:{FAINT};padding:2px 8px"
    rows = [["", *map(escape, answers)]]
    for number, prompt in enumerate(prompts):
        texts = (escape(written[number]) or text("(nothing)") for written, _ in answers.values())
        cells = (f'<div style="{style}">{answer}</div>' for answer in texts)
        rows.append([f'<div style="min-width:130px">{escape(prompt)}</div>', *cells])
    ends = (text("{ended} of {count}", ended=ended, count=len(prompts)) for _, ended in answers.values())
    rows.append(["<b>ended by itself</b>", *ends])
    show(table_html(rows, header=True))
    counts = ", ".join(f"{translate(title)} {ended}" for title, (_, ended) in answers.items())
    say(f"Answers that ended by themselves within {max_new_tokens} tokens, of {len(prompts)}: {counts}.{remark}")


@in_one_sentence()
def show_forgetting(folder: str | Path) -> None:
    """A table, two pictures and a sentence: what was learned and forgotten, and where the model changed."""
    measured = read_measured(folder, FORGETTING_FILE)
    rows = [["", *METRIC_TITLES, "KL to the base (nats per token)"]]
    for kind, name in KINDS.items():
        before, after = measured[kind]["before"], measured[kind]["after"]
        base = f"<b>{text(name)}</b>{text(', base')}{small_html(escape(measured[kind]['text']))}"
        rows.append([base, *metric_cells(before), "0"])
        bits, *others = metric_cells(after)
        share = small_html(f"{change(measured, kind):+.1%}")
        rows.append([f"<b>{name}</b>, tuned", bits + share, *others, f"{after['kl_to_base']:.3f}"])
    show(table_html(rows, header=True, numbers=True))
    picture = Path(folder).parent / FORGETTING_PICTURE
    show(figure_html(forgetting_figure(measured), "learned and forgotten", picture))
    if changes := measured.get("layers"):
        largest = sorted(changes, key=changes.get, reverse=True)[:3]
        show(figure_html(changes_figure(changes), "changed layers", Path(folder).parent / LAYERS_PICTURE))
        most = ", ".join(f"{name} ({changes[name]:.1%})" for name in largest)
        show(small_html(f"The adapters changed most: {escape(most)}."))
    say(forgetting_verdict(measured))


@in_one_sentence()
def show_answers_of_both(folder: str | Path) -> None:
    show_before_and_after(read_measured(folder, FORGETTING_FILE), "base", ANSWER_TOKENS)


def change(measured: dict[str, Any], kind: str) -> float:
    """How many more bits per byte the tuned model needs than its base, as a share; below 0: fewer."""
    return measured[kind]["after"]["bits_per_byte"] / measured[kind]["before"]["bits_per_byte"] - 1


def forgetting_figure(measured: dict[str, Any]) -> Figure:
    """An arrow from the base to the tuned model for each kind of text: to the left is better."""
    figure = Figure(figsize=(8, 2.2), layout="constrained")
    axes = figure.subplots()
    changes = {kind: 100 * change(measured, kind) for kind in KINDS}
    low, high = min(0, *changes.values()), max(0, *changes.values())
    # The base in view, with room for words beside it; a change of next to nothing looks like it.
    room = 0.4 * max(max(changes.values()) - low, 2.0)
    for height, (kind, percent) in enumerate(reversed(changes.items())):
        colour = UNCHANGED if abs(percent) < 100 * NO_CHANGE else BETTER if percent < 0 else WORSE
        axes.annotate("", (percent, height), (0, height), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 3})
        axes.plot(0, height, marker="o", markersize=7, markerfacecolor="white", color=UNCHANGED)
        before, after = (measured[kind][when]["bits_per_byte"] for when in ("before", "after"))
        words = f"{before:.3f} → {after:.3f} bits per byte ({percent / 100:+.1%})"
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # hides the base's line
        place = {"textcoords": "offset points", "ha": "center"}
        axes.annotate(words, (percent / 2, height), (0, 9), **place, color=colour, bbox=ground)
    axes.axvline(0, color=UNCHANGED, linewidth=1, zorder=0)
    axes.set_xlabel("bits that held-out text takes, against the base, in % (to the left is better)")
    axes.set_yticks(range(len(KINDS)), [label_of(words) for words in reversed(KINDS.values())])
    axes.set(xlim=(low - room, high + room), ylim=(-0.5, len(KINDS) - 0.3))
    plain(axes, "x")
    return figure


def forgetting_verdict(measured: dict[str, Any]) -> str:
    """What was gained and what was lost, whichever it is."""

    def takes(share: float) -> str:
        if abs(share) < NO_CHANGE:
            return f"takes as many bits as before ({share:+.1%})"
        return f"takes {abs(share):.1%} {'more' if share > 0 else 'fewer'} bits than before"

    new, old = (change(measured, kind) for kind in KINDS)
    learned = "Hardly anything was learned" if abs(new) < NO_CHANGE else "Learned" if new < 0 else "Nothing was learned"
    forgotten = "Forgotten" if old >= NO_CHANGE else "Nothing was forgotten"
    distance = measured["general_text"]["after"]["kl_to_base"]
    return (
        f"{learned}: the new task {takes(new)}. {forgotten}: general text {takes(old)}. There the tuned model is "
        f"{distance:.3f} nats per token from its base. One run with one seed, on a sample of held-out text."
    )
