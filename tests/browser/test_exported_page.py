"""The page of a model, opened from its file in a browser without a network: it says what PyTorch says, remembers what
`newllm chat` remembers, and takes nothing for HTML."""

import html
import json
import random
import re
from pathlib import Path

import pytest
import torch
from chats import untrained_chat
from jupyter_lab import BROWSER_FLAGS, CHROMIUM, SECONDS
from sample_text import make_text

from newllm_lib.chat import Chat
from newllm_lib.colab.take_along import FRAME
from newllm_lib.data.chat_template import ROLE_TEMPLATE
from newllm_lib.data.tokenizer import build_tokenizer, text_backend
from newllm_lib.errors import InputError
from newllm_lib.evaluation.generation import TokenStream
from newllm_lib.export.html import export_html
from newllm_lib.training.trained_model import open_model

pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")]
HOSTILE = '</script><img src=x onerror="document.title=1"><!-- {weights}'
CARD = f"""| trained on | {HOSTILE} (licence: none) |
| held out | a text (licence: none) |
| bits_per_byte | 2.5 |
"""
DEMO_PAGE = Path(__file__).parents[2] / "runs" / "demo" / "chat.html"
MEASURED = ("--enable-precise-memory-info", "--js-flags=--expose-gc")
SETTINGS = {"temperature": 0, "topP": 1, "penalty": 1, "seed": 1, "most": 200}


def halved(folder: Path) -> Path:
    """The model with weights that half precision can hold, and the card of a finished run."""
    model = open_model(folder).model
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight)).copy_(weight.half().float())  # far from its first values
    model.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "results.json").write_text(json.dumps({"loss": 1.0, "bits_per_byte": 2.5}))
    return folder


