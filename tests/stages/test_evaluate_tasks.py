"""Public benchmarks through lm-evaluation-harness: refused in a sentence without it, run on adapters with it."""

import json
import sys
import types

import huggingface_hub
import pytest
from chats import untrained_chat
from lwf_runs import lwf_arguments

from newllm_lib.adapters.qlora_lwf import qlora_lwf
from newllm_lib.cli import main
from newllm_lib.stages import evaluate as stage

TASK = """task: colours
dataset_path: json
dataset_kwargs: {{data_files: {file}}}
test_split: train
output_type: multiple_choice
doc_to_text: "Instruction: {{{{question}}}}\\nResponse:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""


def test_without_the_harness_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stage, "find_spec", lambda name: None)
    assert main(["evaluate", str(tmp_path), "--tasks", "winogrande"]) == 2
    assert "pip install 'newllm[eval]'" in capsys.readouterr().err


def test_a_task_is_run_on_the_adapter_folder(tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="needs newllm[eval]")
    rows = [{"question": f"{number}: what is red?", "choices": ["yes", "no"]} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "colours.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    folder = qlora_lwf(lwf_arguments(tmp_path, max_steps=2))
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--tasks", str(tmp_path / "colours.yaml"), "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{\n") :])["colours"]["sample_len"] == 2
    assert main(["evaluate", str(folder), "--tasks", "no-such-task"]) == 2


def test_without_a_network_it_is_one_sentence_at_once(tmp_path, monkeypatch, capsys):
    """The harness and the loaders below it would ask again and again; a harness of ours fails as they do."""

    def simple_evaluate(model, tasks, **options):
        assert huggingface_hub.constants.HF_HUB_OFFLINE is True
        raise ConnectionError("Couldn't reach 'winogrande' on the Hub (OfflineModeIsEnabled)")

    manager = types.SimpleNamespace(all_tasks=["winogrande"])
    for name, content in {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": lambda **options: None},
        "lm_eval.tasks": {"TaskManager": lambda: manager},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(stage, "find_spec", lambda name: True)
    monkeypatch.setattr(stage, "hub_problem", lambda source: "no connection: ConnectError")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert main(["evaluate", str(untrained_chat(tmp_path / "chat")), "--tasks", "winogrande"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "could not be had from the hub (no connection: ConnectError)" in said
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False
