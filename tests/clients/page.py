"""The chat page in headless Chromium.

Called by run.sh with the server's address and its key; screenshots go to the folder named last. What a model should say here is put in the
place of the server's answer, where it matters.
"""

import json
import re
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

BASE, KEY, SHOTS = sys.argv[1], sys.argv[2], Path(sys.argv[3])
CHROMIUM = "/usr/bin/chromium"
CHAT = "**/v1/chat/completions"
SEA = "Write a haiku about the sea with the word forty-two"

faults = []


def message(page):
    return page.get_by_label("Message", exact=True)


def ask(page, text):
    message(page).fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def ask_and_wait(page, text, answers):
    ask(page, text)
    expect(page.locator(".turn.assistant .cost")).to_have_count(answers)


def anew(page):
    page.get_by_role("button", name="New conversation").first.click()


def said(page):
    return page.locator(".turn.assistant .said")


def answers(*deltas, reason="stop", usage={"prompt_tokens": 90, "completion_tokens": 10}):
    """Puts an answer in the place of the server's."""
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    chunks.append({"choices": [], "usage": usage})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return lambda route: route.fulfill(status=200, content_type="text/event-stream; charset=utf-8", body=body)


def sent(page, act):
    """The body of the request that `act` makes."""
    with page.expect_request(CHAT) as request:
        act()
    return request.value.post_data_json


def the_model(page):
    """While the model is being loaded it looks again by itself, and says which one it is: not every model writes haiku."""
    expect(page.locator("#model")).to_contain_text("haiku")
    expect(page).to_have_title("haiku · qernel")
    expect(page.locator("#empty")).to_contain_text("haiku")
    loading = {"error": {"message": "the model is being loaded; try again", "type": "server_error"}}
    other = {"object": "list", "data": [{"id": "other-1b", "device": "CPU", "max_model_len": 4096}]}
    is_loaded = False

    def models(route):
        route.fulfill(status=200 if is_loaded else 503, json=other if is_loaded else loading)

    def too_early(route):
        route.fulfill(status=503, json=loading)

    page.route("**/v1/models", models)
    page.route(CHAT, too_early)
    page.reload()
    expect(page.locator("#model")).to_contain_text("being loaded")
    ask(page, "too early")
    expect(page.locator("#status.wrong")).to_contain_text("being loaded")
    page.screenshot(path=SHOTS / "loading.png")
    is_loaded = True
    expect(page.locator("#model")).to_have_text("other-1b · CPU · 4096 tokens")
    expect(page).to_have_title("other-1b · qernel")
    expect(page.locator("#status")).to_have_text("")
    expect(message(page)).to_have_value("too early")
    expect(page.locator("#conversations li")).to_have_count(0)
    message(page).fill("")
    expect(message(page)).to_have_attribute("placeholder", "Message to other-1b")
    page.screenshot(path=SHOTS / "other.png")
    # The server has been started anew with another model.
    page.unroute("**/v1/models", models)
    page.unroute(CHAT, too_early)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#model")).to_contain_text("haiku")
    faults.clear()  # What the browser said of the 503s.


def several_models(page):
    """Of several models one is chosen and asked, and chosen still when the page is loaded anew; what is not loaded says so."""
    loaded = {"id": "one", "device": "CPU", "max_model_len": 4096, "status": {"value": "loaded"}}
    unloaded = {"id": "two", "status": {"value": "unloaded"}}
    broken = {"id": "three", "status": {"value": "unloaded", "failed": True, "reason": "not a usable GGUF file"}}
    models = lambda route: route.fulfill(status=200, json={"object": "list", "data": [unloaded, loaded, broken]})
    expect(page.get_by_label("Model", exact=True)).to_be_hidden()
    page.route("**/v1/models", models)
    page.reload()
    choice = page.get_by_label("Model", exact=True)
    expect(choice).to_have_value("one")
    expect(page.locator("#model")).to_have_text("CPU · 4096 tokens")
    choice.select_option("three")
    expect(page.locator("#model")).to_have_text("not a usable GGUF file")
    choice.select_option("two")
    expect(page.locator("#model")).to_contain_text("the first message loads it")
    expect(page).to_have_title("two · qernel")
    page.screenshot(path=SHOTS / "models.png")
    page.reload()
    expect(choice).to_have_value("two")
    page.route(CHAT, answers({"content": "Two's answer."}), times=1)
    body = sent(page, lambda: ask(page, "Which one are you?"))
    assert body["model"] == "two", body
    expect(said(page)).to_have_text("Two's answer.")
    page.unroute("**/v1/models", models)
    page.evaluate("localStorage.clear()")
    page.reload()
    expect(page.locator("#model")).to_contain_text("haiku")
    expect(choice).to_be_hidden()


