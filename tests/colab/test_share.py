"""Save and share: the zip, the cards, the way to the browser, and the memory given back."""

import gc
import json
import sys
import weakref
import zipfile
from types import SimpleNamespace

import pytest
from chats import train_chat, write_conversations

from newllm_lib.colab import share
from newllm_lib.colab.chat_box import ChatBox
from newllm_lib.colab.page.notices import CellStopped
from newllm_lib.export.model_folder import read_card


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run folder of two finished models."""
    place = tmp_path_factory.mktemp("finished")
    run = place / "02_dailydialog" / "demo-1"
    data = write_conversations(place / "rows.jsonl")
    for name in ("newllm", "tiny-gpt2"):
        train_chat(data, run / name)
    (run / "comparison.json").write_text("[]")
    (run / ".hidden").write_text("hidden")
    return run


@pytest.fixture
def folders(finished):
    return [finished / "newllm", finished / "tiny-gpt2"]


@pytest.fixture
def page(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shown = SimpleNamespace(said=[], displayed=[])
    monkeypatch.setattr(share, "say", lambda sentence, status="ok", code="": shown.said.append((status, sentence)))
    for name in ("display", "show"):
        monkeypatch.setattr(share, name, shown.displayed.append)
    return shown


def test_the_zip_holds_the_run_without_its_checkpoints(folders, page, tmp_path):
    share.save_and_share(folders)
    with zipfile.ZipFile(tmp_path / "02_dailydialog-demo-1.zip") as packed:
        names = set(packed.namelist())
        weights = packed.read("demo-1/newllm/model.safetensors")
    assert weights == (folders[0] / "model.safetensors").read_bytes()
    assert {"demo-1/comparison.json", "demo-1/tiny-gpt2/README.md", "demo-1/newllm/tokenizer.json"} <= names
    assert not [name for name in names if "checkpoint" in name or "optimizer" in name or "/." in name]
    assert page.displayed[-1].path == "02_dailydialog-demo-1.zip", "a link that the notebook's server can follow"
    status, sentence = page.said[-1]
    assert status == "ok" and "02_dailydialog-demo-1.zip holds the run" in sentence


def test_a_file_beside_the_notebooks_folder_has_a_link(page, tmp_path, monkeypatch):
    file, folder = tmp_path / "runs" / "chat.html", tmp_path / "ja"
    for place in (file.parent, folder):
        place.mkdir()
    file.write_text("a page")
    monkeypatch.chdir(folder)
    share.offer(file, ask=True)
    assert page.displayed[-1].path == "../runs/chat.html"


def test_on_colab_it_goes_to_the_browser(colab, folders, page, tmp_path):
    share.save_and_share(folders)
    assert colab.downloads == [str(tmp_path / "02_dailydialog-demo-1.zip")]
    share.save_and_share(folders, download=False)
    assert len(colab.downloads) == 1
    colab.download_error = RuntimeError("no browser")
    share.save_and_share(folders)
    assert page.said[-2][0] == "note" and "no browser" in page.said[-2][1]


def test_what_is_large_waits_for_a_click(colab, folders, page, tmp_path, monkeypatch):
    assert share.LARGEST_UNASKED == 50 * 2**20
    monkeypatch.setattr(share, "LARGEST_UNASKED", 100)
    share.save_and_share(folders)
    button, line = page.displayed[-1].children
    assert colab.downloads == [] and button.description.startswith("Download (")
    button.click()
    assert colab.downloads == [str(tmp_path / "02_dailydialog-demo-1.zip")] and "on its way" in line.value
    colab.download_error = RuntimeError("no browser")
    button.click()
    assert "no browser" in line.value


def test_the_cards_are_shown(folders, page):
    share.save_and_share(folders)
    html = page.displayed[0]
    assert html.count("licence: ") >= 4 and "rows.jsonl" in html and "bits per byte" in html


def test_a_card_that_says_too_little_is_refused(folders, page, tmp_path):
    card = folders[0] / "README.md"
    text = card.read_text()
    try:
        card.write_text(text.replace("(licence: ", "("))
        with pytest.raises(CellStopped, match="trained on, held out"):
            share.save_and_share(folders)
        card.unlink()
        with pytest.raises(CellStopped, match="trained on, held out, metrics"):
            share.save_and_share(folders)
        assert not list(tmp_path.glob("*.zip")) and page.said == []
    finally:
        card.write_text(text)


def test_what_a_card_says_is_what_was_measured(folders):
    facts = read_card(folders[0])
    results = json.loads((folders[0] / "results.json").read_text())
    assert "rows.jsonl" in facts["trained on"] and "(licence: " in facts["held out"]
    assert float(facts["perplexity"].replace(",", "")) == pytest.approx(results["perplexity"], abs=1e-3)


def test_an_unfinished_run_is_refused(folders, page):
    results = folders[1] / "results.json"
    hidden = results.rename(results.with_suffix(".away"))
    try:
        with pytest.raises(CellStopped, match="tiny-gpt2 is not finished"):
            share.save_and_share(folders)
    finally:
        hidden.rename(results)


def test_a_full_disk_leaves_the_older_zip(folders, page, tmp_path, monkeypatch):
    share.save_and_share(folders)
    archive = tmp_path / "02_dailydialog-demo-1.zip"
    before = archive.read_bytes()

    def write(self, *args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", write)
    with pytest.raises(CellStopped, match="NL-104"):
        share.save_and_share(folders)
    assert archive.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [archive.name]


def test_the_hub_is_asked_only_when_a_repository_is_named(folders, page, monkeypatch):
    pushed = []
    monkeypatch.setattr(share, "push_to_hub", lambda *args: pushed.append(args) or ["https://hub/me/mine"])
    share.save_and_share(folders, hub_repository=" ")
    assert pushed == []
    share.save_and_share(folders, hub_repository="mine", private=False)
    assert pushed == [(folders, "mine", False)]
    assert page.said[-1] == ("ok", "On the hub, public, without checkpoints: https://hub/me/mine.")


def test_the_button_lets_go_of_the_models(folders, page):
    box = ChatBox({folder.name: folder for folder in folders}, seed=1)
    model = weakref.ref(next(iter(box.open_chats().values())).model)
    sys.last_value = SimpleNamespace(model=model())  # as a traceback holds the frames of a training that was stopped
    share.offer_release(box)
    gc.collect()
    assert model() is not None, "Run all does not press the button"
    button, line = page.displayed[0].children
    button.click()
    assert model() is None and "memory are free" in line.value
    assert "Released" in line.value and "Runtime" not in line.value and not hasattr(sys, "last_value")
    assert box.open_chats(), "it may be talked to again"


def test_on_colab_the_machine_may_be_given_back_too(colab):
    assert "Disconnect and delete runtime" in share.release()


def test_the_memory_of_a_gpu_is_told(monkeypatch):
    monkeypatch.setattr(share.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(share.torch.cuda, "mem_get_info", lambda: (14 * 2**30, 15 * 2**30))
    assert share.memory_sentence() == "14.0 GB of 15.0 GB of the GPU's memory are free."