@pytest.fixture(scope="module", params=["bpe", "byte"])
def chat_folder(request, tmp_path_factory):
    tokenizer = build_tokenizer(request.param, [make_text(80)], 400 if request.param == "bpe" else None)
    return halved(untrained_chat(tmp_path_factory.mktemp("chat") / "model", tokenizer=tokenizer))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*BROWSER_FLAGS.split(), *MEASURED])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """A call of it opens the page of a model. `asked` and `said` are what the page asks of others and complains of."""
    contexts = []

    def opened(folder: Path, **options):  # or a page
        context = browser.new_context(offline=True, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto((folder if folder.suffix == ".html" else export_html(folder)).as_uri())
        page.wait_for_selector("#say:not([disabled])", timeout=30 * SECONDS)
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def engine(opened, chat_folder):
    """The page with its programs in reach of a test, as `talk`."""
    return reach(opened(chat_folder, bypass_csp=True))


def reach(page):
    page.evaluate("() => { (0, eval)(document.getElementById('worker').textContent) }")
    open_it = "() => { const get = (id) => document.getElementById(id).textContent;"
    page.evaluate(open_it + "window.talk = new newllm.Talk(JSON.parse(get('model')), get('weights')) }")
    return page


def logits(page, token_ids: list[int]) -> torch.Tensor:
    """What the page's model says after each token: [tokens, types]."""
    step = "(id) => [...talk.model.step(id, state)]"
    return torch.tensor(
        page.evaluate(f"(ids) => {{ const state = new Float32Array(talk.model.S); return ids.map({step}) }}", token_ids)
    )


def test_logits_are_pytorchs(engine, chat_folder):
    trained = open_model(chat_folder)
    token_ids = torch.randint(0, trained.model.config.vocab_size, (200,)).tolist()
    found = logits(engine, token_ids)
    with torch.no_grad():
        expected = trained.model(input_ids=torch.tensor([token_ids], device=trained.model.device)).logits[0].cpu()
    assert expected.std() > 0.2
    assert (found - expected).abs().max() < 2e-3


def test_eight_bits_say_nearly_the_same_in_half_the_page(opened, chat_folder, tmp_path):
    """The page computes with the numbers that the bytes stand for: PyTorch with the same says the same."""
    small = export_html(chat_folder, tmp_path / "small.html", int8=True)
    whole = export_html(chat_folder, tmp_path / "whole.html")
    weights = [re.search(r'id="weights">([^<]*)', page.read_text())[1] for page in (small, whole)]
    assert len(weights[0]) < 0.55 * len(weights[1])
    trained = open_model(chat_folder)
    with torch.no_grad():
        for weight in trained.model.parameters():
            if weight.dim() > 1:
                scales = (weight.abs().amax(dim=1, keepdim=True) / 127).half().float()
                weight.copy_((weight / scales).round() * scales)
    token_ids = [trained.tokenizer.bos_token_id, *range(40, 70)]
    expected = trained.model(input_ids=torch.tensor([token_ids], device=trained.model.device)).logits[0].cpu()
    page = opened(small, bypass_csp=True)
    assert (logits(reach(page), token_ids) - expected).abs().max() < 2e-3


def test_the_likeliest_text_is_that_of_the_command(engine, chat_folder):
    trained = open_model(chat_folder)
    prompt = [trained.tokenizer.bos_token_id, 70, 71]
    expected = list(TokenStream(trained.model, temperature=0).continue_with(prompt, 200, []))
    greedy = """async ([ids, settings]) => {
        talk.begin();
        let logits = await talk.catchUp(ids), found = [];
        for (let i = 0; i < settings.most; i++) {
            found.push(newllm.chosen(logits, ids, settings, null));
            logits = talk.readOne(found.at(-1), true);
        }
        return found;
    }"""
    assert engine.evaluate(greedy, [prompt, SETTINGS]) == expected


def mixed_lines() -> list[str]:
    """1,000 lines of everything that people write, and of what no one should."""
    chance = random.Random(0)
    words = [
        *make_text(40).split(),
        "日本語", "の", "テキスト", "👩‍👩‍👧", "🇯🇵", "é", "e\u0301", "½", "Ⅷ", "²", "don't", "I'LL", "we're", "x_1",
        "==", "{}", "<|user|>", "<|end|>", "<|endoftext|>", "def", "return", "\u00a0", "\u2003", "\ufeff", "\u0085",
        "\x00", "\x1b[0m", "'", "''s", "...", "12,345.6", "ﷺ", "नमस्ते", "ราคา", "\u200d", "\ud7ff", "\U0010ffff",
    ]  # fmt: skip
    spaces = [" ", " ", " ", "  ", "\n", "\t", "\r\n", "", "\n\n   "]
    return ["".join(chance.choice(words) + chance.choice(spaces) for _ in range(12)) for _ in range(1000)]


def test_a_text_has_the_tokens_of_the_library(engine, chat_folder):
    lines, tokenizer = mixed_lines(), open_model(chat_folder).tokenizer
    expected = [it.ids for it in text_backend(tokenizer).encode_batch(lines, add_special_tokens=False)]
    found = engine.evaluate("(lines) => lines.map((line) => talk.tokenizer.encode(line))", lines)
    assert [line for line, one, other in zip(lines, found, expected, strict=True) if one != other] == []
    assert engine.evaluate("(all) => all.map((ids) => talk.tokenizer.decode(ids))", expected) == [
        tokenizer.decode(ids) for ids in expected
    ]


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_the_page_takes_off_what_python_takes_off(engine, side):
    signs = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    taken = engine.evaluate(f"(signs) => signs.filter((sign) => !newllm.{side}(sign + sign))", signs)
    assert taken == [sign for sign in signs if sign.isspace()]
    assert engine.evaluate(f"() => newllm.{side}(' \\x1e a \\x1e ')") == getattr(" \x1e a \x1e ", side)()


def test_tokens_are_drawn_as_transformers_draws_them(engine):
    """The same seed the same tokens; and of many draws as large a share as its probability."""
    draw = """([logits, settings, count]) => {
        const random = newllm.randomNumbers(settings.seed);
        return Array.from({length: count}, () => newllm.chosen(logits, [1], settings, random));
    }"""
    logits, settings = [2.0, 1.5, 0.0, -1.0, 1.0], {"temperature": 0.7, "topP": 0.8, "penalty": 1.3, "seed": 5}
    first, again = (engine.evaluate(draw, [logits, settings, 5000]) for _ in range(2))
    other = engine.evaluate(draw, [logits, {**settings, "seed": 6}, 5000])
    assert first == again != other
    scores = torch.tensor([logits])
    for warper in TokenStream(open_model_of(settings), **sampling_of(settings)).warpers:
        scores = warper(torch.tensor([[1]]), scores)
    expected = scores.softmax(dim=-1)[0]
    shares = torch.bincount(torch.tensor(first), minlength=5) / 5000
    assert set(torch.tensor(first).unique().tolist()) == set(expected.nonzero()[:, 0].tolist())
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.03)