def conversations(page):
    """A whole answer; the same again; and a second turn, which sends the first along."""
    page.get_by_text("Settings").click()
    page.get_by_label("Seed").fill("1")
    page.get_by_text("Settings").click()
    ask_and_wait(page, SEA, 1)
    cost = re.compile(r"\d+ tokens, [\d.]+ tokens/s, context \d+ of 512 \(\d+ %\)")
    expect(page.locator(".turn.assistant .cost")).to_contain_text(cost)
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    first = said(page).inner_text()
    assert "forty-two" in first and len(first.splitlines()) == 3, first
    page.screenshot(path=SHOTS / "answer.png")
    anew(page)
    ask_and_wait(page, SEA, 1)
    expect(said(page)).to_have_text(first)
    body = sent(page, lambda: ask(page, "Write a haiku about winter with the word seven"))
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"], body
    expect(page.locator(".turn.assistant .cost")).to_have_count(2)

    # Both are kept when the page is loaded anew, the newest first, and can be opened, named and deleted.
    page.reload()
    items = page.locator("#conversations li")
    expect(items).to_have_count(2)
    expect(page.locator("#empty")).to_be_visible()
    items.nth(1).locator(".open").click()
    expect(said(page)).to_have_text([first])
    expect(items.nth(1).locator(".open")).to_have_attribute("aria-current", "true")
    items.nth(0).locator(".open").click()
    expect(said(page)).to_have_count(2)
    assert page.get_by_label("Seed").input_value() == "1"
    items.nth(1).get_by_role("button", name="Rename").click()
    page.get_by_label("Name of the conversation").fill("The sea <b>")
    page.get_by_label("Name of the conversation").press("Enter")
    expect(items.nth(1).locator(".open")).to_have_text("The sea <b>")
    page.screenshot(path=SHOTS / "conversations.png")
    page.once("dialog", lambda dialog: dialog.dismiss())
    items.nth(1).get_by_role("button", name="Delete").click()
    expect(items).to_have_count(2)
    page.once("dialog", lambda dialog: dialog.accept())
    items.nth(0).get_by_role("button", name="Delete").click()
    expect(items).to_have_count(1)
    expect(page.locator("#empty")).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    items.nth(0).get_by_role("button", name="Delete").click()
    expect(items).to_have_count(0)
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes('conversation')).length") == 0


def edit_and_retry(page):
    """An earlier message is written anew, and what followed it is gone; an answer is made anew."""
    anew(page)
    for i, text in enumerate(["one", "two", "three"]):
        page.route(CHAT, answers({"content": f"to {text}"}), times=1)
        ask_and_wait(page, text, i + 1)
    page.get_by_label("Edit the message").nth(1).click()
    editor = page.get_by_label("Edited message")
    expect(editor).to_have_value("two")
    editor.press("Escape")
    expect(editor).to_have_count(0)
    page.get_by_label("Edit the message").nth(1).click()
    editor.fill("two again")
    page.screenshot(path=SHOTS / "edit.png")
    page.route(CHAT, answers({"content": "anew"}), times=1)
    body = sent(page, lambda: editor.press("Enter"))
    assert [message["content"] for message in body["messages"]] == ["one", "to one", "two again"], body
    expect(said(page)).to_have_text(["to one", "anew"])
    page.route(CHAT, answers({"content": "and anew"}), times=1)
    body = sent(page, lambda: page.get_by_label("Answer anew").nth(1).click())
    assert [message["content"] for message in body["messages"]] == ["one", "to one", "two again"], body
    expect(said(page)).to_have_text(["to one", "and anew"])
    # The last message, by keyboard alone.
    message(page).press("ArrowUp")
    expect(page.get_by_label("Edited message")).to_be_focused()
    page.get_by_label("Edited message").press("Escape")
    # What is refused leaves the conversation as it was.
    page.route(CHAT, lambda route: route.fulfill(status=400, json={"error": {"message": "not so"}}), times=1)
    page.get_by_label("Answer anew").nth(1).click()
    expect(page.locator("#status.wrong")).to_have_text("not so")
    expect(said(page)).to_have_text(["to one", "and anew"])
    faults.clear()


