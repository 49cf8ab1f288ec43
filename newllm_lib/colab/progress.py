"""What a notebook's training has brought: each model on the same held-out conversations before it and after it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from IPython.display import HTML, display

from ..stages.evaluate import held_out_documents, held_out_text, score
from ..training.checkpoint import check_model_folder, read_results
from ..training.trained_model import open_model
from .page.notices import escape, in_one_sentence, say, table_html
from .panel.settings_panel import SettingsPanel


@in_one_sentence
def show_progress(panel: SettingsPanel, folders: Sequence[Path]) -> None:
    """A table of the metrics of what is learned, before and after, and a sentence that sums it up."""
    rows = [["", "bits per byte", "perplexity (per token)", "token accuracy"]]
    sentences = []
    for model, folder in zip(panel.models, folders, strict=True):
        before, after = measured(panel.start_model(model), folder)
        if before is not None:
            rows.append([f"{escape(model)} before", *_cells(before)])
        rows.append([f"<b>{escape(model)} after</b>", *_cells(after)])
        sentences.append(_sentence(model, before, after))
    display(HTML(table_html(rows, header=True, numbers=True)))
    say(" ".join(sentences))


def measured(start: Path | None, folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """(metrics before, or None for a model that was new, metrics after), on all that was held out."""
    after = read_results(check_model_folder(folder))
    if start is None:
        return None, after
    trained = open_model(folder)
    # The tokens are the same: a model keeps its tokenizer. Its rows are as long as its own training made them.
    return score(open_model(start), held_out_documents(trained, held_out_text(trained))), after


def _cells(metrics: dict[str, Any]) -> list[str]:
    bits = "-" if metrics["bits_per_byte"] is None else f"{metrics['bits_per_byte']:.3f}"
    return [bits, f"{metrics['perplexity']:,.1f}", f"{metrics['token_accuracy']:.1%}"]


def _sentence(model: str, before: dict[str, Any] | None, after: dict[str, Any]) -> str:
    now = f"{after['perplexity']:,.1f}"
    if before is None:
        return f"{model}: perplexity {now} on held-out answers; it was new, so there is no before."
    moved = "fell" if after["perplexity"] < before["perplexity"] else "rose"
    return f"{model}: perplexity on held-out answers {moved} from {before['perplexity']:,.1f} to {now}."