def open_model_of(settings):
    from newllm_lib.models import build_config, build_model

    return build_model(build_config("newllm", 5, 8, num_parameters=6000))


def sampling_of(settings) -> dict:
    return {
        "temperature": settings["temperature"], "top_p": settings["topP"], "repetition_penalty": settings["penalty"]
    }  # fmt: skip


def say(page, text: str) -> str:
    """What the page answers, the likeliest tokens."""
    for name, value in {"temperature": 0, "most": 12}.items():
        page.evaluate("([id, value]) => { document.getElementById(id).value = value }", [name, value])
    page.fill("#words", text)
    page.click("#say")
    page.wait_for_selector("#say:not([disabled])", timeout=30 * SECONDS)
    return page.locator(".turn.assistant").last.text_content()


SAID = ("Hello there", "How are you", "And then?")


def test_a_memory_goes_from_the_page_to_the_command_and_back(opened, chat_folder, tmp_path):
    expected = Chat(chat_folder, max_new_tokens=12, temperature=0)
    replies = ["".join(expected.reply(text)) for text in SAID]

    page = opened(chat_folder)
    assert [say(page, text) for text in SAID[:2]] == replies[:2]
    with page.expect_download() as download:
        page.click("#save")
    file = tmp_path / "memory.safetensors"
    download.value.save_as(file)
    chat = Chat(chat_folder, max_new_tokens=12, temperature=0)
    chat.load_memory(file)
    assert "".join(chat.reply(SAID[2])) == replies[2] == say(page, SAID[2])

    chat = Chat(chat_folder, max_new_tokens=12, temperature=0)
    [list(chat.reply(text)) for text in SAID[:2]]
    later = opened(chat_folder)
    later.set_input_files("#load", chat.save_memory(tmp_path / "other.safetensors", with_words=True))
    later.wait_for_selector(".turn.assistant")
    assert [turn.text_content() for turn in later.locator(".turn").all()] == [it["content"] for it in chat.messages]
    assert say(later, SAID[2]) == replies[2]


def test_a_file_that_is_no_memory_is_refused_and_nothing_is_lost(opened, chat_folder, tmp_path):
    page = opened(chat_folder)
    first = say(page, SAID[0])
    other = untrained_chat(tmp_path / "other", seed=3, tokenizer=open_model(chat_folder).tokenizer)
    chat = Chat(other, max_new_tokens=4, temperature=0)
    list(chat.reply("Hello"))
    (tmp_path / "noise").write_bytes(bytes(range(256)))
    files = {tmp_path / "noise": "no memory", chat.save_memory(tmp_path / "memory"): "of another model"}
    for file, sentence in files.items():
        page.set_input_files("#load", file)
        page.wait_for_selector(f"#status:has-text('{sentence}')")
    assert page.locator(".turn.assistant").last.text_content() == first
    assert say(page, SAID[1]) == say_all(chat_folder, SAID[:2])[-1]


def say_all(folder, texts) -> list[str]:
    chat = Chat(folder, max_new_tokens=12, temperature=0)
    return ["".join(chat.reply(text)) for text in texts]