def settings(page):
    """Controls reach the server; one that is wrong is shown and nothing is sent."""
    anew(page)
    page.get_by_text("Settings").click()
    page.get_by_label("Most tokens", exact=True).fill("3")
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_label("Thinking").select_option("off")
    page.get_by_text("Further samplers and tools").click()
    page.get_by_label("Typical-p").fill("0.9")
    page.screenshot(path=SHOTS / "settings.png")
    body = sent(page, lambda: ask(page, "Write a haiku about a cat with the word nine"))
    found = [body[name] for name in ["max_tokens", "temperature", "enable_thinking", "typical_p"]]
    assert found == [3, 0.7, False, 0.9] and body["messages"][0] == {"role": "system", "content": "Be brief."}, body
    expect(page.locator(".cost")).to_contain_text("cut off by the limit")
    page.get_by_label("Top-p", exact=True).fill("7")
    ask(page, "again")
    expect(page.locator(".turn.user")).to_have_count(1)
    page.get_by_label("Top-p", exact=True).fill("0.95")
    page.get_by_label("Tools").fill("[{]")
    ask(page, "again")
    expect(page.locator(".turn.user")).to_have_count(1)
    for label in ["Tools", "Typical-p", "System message"]:
        page.get_by_label(label).fill("")
    page.get_by_label("Most tokens", exact=True).fill("")
    page.get_by_label("Thinking").select_option("")
    message(page).fill("")
    page.get_by_text("Settings").click()


def stop(page):
    """Stop ends a stream; the page goes on working. The answer is made endless on its way to the server."""
    for how in ["document.getElementById('stop').click()", "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))"]:
        anew(page)
        endless = lambda route: route.continue_(post_data={**route.request.post_data_json, "ignore_eos": True})
        page.route(CHAT, endless, times=1)
        # The small model fills its context within half a second: the click comes from within the page, with the first words.
        page.evaluate(
            "() => { const observer = new MutationObserver(() => {"
            " if (document.querySelector('.turn.unfinished .said')?.textContent.length > 20) { observer.disconnect(); " + how + "; } });"
            " observer.observe(document.body, {subtree: true, childList: true, characterData: true}); }"
        )
        ask(page, "Write a haiku about the moon with the word two")
        expect(page.locator(".turn.assistant .cost")).to_contain_text("stopped")
        expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def thoughts(page):
    """What a model thinks stands in a fold above what it says, and goes back with the next question."""
    anew(page)
    deltas = [{"reasoning_content": "Five and "}, {"reasoning_content": "seven."}, {"content": "Twelve"}, {"content": "."}]
    page.route(CHAT, answers(*deltas), times=1)
    ask(page, "How many?")
    expect(said(page)).to_have_text("Twelve.")
    fold = page.locator(".turn.assistant details")
    expect(fold).to_have_text("ThinkingFive and seven.")
    assert fold.get_attribute("open") is None
    fold.get_by_text("Thinking").click()
    expect(fold.locator("p")).to_be_visible()
    page.screenshot(path=SHOTS / "thought.png")
    page.route(CHAT, answers({"content": "Yes."}), times=1)
    body = sent(page, lambda: ask(page, "Sure?"))
    expected = {"role": "assistant", "content": "Twelve.", "reasoning_content": "Five and seven."}
    assert body["messages"][-2] == expected, body
    expect(said(page)).to_have_count(2)


