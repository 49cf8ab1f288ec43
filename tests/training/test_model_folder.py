"""Model folders that are damaged, or made to do harm: a sentence each, soon, and nothing else."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from chats import untrained_chat
from lwf_runs import run_of_adapters
from safetensors.torch import load_file, save_file
from tiny_gemma import tiny_gemma_folder

from newllm_lib.adapters.base_model import find_base_model, open_base, open_tokenizer
from newllm_lib.chat import Chat
from newllm_lib.errors import InputError
from newllm_lib.stages.evaluate import evaluate
from newllm_lib.training.trained_model import open_model

SECONDS = 20  # in which a folder is opened or refused on a busy machine; one that hangs takes hours


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return untrained_chat(tmp_path_factory.mktemp("whole") / "chat", "tiny-gpt2")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    return run_of_adapters(tmp_path_factory.mktemp("adapted"))


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "chat"))


@pytest.fixture
def run(adapted, tmp_path):
    return Path(shutil.copytree(adapted, tmp_path / "run"))


def is_opened(folder: Path) -> bool:
    """Whether a conversation can be had with it; anything but an InputError comes through."""
    try:
        "".join(Chat(folder, max_new_tokens=2, seed=0).reply("Hello"))
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 900
        return False
    return True


def changed(folder: Path, file: str, **fields) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **fields}))


def damage(content: bytes, dice: random.Random) -> bytes:
    """Cut, overwritten, filled with zeros, with a piece twice or missing, or another number somewhere."""
    at = dice.randrange(len(content))
    until = min(len(content), at + dice.choice((1, 8, 200)))
    digits = [place for place, byte in enumerate(content[:4096]) if 48 <= byte < 58] or [at]
    number = dice.choice(digits)
    noise = bytes(dice.randrange(256) for _ in range(until - at))
    pieces = noise, bytes(until - at), content[at:until] * 2, b""
    other = dice.choice((b"0", b"-1", b"99999999999", b"null", b'"a"', b"[]"))
    ways = [content[:at], b"", content[:number] + other + content[number + 1 :]]
    return dice.choice([*ways, *(content[:at] + piece + content[until:] for piece in pieces)])


FILES = ["config.json", "generation_config.json", "model.safetensors", "settings.json", "tokenizer.json"]
FILES += ["tokenizer_config.json", "chat_template.jinja"]


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_a_sentence_or_no_matter(folder, file):
    content = (folder / file).read_bytes()
    opened = []
    for seed in range(40):
        (folder / file).write_bytes(damage(content, random.Random(f"{file} {seed}")))
        started = time.monotonic()
        opened.append(is_opened(folder))
        assert time.monotonic() - started < SECONDS
    assert not all(opened)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_damaged_adapters_are_a_sentence_or_no_matter(run, file):
    content = (run / file).read_bytes()
    opened = []
    for seed in range(40):
        (run / file).write_bytes(damage(content, random.Random(f"{file} {seed}")))
        opened.append(is_opened(run))
    assert not all(opened)


def test_folders_that_are_whole_are_opened(folder, run):
    assert is_opened(folder) and is_opened(run)


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "generation_config.json", "settings.json", "tokenizer_config.json"]
)
def test_json_of_great_depth_is_a_sentence(folder, file):
    (folder / file).write_text('{"a":' * 200_000 + "1" + "}" * 200_000)
    assert not is_opened(folder)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"n_layer": 10**9}, "more than 10,000"),
        ({"n_layer": 9_000}, "much larger than the weights"),
        ({"n_embd": 2**20}, "much larger than the weights"),
        ({"n_positions": 10**9}, "much larger than the weights"),
        ({"vocab_size": 10**9}, "much larger than the weights"),
        ({"num_labels": 10**9}, "more than 10,000"),
        ({"n_embd": 10**30}, "config.json cannot be used"),
        ({"n_embd": 136, "n_head": 4}, "weights cannot be used"),
        ({"n_head": 0}, "config.json cannot be used"),
        ({"n_layer": 4}, "tensors are missing"),
        ({"model_type": "no-such"}, "config.json cannot be used"),
    ],
)
def test_a_config_that_does_not_fit_the_weights(folder, fields, sentence):
    changed(folder, "config.json", **fields)
    started = time.monotonic()
    with pytest.raises(InputError, match=sentence):
        open_model(folder)
    assert time.monotonic() - started < SECONDS


def test_weights_of_which_one_is_missing_are_not_filled_up_at_random(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="1 tensors are missing"):
        open_model(folder)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "shard.bin"])
def test_a_pickle_is_never_unpickled(folder, tmp_path, file):
    (folder / "model.safetensors").rename(folder / "else.safetensors")
    torch.save({"a": Touch(tmp_path / "ran")}, folder / file)
    if file == "shard.bin":
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(InputError):
        open_model(folder)
    with pytest.raises(InputError, match="weights cannot be used"):
        open_base(find_base_model(str(folder)), False)
    assert not (tmp_path / "ran").exists()


def test_a_part_of_the_weights_outside_of_the_folder_is_refused(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "else.safetensors").touch()
    with pytest.raises(InputError, match=r"\.\./model\.safetensors is not there"):
        find_base_model(str(folder))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"target_modules": "(a+)+$"}, "no list of names"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern is"),
        ({"exclude_modules": "(a+)+$"}, "exclude_modules is"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"megatron_config": {}, "megatron_core": "evil"}, "megatron_co"),
        ({"peft_type": "PROMPT_TUNING"}, "reads LORA alone"),
        ({"r": 2**30}, "of rank"),
        ({"target_modules": ["q_proj"]}, "not those of this base"),
        ({"lora_alpha": "x"}, "cannot be used"),
    ],
)
def test_adapters_of_another_kind_are_refused(run, fields, sentence):
    changed(run, "adapter_config.json", **fields)
    with pytest.raises(InputError, match=sentence):
        open_model(run)


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    changed(folder, "config.json", vocab_size=200)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:200].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="tokenizer is of another model"):
        open_model(folder)


def test_a_tokenizer_cuts_nothing_by_itself(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    backend = open_model(folder).tokenizer.backend_tokenizer
    assert len(backend.encode("Hello there").ids) == 11


@pytest.mark.parametrize("value", [[None, None], "x", float("nan")])
def test_a_config_that_is_felt_only_when_the_model_reads_is_told(tmp_path, value):
    folder = untrained_chat(tmp_path / "lstm", "lstm")
    changed(folder, "config.json", layer_norm_eps=value)
    with pytest.raises(InputError, match=r"config\.json cannot be used"):
        open_model(folder)


def test_a_tokenizer_without_a_beginning_begins_with_its_end_of_text(folder):
    changed(folder, "tokenizer_config.json", bos_token=None, pad_token=None)
    tokenizer = open_model(folder).tokenizer
    assert tokenizer.bos_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id is not None
    assert is_opened(folder)


def test_the_base_may_have_moved(run, tmp_path):
    base = json.loads((run / "settings.json").read_text())["session"]["model"]
    moved = shutil.copytree(base, tmp_path / "moved")
    changed(run, "settings.json", session={"model": "gone/base"})
    with pytest.raises(InputError, match=r"'gone/base'.* say with --base where it is now"):
        open_model(run)
    assert open_model(run, str(moved)).model.peft_config["default"].r == 2


@pytest.mark.parametrize("value", [None, -1, [], {}])
@pytest.mark.parametrize("name", ["max_length", "base", "load_in_4bit", "stage"])
def test_settings_of_another_kind_are_told(run, name, value):
    settings = json.loads((run / "settings.json").read_text())["run"]
    changed(run, "settings.json", run={**settings, name: value})
    with pytest.raises(InputError, match=f"damaged: {name} is"):
        open_model(run)


def test_a_setting_that_a_run_lacks_is_told(folder):
    with pytest.raises(InputError, match="lacks 'stage'"):
        evaluate(folder)


def test_4_bit_weights_that_were_saved_so_are_no_larger_than_their_config(tmp_path):
    pytest.importorskip("bitsandbytes")
    base = find_base_model(str(tiny_gemma_folder(tmp_path / "plain")))
    open_base(base, True).save_pretrained(tmp_path / "packed")
    open_tokenizer(base).save_pretrained(tmp_path / "packed")
    opened = open_base(find_base_model(str(tmp_path / "packed")), False)
    assert type(opened.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"


def test_a_checkpoint_is_told_from_its_run(folder):
    checkpoint = shutil.copytree(folder, folder / "checkpoint-20")
    (checkpoint / "settings.json").unlink()
    with pytest.raises(InputError, match=r"is a checkpoint, which its run goes on from; name the run, '.*/chat'"):
        open_model(checkpoint)
