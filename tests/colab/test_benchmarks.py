"""Benchmarks of notebook 5: nothing happens unless they are named; then base and tuned model are asked the same."""

import json
import re
import sys
import types
from pathlib import Path

import pytest

from newllm_lib.colab import benchmarks
from newllm_lib.stages import evaluate as stage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shown(shown_by):
    return shown_by(benchmarks)


@pytest.fixture
def harness(monkeypatch):
    """A harness that counts the switched-off adapters as right answers; what it was asked."""
    asked = []

    def simple_evaluate(model, tasks, limit, task_manager):
        layers = [module for module in model.modules() if hasattr(module, "lora_A")]
        share = sum(layer.disable_adapters for layer in layers) / len(layers)
        asked.append((tasks, limit))
        group = {"acc,none": 0.25 + share / 2, "acc_stderr,none": 0.0125, "alias": "mmlu"}
        part = {"acc,none": 0.1, "acc_stderr,none": 0.1, "alias": "mmlu_law"}
        return {"results": {"mmlu": group, "mmlu_law": part}}

    for name, content in {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": lambda pretrained, **options: pretrained},
        "lm_eval.tasks": {"TaskManager": lambda: types.SimpleNamespace(all_tasks=["mmlu"])},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(stage, "find_spec", lambda name: True)
    monkeypatch.setattr(stage, "hub_problem", lambda source: None)
    return asked


def test_without_a_name_nothing_is_installed_or_opened(adapter_run, shown, monkeypatch):
    for name in ("find_spec", "open_model", "bring"):
        monkeypatch.setattr(benchmarks, name, lambda *args: pytest.fail("nothing was asked for"))
    benchmarks.show_benchmarks(adapter_run, " , ")
    assert len(shown) == 1 and shown[0].startswith("ok: No benchmark is asked for")


def test_base_and_tuned_model_are_asked_the_same(adapter_run, shown, harness, monkeypatch):
    installed = []
    monkeypatch.setattr(benchmarks, "find_spec", lambda name: None)
    monkeypatch.setattr(benchmarks, "bring", lambda place: installed.append(place) or [])
    benchmarks.show_benchmarks(adapter_run, "mmlu", 7)
    assert harness == [(["mmlu"], 7)] * 2
    assert installed == [["lm-eval"]]
    (table,) = [content for content in shown if "<table" in content]
    assert all(figure in table for figure in ("mmlu: acc", "75.0%", "25.0%", "1.2%")) and "mmlu_law" not in table
    benchmarks.show_benchmarks(adapter_run, "mmlu", 0)
    assert harness[-1] == (["mmlu"], None)


def test_a_metric_without_an_error_is_shown():
    figures = {"own": {"alias": "own", "word_perplexity,none": 12.5, "word_perplexity_stderr,none": "N/A"}}
    assert benchmarks.benchmark_rows(["a.yaml"], figures, figures)[1:] == [
        ["own: word_perplexity", "12.500", "12.500", "-"]
    ]


def test_run_all_downloads_nothing_large_whose_size_no_text_names():
    notebook = json.loads((ROOT / "notebooks" / "05_qlora_lwf_gemma.ipynb").read_text(encoding="utf-8"))
    texts = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}
    assert "Run all downloads 2 GB for Gemma-2B, or 280 MB without a GPU" in " ".join(texts["card"].split())
    assert "280 MB" in texts["about-machine"], "the text above the install cell"
    assert re.search(r"^#@title .*2 GB in 4 bit, 5 GB in 16", texts["train"])
    assert 'benchmarks = ""' in texts["benchmarks"] and "100 MB" in texts["benchmarks"].splitlines()[0]
