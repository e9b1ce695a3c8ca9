"""Conversations: kept, edited, stopped; as files; where nothing can be kept."""

import json
import re

from playwright.sync_api import expect

from browser import CHAT, SHOTS, anew, answers, ask, ask_and_wait, faults, message, said, sent

SEA = "Write a haiku about the sea with the word forty-two"


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
