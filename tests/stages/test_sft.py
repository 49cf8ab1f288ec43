"""Stages 2 to 4 end to end on a few conversations: from scratch and from a checkpoint, resumed, talked to."""

import json
import logging

import pytest
import torch
from chats import untrained_chat
from conversations import make_conversations, sft_arguments, write_conversations
from earlier_tokenizer import earlier_byte_tokenizer
from run_files import RUN_FILES, StopAt, assert_same_weights, log_without_clock
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, pipeline

from newllm_lib.chat import Chat
from newllm_lib.data.chat_template import ROLE_TEMPLATE, TEMPLATES
from newllm_lib.data.text import collate_rows
from newllm_lib.data.tokenizer import end_token_ids
from newllm_lib.errors import InputError
from newllm_lib.evaluation.generation import reply_to
from newllm_lib.stages.compare import compare, comparison_table
from newllm_lib.stages.evaluate import evaluate
from newllm_lib.stages.generate import generate
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.stages.sft import prepare, sft
from newllm_lib.training.callbacks import TrainingInterrupted
from newllm_lib.training.checkpoint import read_history
from newllm_lib.training.trained_model import open_model


@pytest.fixture
def conversations(tmp_path):
    return write_conversations(tmp_path / "talk.jsonl", make_conversations(60))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Finished pretraining runs by model type, made when first asked for."""
    folders = {}
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("".join(f"Line {number}?\nThe sea and the mill.\n" for number in range(200)))

    def of(model_type, **fields):
        key = (model_type, *sorted(fields.items()))
        if key not in folders:
            small = {"tokenizer": "bpe", "vocab_size": 300, "max_length": 32, "num_parameters": 120_000}
            small |= {"max_steps": 3, "per_device_train_batch_size": 4, "auto_precision": False}
            folder = tmp_path_factory.mktemp(model_type)
            folders[key] = pretrain(
                PretrainArguments(
                    **{**small, **fields}, data=str(text), model_type=model_type, output_dir=str(folder / "run")
                )
            )
        return folders[key]

    return of


@pytest.mark.parametrize("model_type", ["newllm", "tiny-gpt2"])
def test_from_scratch_a_run_holds_everything(conversations, tmp_path, model_type, caplog):
    args = sft_arguments(conversations, tmp_path / "run", model_type=model_type, auto_precision=False)
    with caplog.at_level(logging.INFO, logger="newllm_lib"):
        folder = sft(args)
    assert {path.name for path in folder.iterdir()} >= RUN_FILES
    assert not list(folder.rglob("*.bin"))
    losses = [entry["eval_loss"] for entry in read_history(folder) if "eval_loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    results = json.loads((folder / "results.json").read_text())
    assert results["loss"] == pytest.approx(min(losses), rel=1e-6)
    assert results["bits_per_byte"] > 0
    card = (folder / "README.md").read_text()
    assert "file talk.jsonl, train" in card
    assert f"{results['parameters']:,} parameters" in card
    assert "trained from scratch" in card
    assert "It answers as the conversations it has seen" in card
    said = pipeline("text-generation", model=str(folder))([{"role": "user", "content": "Hello"}], max_new_tokens=3)
    assert said[0]["generated_text"][-1]["role"] == "assistant"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert asked == f"{tokenizer.bos_token}<|user|> Hi<|assistant|>"
    assert GenerationConfig.from_pretrained(folder).eos_token_id == end_token_ids(tokenizer) == [256, 262]
    assert f"{results['bits_per_byte']:.3f} bits per byte of the answers" in caplog.text

    metrics = evaluate(folder)
    assert metrics["loss"] == pytest.approx(results["loss"], rel=1e-6)
    assert metrics["text"] == "file talk.jsonl, held out"
    other = write_conversations(tmp_path / "other.jsonl", make_conversations(3))
    answers = [message["content"] for talk in make_conversations(3) for message in talk[1::2]]
    assert evaluate(folder, str(other))["bytes"] == sum(len(text) for text in answers)

    written = (folder / "model.safetensors").stat().st_mtime_ns
    with caplog.at_level(logging.INFO, logger="newllm_lib"):
        sft(sft_arguments(conversations, folder, model_type=model_type, auto_precision=False))
    assert "This run is finished" in caplog.text
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(InputError, match=r"loss_on was 'assistant', is 'all'"):
        sft(sft_arguments(conversations, folder, model_type=model_type, loss_on="all"))


@pytest.mark.parametrize("model_type", ["newllm", "tiny-gpt2"])
def test_a_pretrained_model_goes_on(conversations, tmp_path, pretrained, model_type):
    start = pretrained(model_type)
    args = sft_arguments(conversations, tmp_path / "run", model=str(start), dropout=0.0)
    prepared = prepare(args)
    assert (args.model_type, args.tokenizer) == (model_type, "bpe")
    if model_type == "tiny-gpt2":
        assert prepared.model.config.n_positions == 128
    before = load_file(start / "model.safetensors")
    for name, tensor in before.items():
        found = prepared.model.state_dict()[name].cpu()
        assert torch.equal(found[: len(tensor)], tensor), name
    folder = sft(args)
    assert "trained from another one (`run`)" in (folder / "README.md").read_text()
    run = json.loads((folder / "settings.json").read_text())["run"]
    assert (run["model_type"], run["tokenizer"]) == (model_type, "bpe")
    old, new = (AutoTokenizer.from_pretrained(path) for path in (start, folder))
    assert old.backend_tokenizer.to_str() == new.backend_tokenizer.to_str()
    assert old.chat_template is None
    assert new.chat_template == ROLE_TEMPLATE
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [0, 6]
    after = load_file(folder / "model.safetensors")
    assert any(not torch.equal(after[name][: len(tensor)], tensor) for name, tensor in before.items())

    # And what was taught goes on once more, with other weights to start from and thus as another run.
    again = sft(sft_arguments(conversations, tmp_path / "again", model=str(folder), max_steps=1))
    assert AutoTokenizer.from_pretrained(again).chat_template == new.chat_template
    with pytest.raises(InputError, match="start was"):
        sft(sft_arguments(conversations, tmp_path / "again", model=str(start), max_steps=1))


def test_a_model_of_an_earlier_run_keeps_its_words_for_roles(conversations, tmp_path):
    """Its tokenizer has no role tokens: taught again, it talks as it did."""
    start = untrained_chat(tmp_path / "start", tokenizer=earlier_byte_tokenizer())
    folder = sft(sft_arguments(conversations, tmp_path / "run", model=str(start), max_steps=1))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == TEMPLATES["dialogue"] and len(tokenizer) == 258
    assert GenerationConfig.from_pretrained(folder).eos_token_id in (256, [256])
    chat = Chat(folder, max_new_tokens=1, temperature=0)
    list(chat.reply("Hi <|end|>"))
    assert tokenizer.decode(chat.stream.read) == "<|endoftext|>User: Hi <|end|>\nAssistant:"


def test_every_stage_takes_a_chat_model(conversations, tmp_path, pretrained):
    chat_model = sft(sft_arguments(conversations, tmp_path / "run", max_steps=2))
    text_model = pretrained("newllm")
    rows = compare([chat_model, text_model], max_new_tokens=5)
    assert {row["text"] for row in rows} == {"file talk.jsonl, held out"}
    # The model that was never taught to talk is scored on the same answers, by the template of the one that was.
    assert rows[0]["bytes"] == rows[1]["bytes"] > 0
    assert rows[0]["words"] == rows[1]["words"]
    table = comparison_table(rows)
    assert all(f"» {prompt}" in table for prompt in rows[0]["samples"])
    assert len(rows[0]["samples"]) == 2
    assert generate(chat_model, "The ", max_new_tokens=5).startswith("The ")


@pytest.mark.parametrize("fields", [{}, {"model_type": "tiny-gpt2"}, {"gradient_accumulation_steps": 2}])
def test_interrupted_and_run_again_gives_the_same_bits(conversations, tmp_path, fields):
    """The interrupt falls into the second epoch."""
    write_conversations(conversations, make_conversations(25))
    fields |= {"max_steps": 12, "per_device_train_batch_size": 2, "eval_steps": 6, "save_steps": 6, "logging_steps": 4}
    unbroken = sft(sft_arguments(conversations, tmp_path / "unbroken", **fields))
    assert read_history(unbroken)[-1]["epoch"] > 1
    with pytest.raises(TrainingInterrupted, match="Stopped at update 10 of 12"):
        sft(sft_arguments(conversations, tmp_path / "broken", **fields), callbacks=(StopAt(9),))
    broken = sft(sft_arguments(conversations, tmp_path / "broken", **fields))
    assert_same_weights(unbroken / "checkpoint-12", broken / "checkpoint-12")
    assert log_without_clock(unbroken) == log_without_clock(broken)


def test_padding_never_enters_the_loss(conversations, tmp_path, monkeypatch):
    """What stands in the padding changes neither loss nor gradients, and the loss is over the answers alone."""
    args = sft_arguments(conversations, tmp_path / "run", dropout=0.0, auto_precision=False)
    prepared = prepare(args)
    tokenizer = prepared.tokenizer
    seen = []

    def watched(rows):
        batch = collate_rows(rows)
        seen.append((batch["input_ids"], batch["shift_labels"]))
        return batch

    monkeypatch.setattr("newllm_lib.training.trainer.collate_rows", watched)
    sft(args)
    answers = {
        " " + message["content"] + tokenizer.eos_token
        for talk in make_conversations(60)
        for message in talk
        if message["role"] == "assistant"
    }
    padded = 0
    for input_ids, labels in seen:
        padded += int((input_ids == tokenizer.pad_token_id).sum())
        assert not (labels == tokenizer.pad_token_id).any()
        for row in labels.tolist():
            learned = tokenizer.decode([token for token in row if token != -100])
            assert {part + tokenizer.eos_token for part in learned.split(tokenizer.eos_token)[:-1]} <= answers
    assert padded > 0
    input_ids, labels = seen[0]
    model = prepared.model.eval()
    last = [int((row != -100).nonzero().max()) for row in labels]
    other = input_ids.clone()
    for row, end in zip(other, last, strict=True):
        row[end + 1 :] = 65
    assert not torch.equal(other, input_ids)
    losses = [model(input_ids=ids, labels=labels, shift_labels=labels).loss for ids in (input_ids, other)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("model_type", ["newllm", "tiny-gpt2"])
def test_an_overfitted_model_answers_exactly_and_stops(tmp_path, pretrained, model_type):
    talks = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        for question, reply in (("Name?", "Nell."), ("Sky?", "Blue, always."), ("Two and two?", "Four."))
    ]
    talks[0] += [{"role": "user", "content": "Again?"}, {"role": "assistant", "content": "Nell it is."}]
    data = write_conversations(tmp_path / "few.jsonl", talks)
    fields = {"eval_data": str(data), "max_length": 64, "max_steps": 120, "dropout": 0.0, "learning_rate": 4e-3}
    fields |= {"model": str(pretrained(model_type)), "eval_steps": 60, "save_steps": 60, "auto_precision": False}
    folder = sft(sft_arguments(data, tmp_path / "run", **fields))
    chat = Chat(folder, max_new_tokens=40, temperature=0)
    for talk in talks:
        chat.reset()
        for question, reply in zip(talk[::2], talk[1::2], strict=True):
            assert "".join(chat.reply(question["content"])) == reply["content"]
        assert chat.messages == talk
    # The second turn was read after what the model had written of the first, not anew.
    chat.reset()
    list(chat.reply("Name?"))
    state = list(chat.stream.read)
    list(chat.reply("Again?"))
    assert chat.stream.read[: len(state)] == state
    trained = open_model(folder)
    assert reply_to(trained.model, trained.tokenizer, talks[1][:1], 40) == ("Blue, always.", True)
    assert reply_to(trained.model, trained.tokenizer, talks[1][:1], 3)[1] is False


def test_the_context_grows(conversations, tmp_path, pretrained, caplog):
    start = pretrained("newllm")
    old = open_model(start).model.config.context_size
    args = sft_arguments(
        conversations, tmp_path / "run", model=str(start), grow_context=2 * old, train_only_new_context=True
    )
    assert args.weight_decay == 0.0
    folder = sft(args)
    before, after = (load_file(path / "model.safetensors") for path in (start, folder))
    assert open_model(folder).model.config.context_size == 2 * old
    grown = {name for name in before if before[name].shape != after[name].shape}
    parts = ("delta", "output_gate", "context_out")
    assert grown == {
        f"model.layers.{layer}.{name}"
        for layer in range(open_model(start).model.config.num_hidden_layers)
        for name in ("forget_gate.weight", "forget_gate.bias", *(f"{part}.weight" for part in parts))
    }
    for name in before.keys() - grown:
        assert torch.equal(before[name], after[name]), name
    readers = "model.layers.0.context_out.weight"
    assert torch.equal(after[readers][:, :old], before[readers])
    assert after[readers][:, old:].any()
    # The run starts where the smaller model was: its first updates change little.
    fields = {"model": str(start), "max_steps": 1, "learning_rate": 1e-9}
    small = sft(sft_arguments(conversations, tmp_path / "small", **fields))
    large = sft(sft_arguments(conversations, tmp_path / "large", grow_context=2 * old + 3, **fields))
    assert evaluate(small)["loss"] == pytest.approx(evaluate(large)["loss"], rel=1e-5)


def test_growing_goes_on_after_an_interrupt(conversations, tmp_path, pretrained):
    start = pretrained("newllm")
    fields = {"model": str(start), "grow_context": 2 * open_model(start).model.config.context_size}
    unbroken = sft(sft_arguments(conversations, tmp_path / "unbroken", **fields))
    with pytest.raises(TrainingInterrupted):
        sft(sft_arguments(conversations, tmp_path / "broken", **fields), callbacks=(StopAt(3),))
    broken = sft(sft_arguments(conversations, tmp_path / "broken", **fields))
    assert_same_weights(unbroken, broken)
