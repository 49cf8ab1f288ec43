"""Every stage on the models that other stages have left: it works, or says in a sentence what to name instead."""

import json
import re
import shutil

import pytest
from chats import untrained_chat, write_conversations
from lwf_runs import lwf_arguments
from preference_runs import dpo_arguments, tiny_chat_model

from newllm_lib.adapters.lora import add_adapters
from newllm_lib.adapters.merge import merge
from newllm_lib.adapters.qlora_lwf import qlora_lwf
from newllm_lib.chat import Chat
from newllm_lib.data.chat_template import TEMPLATES
from newllm_lib.errors import InputError
from newllm_lib.models import build_config, build_model
from newllm_lib.preferences.dpo import dpo
from newllm_lib.preferences.dpo import prepare as prepare_dpo
from newllm_lib.stages.sft import SftArguments, sft
from newllm_lib.stages.sft import prepare as prepare_sft
from newllm_lib.training.trained_model import read_tokenizer


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A finished run of stage 6, which named its model by a relative path."""
    pytest.importorskip("trl")
    folder = tmp_path_factory.mktemp("dpo")
    tiny_chat_model(folder / "tiny-gpt2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        dpo(dpo_arguments(folder, model="tiny-gpt2", output_dir="run", max_steps=2, sft_epochs=0.1, save_merged=True))
        dpo(dpo_arguments(folder, model="tiny-gpt2", output_dir="plain", max_steps=2, sft_epochs=0, save_merged=False))
    return folder


def speaks(folder) -> bool:
    """True if a conversation can be had with it; what an untrained model says may be nothing."""
    chat = Chat(folder, max_new_tokens=3, seed=0)
    return all(isinstance(piece, str) for piece in chat.reply("Hello")) and len(chat.messages) == 2


def sft_on(model, tmp_path) -> SftArguments:
    data = write_conversations(tmp_path / "data.jsonl", 60)
    return SftArguments(
        model=str(model), data=str(data), max_length=64, max_steps=2, eval_steps=0.5, save_steps=0.5,
        max_eval_tokens=300, per_device_train_batch_size=4, output_dir=str(tmp_path / "sft"),
    )  # fmt: skip


@pytest.mark.parametrize("part", ["merged", "reference"])
def test_sft_goes_on_with_what_dpo_has_left(tuned, tmp_path, part):
    folder = sft(sft_on(tuned / "run" / part, tmp_path))
    assert speaks(folder)


def test_sft_says_what_to_name_in_place_of_adapters(tuned, tmp_path):
    with pytest.raises(
        InputError, match=r"holds adapters, which sft does not train; write a whole model with newllm export"
    ):
        sft(sft_on(tuned / "run", tmp_path))


def test_a_run_is_opened_from_elsewhere(tuned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert speaks(tuned / "plain")
    merge(tuned / "plain", "merged")
    assert speaks("merged")


def test_adapters_are_no_base(tuned):
    with pytest.raises(InputError, match="holds adapters and not a whole model; write one with newllm export"):
        prepare_dpo(dpo_arguments(tuned, "other", model=str(tuned / "run")))


@pytest.mark.parametrize("model_type", ["newllm", "newllm-reference"])
def test_qlora_lwf_tunes_a_new_llm(tmp_path, model_type):
    base = untrained_chat(tmp_path / "base", model_type)
    folder = qlora_lwf(lwf_arguments(tmp_path, model=str(base), max_steps=2))
    assert speaks(folder)


@pytest.mark.parametrize("model_type", ["newllm", "newllm-reference", "tiny-gpt2", "lstm"])
def test_every_layer_that_is_offered_takes_adapters(model_type):
    def model():
        return build_model(build_config(model_type, 300, 32, num_parameters=80_000))

    with pytest.raises(InputError, match="names 'q_proj', which is no linear layer below") as refused:
        add_adapters(model(), 2, 4.0, 0.0, ["q_proj"])
    offered = re.search(r"choose of (.+), or all-linear", str(refused.value))[1].split(", ")
    for name in offered:
        assert add_adapters(model(), 2, 4.0, 0.0, [name]).peft_config["default"].target_modules == {name}
    for name in {name.rsplit(".", 1)[-1] for name, _ in model().named_modules()} - {"", *offered}:
        with pytest.raises(InputError, match="is no linear layer below"):
            add_adapters(model(), 2, 4.0, 0.0, [name])


def test_a_template_that_marks_no_answer_drops_no_row(tmp_path):
    pytest.importorskip("trl")
    base = tiny_chat_model(tmp_path / "tiny-gpt2")
    tokenizer = read_tokenizer(base)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(base)
    folder = dpo(dpo_arguments(tmp_path, max_steps=2, sft_epochs=0.1))
    assert json.loads((folder / "reference" / "results.json").read_text())["tokens"] > 0
    prepared = prepare_dpo(dpo_arguments(tmp_path, "again", sft_epochs=0.1))
    assert any("does not mark what is learned: ours is used" in remark for remark in prepared.remarks)
    assert prepared.tokenizer.chat_template != TEMPLATES["turns"]


def test_sft_teaches_a_model_whose_template_marks_no_answer(tuned, tmp_path):
    base = shutil.copytree(tuned / "run" / "merged", tmp_path / "base")
    tokenizer = read_tokenizer(base)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(base)
    prepared = prepare_sft(sft_on(base, tmp_path))
    assert prepared.train_counts.tokens > 0 and "ours is used" in prepared.remarks[0]
