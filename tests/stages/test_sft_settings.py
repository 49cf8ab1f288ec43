"""What the sft stage refuses, its presets, and what it advises at the end."""

import pytest
from conversations import make_conversations, sft_arguments, write_conversations
from sample_text import make_text

from newllm_lib.errors import InputError
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.stages.sft import OF_THE_MODEL, PRESETS, SftArguments, advice, sft


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two tiny pretraining runs with one tokenizer, and conversations."""
    place = tmp_path_factory.mktemp("runs")
    (place / "text.txt").write_text(make_text(60))
    made = {"talk": write_conversations(place / "talk.jsonl", make_conversations(30))}
    for model_type in ("newllm", "tiny-gpt2"):
        args = PretrainArguments(
            data=str(place / "text.txt"), output_dir=str(place / model_type), model_type=model_type, tokenizer="byte",
            max_length=32, num_parameters=120_000, max_steps=1, per_device_train_batch_size=4,
        )  # fmt: skip
        made[model_type] = pretrain(args)
    return made


@pytest.mark.parametrize("name", OF_THE_MODEL)
def test_what_the_model_brings_is_refused_beside_it(folders, name):
    with pytest.raises(InputError, match=f"{name} cannot be set with --model"):
        SftArguments(model=str(folders["newllm"]), **{name: 512})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"grow_context": 64}, "grow_context needs a trained model to start from; add --model"),
        ({"train_only_new_context": True}, "train_only_new_context needs a context that grows; add --grow_context"),
        ({"max_length": 1}, "max_length has to be at least 2"),
    ],
)
def test_settings_that_contradict(fields, complaint):
    with pytest.raises(InputError, match=complaint):
        SftArguments(**fields)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"model": "newllm", "grow_context": 3}, r"grow_context 3 has to be larger than the model's \d+"),
        ({"model": "tiny-gpt2", "grow_context": 512}, r"grow_context is for New-LLM; .* is a tiny-gpt2"),
        ({"model": "newllm", "dropout": 1.5}, r"dropout has to be less than 1, got 1\.5"),
        ({"model": "nowhere"}, r"model folder .*nowhere.* does not exist"),
        ({"teacher": "newllm", "tokenizer": "bpe", "vocab_size": 300}, "has another tokenizer than the model"),
        ({"teacher": "tiny-gpt2"}, r"reads 32 tokens; choose --max_length 32 or less"),
        ({"teacher": "newllm", "teacher_weight": 1.5}, r"teacher_weight has to lie in \[0, 1\], got 1\.5"),
        ({"teacher": "newllm", "teacher_temperature": 0.0}, r"teacher_temperature has to be more than 0"),
        ({"held_out_share": 0.0}, "held_out_share has to lie between 0 and 1"),
        ({"max_length": 16}, "gives no conversation to train on"),
    ],
)
def test_what_cannot_be_trained_is_said_before(folders, tmp_path, fields, complaint):
    for name in ("model", "teacher"):
        if name in fields:
            fields = fields | {name: str(folders.get(fields[name], tmp_path / fields[name]))}
    with pytest.raises(InputError, match=complaint) as refusal:
        sft(sft_arguments(folders["talk"], tmp_path / "run", **fields))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_sets_of_fields(name):
    SftArguments(**PRESETS[name])


PUBLISHED = [
    ("published", "dolly", 100),
    ("published-hh-rlhf", "hh-rlhf", 100),
    ("published-ultrachat", "ultrachat", 50),
]


@pytest.mark.parametrize(("name", "dataset", "epochs"), PUBLISHED)
def test_the_published_recipe(name, dataset, epochs):
    args = SftArguments(**PRESETS[name])
    assert args.dataset == dataset
    assert args.effective_batch_size == 2048
    assert (args.learning_rate, args.max_length, args.num_train_epochs) == (8e-4, 128, epochs)
    assert (args.early_stopping_patience, args.model_type, args.held_out) == (20, "newllm-reference", "random")
    assert (args.loss_on, args.too_long, args.tokenizer) == ("all", "cut", "word")
    from newllm_lib.models import build_config

    config = build_config(args.model_type, 1000, args.max_length, context_size=args.context_size)
    assert (config.context_size, config.embedding_size, config.hidden_size) == (256, 256, 512)


def test_the_published_recipe_of_dailydialog():
    """50 epochs in small updates: it goes on from a model that has learned WikiText."""
    args = SftArguments(**PRESETS["published-dailydialog"])
    assert (args.dataset, args.model_type, args.tokenizer) == ("dailydialog", "newllm-reference", "word")
    assert (args.effective_batch_size, args.learning_rate, args.max_length) == (16, 5e-5, 64)
    assert (args.num_train_epochs, args.early_stopping_patience) == (50, 10)


METRICS = {"perplexity": 18.9, "bits_per_byte": None, "unk_rate": 0.25}


def published(dataset: str, **other) -> dict:
    """The settings of a run in the published setting."""
    fields = {**PRESETS["published"], "dataset": dataset, **other}
    return {**SftArguments(**fields).run_settings(), "text_source": "hub"}


@pytest.mark.parametrize(
    ("dataset", "perplexity", "said"),
    [
        ("ultrachat", 18.9, "18.9 is excellent (below 19): go on with --dataset codealpaca."),
        ("ultrachat", 19.0, "19.0 is good (19 to 24): train on the full data, --dataset ultrachat-full."),
        ("ultrachat-full", 24.0, "24.0 is good (19 to 24)"),
        ("ultrachat", 24.1, "24.1 is above 24: take more --max_samples"),
        ("dolly", 16.9, "16.9 is good (below 17): go on with --dataset hh-rlhf."),
        ("dolly", 17.1, "17.1 is above 17: take more --num_train_epochs"),
        ("hh-rlhf", 17.9, "17.9 is excellent (below 18): go on with --dataset ultrachat."),
        ("hh-rlhf", 21.0, "21.0 is good (18 to 21)"),
        ("hh-rlhf", 21.1, "21.1 is above 21"),
        ("codealpaca", 31.0, "31.0 is good (below 32)"),
        ("codealpaca", 33.0, "33.0 is above 32"),
    ],
)
def test_the_published_bands_hold_in_the_published_setting(dataset, perplexity, said):
    assert f"Perplexity {said}" in advice(published(dataset), METRICS | {"perplexity": perplexity})


@pytest.mark.parametrize(
    "other",
    [{"tokenizer": "byte", "vocab_size": None}, {"loss_on": "assistant"}, {"dataset": "alpaca"}, {"dataset": None}],
)
def test_elsewhere_the_bands_are_not_spoken_of(other):
    run = published(**{"dataset": "ultrachat", **other})
    with_words = advice(run, METRICS)
    assert "comparable only to runs with the same words" in with_words
    assert "25% unknown words" in with_words
    whole = advice(run, METRICS | {"bits_per_byte": 1.23456, "unk_rate": 0.0})
    assert whole.startswith("1.235 bits per byte of the answers")
    for text in (with_words, whole):
        assert not any(word in text for word in ("excellent", "good", "above 24"))
        assert ("The band of ultrachat, 24, is one of a thousand words" in text) == (run["dataset"] == "ultrachat")


@pytest.mark.parametrize("other", [{"text_source": "offline"}, {"text_source": "file"}, {"mix": "codealpaca:0.2"}])
def test_another_text_has_no_bands(other):
    said = advice({**published("ultrachat"), **other}, METRICS)
    assert said == "Perplexity 18.9 with 25% unknown words: comparable only to runs with the same words."
