"""A notebook whose data and model come from a slow hub: nothing is silent, and nothing is downloaded in vain."""

import importlib.util
import os
import re
from pathlib import Path

import nbformat
import pyarrow.parquet
import pytest
from hub_stand_in import COMMIT, serving
from transformers import GPT2Config, GPT2LMHeadModel

ROOT = Path(__file__).parents[2]
SILENT_SECONDS = 5.0  # at most; work of less than two seconds shows nothing, and a line comes every second
BYTES_PER_SECOND = 100_000
SLOW_BYTES = 600_000  # of data, and of a model: more than SILENT_SECONDS
SPLITS = ("train_sft", "test_sft", "train_gen", "test_gen")

LOAD = """
import dataclasses
import huggingface_hub
from newllm_lib.colab.page.notices import in_one_sentence, say
from newllm_lib.data.sources import DATASETS, open_hub_split
from newllm_lib.training.trained_model import read_weights

huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1 << 14  # after which a download moves its bar
entry = DATASETS["ultrachat"]
"""
DATA = """
with in_one_sentence():
    source = dataclasses.replace(entry.sources[0], rows={})
    for split in source.splits:
        say(f"{split}: {open_hub_split(entry, source, split).count} rows")
"""
MODEL = """
with in_one_sentence():
    say(f"{read_weights('owner/tiny', '%s').num_parameters():,} parameters")
"""
BUSY = """
import time
with in_one_sentence():
    time.sleep(6)  # work that has no bar of its own
    say("done")
"""


def watched_notebook():
    specification = importlib.util.spec_from_file_location("run_notebook", ROOT / "scripts" / "run_notebook.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)

    class Recorded(module.WatchedNotebook):
        def process_message(self, message, cell, cell_index):
            if "data" in message["content"]:
                texts.append(re.sub("<.*?>", "", message["content"]["data"].get("text/html", "")))
            return super().process_message(message, cell, cell_index)

    texts: list[str] = []
    return Recorded, texts


@pytest.fixture
def hub(tmp_path):
    """The folder of a hub with UltraChat, small, and a tiny model."""
    root = tmp_path / "hub"
    ultrachat = root / "datasets" / DATA_ID
    (ultrachat / "data").mkdir(parents=True)
    for split in SPLITS:
        said = os.urandom(SLOW_BYTES // 2 if split == "train_sft" else 1000).hex()
        rows = [{"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": "Yes."}]}]
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, ultrachat / "data" / f"{split}-00000-of-00001.parquet")
    listed = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in SPLITS)
    sizes = "".join(f"  - name: {split}\n    num_bytes: 1\n    num_examples: 1\n" for split in SPLITS)
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{listed}dataset_info:\n  splits:\n{sizes}---\n"
    (ultrachat / "README.md").write_text(card)
    config = GPT2Config(
        vocab_size=SLOW_BYTES // 4 // 64, n_positions=16, n_embd=64, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(root / "models" / "owner" / "tiny")
    return root


DATA_ID = "HuggingFaceH4/ultrachat_200k"


def test_nothing_is_silent_and_nothing_is_downloaded_in_vain(hub, tmp_path, monkeypatch):
    folders = {"HF_HOME": tmp_path / "hf", "NEWLLM_CACHE": tmp_path / "cache", "IPYTHONDIR": tmp_path / "ipython"}
    for name, value in {**folders, "HF_HUB_OFFLINE": 0, "HF_HUB_DISABLE_XET": 1, "PYTHONPATH": ROOT}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    cells = [nbformat.v4.new_code_cell(source) for source in (LOAD, DATA, MODEL % COMMIT, BUSY)]
    watched, texts = watched_notebook()
    with serving(hub, BYTES_PER_SECOND) as (address, read):
        monkeypatch.setenv("HF_ENDPOINT", address)
        options = {"resources": {"metadata": {"path": str(tmp_path)}}, "extra_arguments": ["--log-level=ERROR"]}
        watched(nbformat.v4.new_notebook(cells=cells), kernel_name="python3", **options).execute()
    _, *others = cells
    for cell in others:
        assert cell.metadata["longest_silence"] < SILENT_SECONDS, (cell.source, texts)
        assert "✓" in cell.outputs[-1]["data"]["text/html"] and not any("name" in it for it in cell.outputs)
    lines = "\n".join(texts)
    assert re.search(rf"loading {DATA_ID}: train_sft\S* · \d+ % · \d+kB / \d+kB · \d\d:\d\d left", lines), lines
    assert re.search(r"opening owner/tiny: model.safetensors · \d+ % · \d+kB / \S+B · \d\d:\d\d left", lines), lines
    assert re.search(r"^working · for 00:03$", lines, re.MULTILINE), lines
    assert {path for path in read if path.endswith(".parquet")} == {
        f"{DATA_ID}/data/{split}-00000-of-00001.parquet" for split in ("train_sft", "test_sft")
    }
