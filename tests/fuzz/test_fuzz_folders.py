"""Whatever has become of a model folder or of the checkpoints of a run, it is opened and gone on with, or one
InputError says what is wrong."""

import functools
import json
import shutil
from pathlib import Path

import pytest
from chats import untrained_chat
from hypothesis import strategies as st
from lwf_runs import run_of_adapters
from odd_values import damaged, mutated, spelled
from sample_text import make_text
from transformers import TrainerCallback

from newllm_lib.adapters.base_model import find_base_model, open_base, open_tokenizer
from newllm_lib.chat import Chat
from newllm_lib.errors import InputError
from newllm_lib.stages.evaluate import evaluate
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.training.callbacks import TrainingInterrupted

NAMES = st.sampled_from(
    ["hidden_size", "model_type", "architectures", "auto_map", "type", "vocab", "stage", "base", "a"]
)
KINDS = ("newllm", "newllm-reference", "lstm", "tiny-gpt2", "adapters")


@functools.cache
def content_of(path: Path) -> bytes:
    return path.read_bytes()


@st.composite
def harmed(draw, folder: Path, paths: list[Path]) -> tuple[str, bytes]:
    """(name, content) of one of the files in a folder with something odd: anywhere in its JSON, or in its bytes."""
    path = draw(st.sampled_from(paths))
    content = content_of(path)
    if path.suffix == ".json" and draw(st.integers(0, 3)):
        content = spelled(draw(mutated(json.loads(content), NAMES))).encode("utf-8", "surrogatepass")
    elif path.suffix == ".safetensors" and draw(st.booleans()):
        end = 8 + int.from_bytes(content[:8], "little")
        header = spelled(draw(mutated(json.loads(content[8:end]), NAMES))).encode("utf-8", "surrogatepass")
        content = len(header).to_bytes(8, "little") + header + content[end:]
    else:
        content = draw(damaged(content))
    return str(path.relative_to(folder)), content


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(make_text(240), encoding="utf-8")
    path.with_name("short.txt").write_text(make_text(3), encoding="utf-8")
    return path


def said(error: InputError) -> str:
    assert "\n" not in str(error) and len(str(error)) < 900
    return "refused"


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_opened_or_refused(fuzz, tmp_path, text, kind):
    folder = tmp_path / "whole"
    whole = run_of_adapters(folder) if kind == "adapters" else untrained_chat(folder, kind)
    settings = json.loads((whole / "settings.json").read_text())
    settings["run"] = {"stage": "pretrain", "max_length": 32, "skip_bad_rows": True, **settings["run"]}
    settings["session"]["per_device_eval_batch_size"] = 4
    (whole / "settings.json").write_text(json.dumps(settings))

    def use(harm: tuple[str, bytes], way: str) -> str:
        folder = tmp_path / "folder"
        shutil.copytree(whole, folder)
        (folder / harm[0]).write_bytes(harm[1])
        try:
            if way == "chat":
                "".join(Chat(folder, max_new_tokens=2, seed=0).reply("Hello"))
            elif way == "evaluate":
                evaluate(folder, str(text.with_name("short.txt")))
            else:
                base = find_base_model(str(folder))
                open_tokenizer(base)
                open_base(base, False)
        except InputError as error:
            return said(error)
        finally:
            shutil.rmtree(folder)
        return "opened"

    ways = st.sampled_from(["chat", "chat", "evaluate", *([] if kind == "adapters" else ["base"])])
    assert {"opened", "refused"} <= set(fuzz(use, 15, harm=harmed(whole, files_in(whole)), way=ways))


class Stop(TrainerCallback):
    """Ends a run as Ctrl-C does."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["newllm", "lstm"])
def test_a_run_goes_on_or_is_refused(fuzz, tmp_path, text, monkeypatch, kind):
    monkeypatch.setattr("newllm_lib.training.curves.save_curves", lambda histories, path: path.write_bytes(b"png"))

    def train(folder: Path, *callbacks) -> None:
        pretrain(
            PretrainArguments(
                data=str(text), eval_data=str(text.with_name("short.txt")), output_dir=str(folder), tokenizer="byte",
                model_type=kind, num_parameters=80_000, max_length=32, max_steps=6, per_device_train_batch_size=2,
                eval_steps=2, save_steps=2, save_minutes=0, logging_steps=3, max_eval_tokens=50, save_total_limit=3,
                auto_precision=False,
            ),
            callbacks,
        )  # fmt: skip

    whole = tmp_path / "whole"
    with pytest.raises((KeyboardInterrupt, TrainingInterrupted)):
        train(whole, Stop())
    assert len(list(whole.glob("checkpoint-*/complete.json"))) == 2

    def go_on(harm: tuple[str, bytes]) -> str:
        folder = tmp_path / "run"
        shutil.copytree(whole, folder)
        (folder / harm[0]).write_bytes(harm[1])
        try:
            train(folder)
        except InputError as error:
            return said(error)
        finally:
            shutil.rmtree(folder)
        return "finished"

    assert "finished" in fuzz(go_on, 4, harm=harmed(whole, files_in(whole)))
