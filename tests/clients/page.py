"""The chat page in headless Chromium.

Called by run.sh with the server's address and its key; screenshots go to the folder named last.
"""

import json
import re
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

BASE, KEY, SHOTS = sys.argv[1], sys.argv[2], Path(sys.argv[3])
CHROMIUM = "/usr/bin/chromium"


def ask(page, text):
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    # What a browser sends after it has asked for the password.
    context = browser.new_context(
        http_credentials={"username": "me", "password": KEY}, viewport={"width": 900, "height": 800}
    )
    page = context.new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(BASE)
    expect(page.locator("#model")).to_contain_text("haiku")
    expect(page).to_have_title("haiku · qernel")
    expect(page.locator("#empty")).to_contain_text("haiku")

    # While the model is being loaded it looks again by itself, and says which one it is: not every model writes haiku.
    loading = {"error": {"message": "the model is being loaded; try again", "type": "server_error"}}
    other = {"object": "list", "data": [{"id": "other-1b", "device": "CPU", "max_model_len": 4096}]}
    is_loaded = False

    def models(route):
        route.fulfill(status=200 if is_loaded else 503, json=other if is_loaded else loading)

    def too_early(route):
        route.fulfill(status=503, json=loading)

    page.route("**/v1/models", models)
    page.route("**/v1/chat/completions", too_early)
    page.reload()
    expect(page.locator("#model")).to_contain_text("being loaded")
    ask(page, "too early")
    expect(page.locator("#status.wrong")).to_contain_text("being loaded")
    page.screenshot(path=SHOTS / "loading.png")
    is_loaded = True
    expect(page.locator("#model")).to_have_text("other-1b · CPU · 4096 tokens")
    expect(page).to_have_title("other-1b · qernel")
    expect(page.locator("#status")).to_have_text("")
    expect(page.get_by_label("Message", exact=True)).to_have_value("too early")
    page.get_by_label("Message", exact=True).fill("")
    expect(page.get_by_label("Message", exact=True)).to_have_attribute("placeholder", "Message to other-1b")
    page.screenshot(path=SHOTS / "other.png")
    # The server has been started anew with another model.
    page.unroute("**/v1/models", models)
    page.unroute("**/v1/chat/completions", too_early)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#model")).to_contain_text("haiku")
    faults.clear()  # What the browser said of the 503s.

    # A whole answer, with the rate at its end.
    page.get_by_text("Sampling").click()
    page.get_by_label("Seed").fill("1")
    ask(page, "Write a haiku about the sea with the word forty-two")
    expect(page.locator("#status")).to_contain_text(re.compile(r"\d+ tokens, [\d.]+ tokens/s"))
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    first = page.locator(".turn.assistant").inner_text()
    assert "forty-two" in first and len(first.splitlines()) == 3, first
    page.screenshot(path=SHOTS / "answer.png")

    # The same seed in a new conversation says the same; greedy sampling something else.
    page.get_by_role("button", name="New conversation").click()
    ask(page, "Write a haiku about the sea with the word forty-two")
    expect(page.locator(".turn.assistant")).to_have_text(first)
    expect(page.locator("#status")).to_contain_text("tokens/s")

    # A second turn sends the first along.
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Write a haiku about winter with the word seven")
    roles = [message["role"] for message in sent.value.post_data_json["messages"]]
    assert roles == ["user", "assistant", "user"], roles
    expect(page.locator(".turn.assistant")).to_have_count(2)
    expect(page.get_by_role("button", name="Send")).to_be_visible()

    # Sampling controls reach the server; one that is wrong is shown and nothing is sent.
    page.get_by_role("button", name="New conversation").click()
    page.get_by_label("Most tokens").fill("3")
    page.get_by_label("System message").fill("Be brief.")
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Write a haiku about a cat with the word nine")
    body = sent.value.post_data_json
    assert (body["max_tokens"], body["temperature"], body["messages"][0]["role"]) == (3, 0.7, "system"), body
    expect(page.locator("#status")).to_contain_text("cut off by the limit")
    page.get_by_label("Top-p").fill("7")
    ask(page, "again")
    expect(page.locator(".turn.user")).to_have_count(1)
    page.get_by_label("Top-p").fill("0.95")
    page.get_by_label("Most tokens").fill("")

    # Stop ends a stream; the page goes on working. The answer is made endless on its way to the server.
    endless = lambda route: route.continue_(post_data={**route.request.post_data_json, "ignore_eos": True})
    page.route("**/v1/chat/completions", endless)
    # The small model fills its context within half a second: the click comes from within the page, with the first words.
    page.evaluate(
        """() => {
            const observer = new MutationObserver(() => {
                const answer = document.querySelectorAll(".turn.assistant")[1];
                if (answer?.textContent.length > 20) {
                    observer.disconnect();
                    document.getElementById("stop").click();
                }
            });
            observer.observe(document.body, {subtree: true, childList: true, characterData: true});
        }"""
    )
    ask(page, "Write a haiku about the moon with the word two")
    expect(page.locator("#status")).to_have_text("stopped")
    page.unroute("**/v1/chat/completions", endless)

    # What a model thinks stands in a fold above what it says, and goes back with the next question.
    def thinks(route):
        deltas = [{"reasoning_content": "Five and "}, {"reasoning_content": "seven."}, {"content": "Twelve"}, {"content": "."}]
        chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        chunks.append({"choices": [], "usage": {"completion_tokens": 4}})
        body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        route.fulfill(status=200, content_type="text/event-stream; charset=utf-8", body=body)

    page.get_by_role("button", name="New conversation").click()
    page.route("**/v1/chat/completions", thinks)
    ask(page, "How many?")
    expect(page.locator(".turn.assistant .said")).to_have_text("Twelve.")
    fold = page.locator(".turn.assistant details")
    expect(fold).to_have_text("ThinkingFive and seven.")
    assert fold.get_attribute("open") is None
    page.get_by_text("Thinking").click()
    expect(fold.locator("p")).to_be_visible()
    page.screenshot(path=SHOTS / "thought.png")
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Sure?")
    answer = sent.value.post_data_json["messages"][-2]
    assert answer == {"role": "assistant", "content": "Twelve.", "reasoning_content": "Five and seven."}, answer
    expect(page.locator(".turn.assistant .said")).to_have_count(2)
    page.unroute("**/v1/chat/completions", thinks)

    # What the server refuses is said, and the question can be sent again.
    assert not faults, faults
    page.get_by_label("Top-k").fill("40")
    page.route("**/v1/chat/completions", lambda route: route.continue_(post_data={"messages": [], "foo": 1}))
    ask(page, "a question")
    expect(page.locator("#status.wrong")).to_contain_text("foo")
    expect(page.get_by_label("Message", exact=True)).to_have_value("a question")
    page.screenshot(path=SHOTS / "refused.png")
    page.set_viewport_size({"width": 380, "height": 700})
    page.screenshot(path=SHOTS / "narrow.png")
    browser.close()
print("ok page")