def calls(page):
    """Calls are shown, and what the tools gave is the user's to say."""
    anew(page)
    page.get_by_text("Settings").click()
    if not page.get_by_label("Tools").is_visible():
        page.get_by_text("Further samplers and tools").click()
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    page.get_by_label("Tools").fill(json.dumps(tools))
    page.get_by_text("Settings").click()
    piece = lambda index, **more: {"tool_calls": [{"index": index, **more}]}
    deltas = [
        piece(0, id="c1", type="function", function={"name": "weather", "arguments": ""}),
        piece(0, function={"arguments": '{"city": '}),
        piece(0, function={"arguments": '"Oslo"}'}),
        piece(1, id="c2", type="function", function={"name": "weather", "arguments": '{"city": "Bergen"}'}),
    ]
    page.route(CHAT, answers(*deltas, reason="tool_calls"), times=1)
    body = sent(page, lambda: ask(page, "Where is it warmer?"))
    assert body["tools"] == tools, body
    expect(page.locator(".call")).to_have_text([re.compile('Call of weather.*"Oslo"', re.S), re.compile('"Bergen"')])
    page.get_by_label("Result of weather").nth(0).fill("4 degrees")
    page.get_by_label("Result of weather").nth(1).fill("9 degrees")
    page.screenshot(path=SHOTS / "calls.png")
    page.route(CHAT, answers({"content": "Bergen."}), times=1)
    body = sent(page, lambda: page.get_by_role("button", name="Send results").click())
    call = lambda id, city: {"id": id, "type": "function", "function": {"name": "weather", "arguments": f'{{"city": "{city}"}}'}}
    assert body["messages"][1:] == [
        {"role": "assistant", "content": "", "tool_calls": [call("c1", "Oslo"), call("c2", "Bergen")]},
        {"role": "tool", "content": "4 degrees", "tool_call_id": "c1"},
        {"role": "tool", "content": "9 degrees", "tool_call_id": "c2"},
    ], body
    expect(said(page).last).to_have_text("Bergen.")
    page.get_by_label("Tools").evaluate("field => { field.value = ''; field.dispatchEvent(new Event('input', {bubbles: true})); }")


MARKDOWN = """# The sea

It is *deep*, **wide** and ~~dry~~ `blue`, see [here](https://example.org/a_(b)) or https://example.org/x_y_z.
A second line, snake_case_name, 2 * 3 * 4, \\*starred\\* and \\(a_1 * b\\).

1. First
   - inner *one*
   - inner two

     with a paragraph
2. Second
5) Other

> Quoted
> > twice

| Tide | Height |
|:-----|-------:|
| high | `3 | x` \\| 4 m |
| low  |

---

```python
def tide(x: int) -> str:
    return f"<b>{x}</b>"  # *not emphasised*
```

<script>faults()</script><img src=x onerror="faults()"> [bad](javascript:faults()) ![picture](https://example.org/p.png)
"""


