"""The page of a New-LLM (`newllm export RUN --format html`) in headless Chromium without a network: the time from a
click to the first token and tokens a second, medians, and what 20,000 tokens leave in the page's memory.

    python benchmarks/page.py RUN [--chromium /usr/bin/chromium]
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from newllm_lib.export.html import export_html

FLAGS = ("--enable-precise-memory-info", "--js-flags=--expose-gc", "--no-sandbox")
# Milliseconds from a click to the first of the answer, and to its end.
ANSWER = """() => new Promise((done) => {
    const get = (id) => document.getElementById(id), started = performance.now();
    let first = null;
    new MutationObserver(() => {
        if (document.querySelector(".turn.assistant:last-child")?.textContent) first ??= performance.now() - started;
    }).observe(get("log"), { childList: true, subtree: true, characterData: true });
    new MutationObserver(() => get("say").disabled || done([first, performance.now() - started]))
        .observe(get("say"), { attributes: true });
    get("words").value = "Hello! How are you today?";
    get("say").click();
})"""
OPEN = """() => {
    const get = (id) => document.getElementById(id).textContent;
    (0, eval)(get("worker"));
    window.talk = new newllm.Talk(JSON.parse(get("model")), get("weights"));
}"""
# Milliseconds of `count` tokens, each with its logits; and what the page holds.
READ = """(count) => {
    const started = performance.now();
    for (let i = 0; i < count; i++) talk.readOne(i % 250, true);
    return performance.now() - started;
}"""
HEAP = "() => { gc(); return performance.memory.usedJSHeapSize }"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a New-LLM")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = export_html(options.run, Path(folder) / "chat.html")
        browser = playwright.chromium.launch(executable_path=options.chromium, args=list(FLAGS))
        context = browser.new_context(offline=True, bypass_csp=True)
        page = context.new_page()
        page.goto(page_file.as_uri())
        page.wait_for_selector("#say:not([disabled])")
        page.evaluate("() => { document.getElementById('temperature').value = 0.8 }")
        firsts, speeds = [], []
        for _ in range(7):
            first, _ = page.evaluate(ANSWER)
            firsts += [] if first is None else [first]  # an answer may be empty
            page.click("#reset")
        page.evaluate(OPEN)
        page.evaluate(READ, 200)
        before = page.evaluate(HEAP)
        for _ in range(20):
            speeds.append(1e6 / page.evaluate(READ, 1000))
        left = page.evaluate(HEAP) - before
        print(f"page {page_file.stat().st_size / 1e6:.1f} MB, {page.inner_text('#remembers')}")
        print(
            f"first token after {statistics.median(firsts):.0f} ms, at most {max(firsts):.0f}, of {len(firsts)} clicks"
        )
        print(f"{statistics.median(speeds):.0f} tokens/s; 20,000 tokens leave {left / 1e3:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
