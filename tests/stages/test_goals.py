"""The goals of the guides are said as met or not by the figures alone, and only of models they are for."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from newllm_lib.stages.compare import comparison_cells
from newllm_lib.stages.goals import goals, percent


def row(name="newllm", **values) -> dict:
    figures = {"perplexity": 20.0, "bits_per_byte": 2.0, "tokens": 100, "parameters": 1_000_000, "split": "test"}
    state = {"state_bytes": {"128": 4_096, "1024": 4_096, "8192": 4_096}}
    return {"name": name, "model_type": name, **figures, **state, **values}


def held(ours: dict, *others: dict, folder=Path("nowhere"), **run) -> dict[str, tuple[bool, str]]:
    """Goal -> whether it is met, and the figure."""
    run = {"stage": "pretrain", "text_source": "file", "model_type": ours["model_type"], **run}
    trained = SimpleNamespace(run=run, folder=folder)
    return {it["goal"]: (it["met"], it["figure"]) for it in goals(trained, ours, [ours, *others])}


@pytest.mark.parametrize(
    ("perplexity", "near", "as_good", "shown"),
    [(19.0, True, True, "-5.0 %"), (20.0, True, True, "+0.0 %"), (25.0, True, False, "+25.0 %"),
     (26.1, False, False, "+30.5 %")],
)  # fmt: skip
def test_against_a_baseline_of_equal_size(perplexity, near, as_good, shown):
    found = held(row(perplexity=perplexity), row("tiny-gpt2", parameters=980_000))
    assert found["at most 30 % behind tiny-gpt2 at equal size"] == (near, f"perplexity {shown}")
    assert found["as good as tiny-gpt2 at equal size, or better"] == (as_good, f"perplexity {shown}")


def test_only_what_can_be_compared_is(tmp_path):
    assert len(held(row(), row("tiny-gpt2", parameters=2_000_000))) == 1, "of another size"
    assert held(row("tiny-gpt2")) == {}, "a baseline has no goals"
    other_tokens = held(row(bits_per_byte=1.9), row("lstm", tokens=90))
    assert other_tokens["as good as lstm at equal size, or better"] == (True, "bits per byte -5.0 %")
    unknown = held(row(bits_per_byte=None), row("lstm", tokens=90, bits_per_byte=None))
    assert list(unknown) == ["a memory of the text that does not grow"]


def test_a_state_that_grows_is_said():
    found = held(row(state_bytes={"128": 4_096, "8192": 8_192}))
    assert found == {
        "a memory of the text that does not grow": (False, "4,096 bytes after 128 tokens, 8,192 after 8,192")
    }


@pytest.mark.parametrize(("run", "limit"), [({"text_source": "hub"}, 20), ({"stage": "sft", "dataset": "dolly"}, 17)])
def test_a_dataset_is_learned_in_the_published_setting(run, limit):
    name = f"perplexity below {limit}"
    setting = {"tokenizer": "word", "loss_on": "all", **run}
    assert held(row(perplexity=limit - 0.5), **setting)[name] == (True, f"{limit - 0.5:.1f}")
    assert held(row(perplexity=limit + 0.5), **setting)[name] == (False, f"{limit + 0.5:.1f}")
    for other in ({"tokenizer": "bpe"}, {"loss_on": "assistant"}):
        assert name not in held(row(perplexity=1.0), **{**setting, **other})
    assert name not in held(row(split="another text"), **setting)


@pytest.mark.parametrize(("after", "is_kept"), [(0.9, True), (1.001, True), (1.1, False)])
def test_knowledge_that_is_kept(tmp_path, after, is_kept):
    general = {"bits_per_byte_before": 1.0, "bits_per_byte_after": after}
    (tmp_path / "results.json").write_text(json.dumps({"loss": 1.0, "forgetting": {"general_text": general}}))
    (tmp_path / "adapter_model.safetensors").touch()
    assert held(row("tuned"), folder=tmp_path)["general text is kept"][0] is is_kept


def test_differences_are_to_the_first_model():
    assert (percent(3.0, 2.0), percent(None, 2.0), percent(2.0, None), percent(1, 0)) == (50.0, None, None, None)
    figures = {"word_perplexity": None, "token_accuracy": 0.5, "unk_rate": 0.0, "tokens_per_second": 10.0}
    figures |= {"ms_per_token": {"128": 1.0, "1024": 1.0, "8192": 1.0}}
    first, second = (
        {**row(name, perplexity=value), **figures, "ms_per_batch": {"rows": 2, "length": 4, "milliseconds": value}}
        for name, value in (("a", 20.0), ("b", 15.0))
    )
    cells = {title: values for title, *values in comparison_cells([first, second])}
    assert cells["perplexity (per token)"] == ["20.00", "15.00 (-25.0 %)"] and cells["word perplexity"] == ["-", "-"]
    assert cells["ms per batch of 2 x 4, inference"] == ["20.0", "15.0 (-25.0 %)"]