def markdown(page):
    """Markdown is drawn, and nothing that a model says becomes HTML or a request."""
    anew(page)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    pieces = [{"content": MARKDOWN[i : i + 7]} for i in range(0, len(MARKDOWN), 7)]
    page.route(CHAT, answers(*pieces), times=1)
    ask(page, "Tell me of <i>the sea</i>.")
    expect(page.locator(".turn.user .plain")).to_have_text("Tell me of <i>the sea</i>.")
    answer = said(page)
    expect(answer.locator("h3")).to_have_text("The sea")
    expect(answer.locator("em").first).to_have_text("deep")
    expect(answer.locator("strong").first).to_have_text("wide")
    expect(answer.locator("del")).to_have_text("dry")
    expect(answer.locator("p > code").first).to_have_text("blue")
    hrefs = answer.locator("a").evaluate_all("links => links.map((link) => link.getAttribute('href'))")
    assert hrefs == ["https://example.org/a_(b)", "https://example.org/x_y_z", "https://example.org/p.png"], hrefs
    expect(answer.locator("a").first).to_have_attribute("rel", "noopener noreferrer")
    expect(answer).to_contain_text("snake_case_name, 2 * 3 * 4, *starred* and \\(a_1 * b\\)")
    expect(answer.locator("ol")).to_have_count(2)
    expect(answer.locator("ol > li > ul > li")).to_have_count(2)
    expect(answer.locator("ol > li > ul > li > p")).to_have_text(["inner one", "inner two", "with a paragraph"])
    expect(answer.locator("ol").nth(1)).to_have_attribute("start", "5")
    expect(answer.locator("blockquote blockquote")).to_have_text("twice")
    expect(answer.locator("td").nth(1)).to_have_text("`3")
    expect(answer.locator("tbody tr")).to_have_count(2)
    expect(answer.locator("hr")).to_have_count(1)
    expect(answer.locator("pre")).to_have_text('def tide(x: int) -> str:\n    return f"<b>{x}</b>"  # *not emphasised*')
    expect(answer.locator(".code-head span")).to_have_text("python")
    expect(answer.locator("script, img, iframe")).to_have_count(0)
    expect(answer).to_contain_text('<script>faults()</script><img src=x onerror="faults()"> [bad](javascript:faults())')
    assert all(url.startswith((BASE, "blob:")) for url in requests), requests
    in_pieces = answer.inner_html()
    answer.get_by_label("Copy the code").click()
    expect(answer.get_by_label("Copy the code")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == 'def tide(x: int) -> str:\n    return f"<b>{x}</b>"  # *not emphasised*', copied
    page.screenshot(path=SHOTS / "markdown.png")
    # Drawn in pieces it is what it is as a whole.
    page.reload()
    page.locator("#conversations .open").first.click()
    assert said(page).inner_html() == in_pieces


def hostile_markdown(page):
    """Texts that are made to take long are drawn at once."""
    texts = ["[" * 50_000, "*a " * 30_000, "**a*" * 20_000, "> " * 20_000 + "x", "`" * 3 + "a`" * 30_000, "- " * 20_000, "[a](" * 20_000,
             "(" * 50_000, "|" * 50_000 + "\n" + "|-" * 25_000, "~~" * 30_000, "\\(" * 30_000, "![" * 30_000, "# " * 30_000, "_a" * 30_000,
             "\n".join(" " * (i % 40) + "- x" for i in range(5000)), "http://" * 10_000, "<http://" * 10_000, "1. " * 20_000]
    seconds = page.evaluate(
        """async (texts) => {
            const { render } = await import("./page/markdown.js");
            return texts.map((text) => {
                const start = performance.now();
                render(document.createElement("div"), text);
                return (performance.now() - start) / 1000;
            });
        }""",
        texts,
    )
    # A tenth of a second is usual; what is not linear takes minutes.
    assert max(seconds) < 10, list(zip([text[:8] for text in texts], seconds))


def files(page):
    """A file that is dropped is added as text; a conversation goes out as JSON and comes back."""
    anew(page)
    drop = """([name, text]) => {
        const data = new DataTransfer();
        data.items.add(new File([text], name, { type: "text/plain" }));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }"""
    message(page).fill("See this:")
    page.evaluate(drop, ["notes.md", "a\n```\nb\n```\n"])
    expect(message(page)).to_have_value("See this:\n\nnotes.md:\n````\na\n```\nb\n```\n````\n")
    page.evaluate(drop, ["data.bin", "a\0b"])
    expect(page.locator("#status.wrong")).to_contain_text("data.bin: expected a text")
    page.route(CHAT, answers({"reasoning_content": "Hm."}, {"content": "Seen."}), times=1)
    page.get_by_role("button", name="Send", exact=True).click()
    expect(said(page)).to_have_text("Seen.")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert download.value.suggested_filename == "See this.json", download.value.suggested_filename
    path = SHOTS / "conversation.json"
    download.value.save_as(path)
    exported = json.loads(path.read_text())
    assert [message["role"] for message in exported["messages"]] == ["user", "assistant"], exported
    assert exported["messages"][1] == {"role": "assistant", "content": "Seen.", "reasoning_content": "Hm."}, exported
    count = page.locator("#conversations li").count()
    page.locator("#import-file").set_input_files(path)
    expect(page.locator("#conversations li")).to_have_count(count + 1)
    expect(said(page)).to_have_text("Seen.")
    # What others wrote: a list of messages, the system's too; and what is none.
    plain = json.dumps([{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}])
    give = lambda text: page.locator("#import-file").set_input_files({"name": "x.json", "mimeType": "application/json", "buffer": text.encode()})
    give(plain)
    expect(page.locator(".turn.user .plain")).to_have_text("Hi")
    assert page.get_by_label("System message").input_value() == "Be kind."
    for text, says in [("{", "as JSON"), ("{}", "list of `messages`"), ('[{"role": "robot"}]', "message 1: expected the role"), ("[7]", "message 1")]:
        give(text)
        expect(page.locator("#status.wrong")).to_contain_text(says)
    expect(page.locator(".turn.user .plain")).to_have_text("Hi")


def storage_is_full(page):
    """Where the browser keeps nothing the page says so and goes on."""
    anew(page)
    page.evaluate("void (Storage.prototype.setItem = () => { throw new Error('full'); })")
    page.route(CHAT, answers({"content": "Still here."}), times=1)
    ask(page, "Are you there?")
    expect(said(page)).to_have_text("Still here.")
    expect(page.locator("#status.wrong")).to_contain_text("export or delete some")
    anew(page)
    page.locator("#conversations .open", has_text="Are you there?").click()
    expect(said(page)).to_have_text("Still here.")
    page.reload()
    expect(page.locator("#conversations .open", has_text="Are you there?")).to_have_count(0)


def refusals_and_looks(page):
    """What the server refuses is said, and the question can be sent again; both themes; a telephone's width; the keyboard."""
    assert not faults, faults
    anew(page)
    page.route(CHAT, lambda route: route.continue_(post_data={"messages": [], "foo": 1}), times=1)
    ask(page, "a question")
    expect(page.locator("#status.wrong")).to_contain_text("foo")
    expect(message(page)).to_have_value("a question")
    page.screenshot(path=SHOTS / "refused.png")
    message(page).fill("")
    page.locator("#conversations .open", has_text="Tell me of").click()
    paper = "getComputedStyle(document.body).backgroundColor"
    page.get_by_label("Colours").select_option("dark")
    dark = page.evaluate(paper)
    page.screenshot(path=SHOTS / "dark.png")
    page.get_by_label("Colours").select_option("light")
    assert page.evaluate(paper) != dark
    page.reload()
    expect(page.get_by_label("Colours")).to_have_value("light")
    page.get_by_label("Colours").select_option("")
    page.set_viewport_size({"width": 380, "height": 700})
    page.keyboard.press("Shift+Tab")
    menu = page.locator("#menu")
    expect(page.locator("#side")).to_be_hidden()
    menu.focus()
    page.keyboard.press("Enter")
    expect(menu).to_have_attribute("aria-expanded", "true")
    page.screenshot(path=SHOTS / "menu.png")
    page.keyboard.press("Escape")
    expect(page.locator("#side")).to_be_hidden()
    expect(menu).to_be_focused()
    menu.click()
    page.locator("#conversations .open", has_text="Tell me of").click()
    expect(page.locator("#side")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.screenshot(path=SHOTS / "narrow.png")
    # Whatever can be pressed has a name.
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, textarea, select, a")]
            .filter((field) => !(field.ariaLabel || field.labels?.length || field.textContent.trim())).map((field) => field.outerHTML)"""
    )
    assert not nameless, nameless


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    # What a browser sends after it has asked for the password.
    context = browser.new_context(
        http_credentials={"username": "me", "password": KEY},
        viewport={"width": 1100, "height": 800},
        permissions=["clipboard-read", "clipboard-write"],
    )
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(BASE)
    chosen = sys.argv[4:]
    for test in [the_model, several_models, conversations, edit_and_retry, settings, stop, thoughts, calls, markdown, hostile_markdown, files,
                 storage_is_full, refusals_and_looks]:
        if chosen and test.__name__ not in chosen:
            continue
        try:
            test(page)
        except Exception:
            page.screenshot(path=SHOTS / "failed.png")
            raise
        print(f"ok page: {test.__name__.replace('_', ' ')}")
    browser.close()