def test_nothing_of_the_card_or_of_a_user_is_html_and_nothing_is_asked_of_others(opened, chat_folder):
    page = opened(chat_folder)
    say(page, HOSTILE)
    page.click("#about")
    assert HOSTILE in page.inner_text("#facts") and page.locator(".turn.user").last.text_content() == HOSTILE
    assert page.locator("img").count() == 0 and page.title() != "1"
    assert all(url.startswith(("file:", "blob:")) for url in page.asked) and page.said == []
    page.evaluate("() => fetch('https://example.org').catch(() => {})")
    assert any("Content Security Policy" in line for line in page.said)
    page_text = (chat_folder / "chat.html").read_text()
    assert not re.search(r"(src|href)=", page_text.split("<script")[0])


def test_a_pretrained_model_goes_on_with_the_text(opened, tmp_path):
    tokenizer = build_tokenizer("bpe", [make_text(80)], 400)
    folder = halved(untrained_chat(tmp_path / "model", template=None, tokenizer=tokenizer))
    page = opened(folder)
    assert say(page, "The river") == say_all(folder, ["The river"])[0]
    assert page.inner_text("#say") == "Go on"


@pytest.mark.parametrize(
    ("model_type", "tokenizer", "sentence"),
    [("lstm", "byte", "is a lstm; only a New-LLM"), ("newllm", "word", "another tokenizer than bpe or byte")],
)
def test_what_a_page_cannot_run_is_refused(tmp_path, model_type, tokenizer, sentence):
    built = build_tokenizer(tokenizer, [make_text(40)])
    folder = untrained_chat(tmp_path / "model", model_type, tokenizer=built)
    with pytest.raises(InputError, match=sentence):
        export_html(folder)
    assert open_model(folder).tokenizer.chat_template != ROLE_TEMPLATE or tokenizer == "byte"


def test_the_keyboard_alone_is_enough(opened, chat_folder):
    page = opened(chat_folder)
    page.evaluate("() => { document.getElementById('most').value = 4 }")
    page.keyboard.type("Hello")
    page.keyboard.press("Enter")
    page.wait_for_selector("#say:not([disabled])", timeout=30 * SECONDS)
    assert page.locator(".turn").count() == 2
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id || document.activeElement.tagName"))
    assert {
        "say",
        "reset",
        "settings",
        "about",
        "save",
        "load",
        "words-too",
        "transcript",
        "language",
        "log",
    } <= reached
    page.focus("#reset")
    page.keyboard.press("Space")
    page.wait_for_function("() => !document.querySelector('.turn')")


def test_it_runs_in_a_frame_of_a_notebook(browser, chat_folder, tmp_path):
    """Sandboxed, as *Take it with you* shows it."""
    frame = FRAME.format(name="page", page=html.escape(export_html(chat_folder).read_text()))
    (tmp_path / "notebook.html").write_text(f"<!doctype html><title>n</title>{frame}", encoding="utf-8")
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto((tmp_path / "notebook.html").as_uri())
    inside = page.frame_locator("iframe")
    inside.locator("#say:not([disabled])").wait_for(timeout=30 * SECONDS)
    inside.locator("#most").evaluate("(field) => { field.value = 4 }")
    inside.locator("#words").fill("Hello")
    inside.locator("#say").click()
    inside.locator("#say:not([disabled])").wait_for(timeout=30 * SECONDS)
    assert inside.locator(".turn.assistant").text_content()
    context.close()


def test_a_long_conversation_takes_no_more_memory(engine):
    """The state is of one size, and all else that 20,000 tokens leave is their numbers."""
    heap = "() => { gc(); return performance.memory.usedJSHeapSize }"
    read = "(count) => { for (let i = 0; i < count; i++) talk.readOne(i % 250, i % 100 === 0) }"
    engine.evaluate(read, 1000)
    before, state = engine.evaluate(heap), engine.evaluate("() => talk.state.length")
    engine.evaluate(read, 20_000)
    assert engine.evaluate("() => talk.state.length") == state
    assert engine.evaluate(heap) - before < 500_000


@pytest.mark.skipif(not DEMO_PAGE.is_file(), reason="bash scripts/demo.sh has left no page here")
def test_the_page_of_the_demo_answers(opened):
    page = opened(DEMO_PAGE)
    answers = [say(page, text) for text in SAID]
    assert all(answer.strip() for answer in answers) and page.said == []
    assert page.locator(".turn").count() == 6
