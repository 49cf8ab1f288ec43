"""Sliders of the chat box: every value they can have is one that a chat takes, in its type."""

import pytest

from newllm_lib.colab.chat_controls import PENALTIES, SamplingSliders
from newllm_lib.evaluation.generation import check_sampling


def ends(slider):
    return (slider.min, slider.max)


def test_every_end_of_every_slider_is_taken():
    sliders = SamplingSliders(200)
    for temperature in ends(sliders.temperature):
        for top_p in ends(sliders.top_p):
            for length in ends(sliders.length):
                for _, penalty in PENALTIES:
                    sliders.temperature.value, sliders.top_p.value = temperature, top_p
                    sliders.length.value, sliders.penalty.value = length, penalty
                    values = sliders.values()
                    values["repetition_penalty"] = values["repetition_penalty"] or 1.0
                    check_sampling(**values)


def test_values_have_the_types_that_a_chat_wants():
    sliders = SamplingSliders(100)
    assert sliders.values() == {
        "max_new_tokens": 100, "temperature": 0.8, "top_p": 0.95, "repetition_penalty": None,
    }  # fmt: skip
    sliders.temperature.value = 0.30000000000000004
    sliders.length.set_trait("value", 30)
    assert sliders.values()["temperature"] == 0.3
    assert type(sliders.values()["max_new_tokens"]) is int
    assert sliders.sentence() == "temperature 0.3, top-p 0.95, at most 30 tokens, repetition penalty as trained"
    sliders.penalty.value = 1.15
    assert "repetition penalty 1.15" in sliders.sentence()


@pytest.mark.parametrize("word", ["temperature", "top-p", "length", "repetition penalty"])
def test_each_slider_has_its_name_and_help(word):
    boxes = SamplingSliders(200).box.children
    (box,) = [box for box in boxes if f"<b>{word}</b>" in box.children[0].value]
    assert "opacity" in box.children[0].value and int(box.layout.min_width.removesuffix("px")) >= 190
