"""What the checks of the page share: where it is, what a person does on it, and answers in the place of the server's."""

import json
import sys
from pathlib import Path

from playwright.sync_api import expect

BASE, KEY, SHOTS = sys.argv[1], sys.argv[2], Path(sys.argv[3])
CHAT = "**/v1/chat/completions"

# What the browser complains of.
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
