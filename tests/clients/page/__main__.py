"""The chat page in headless Chromium.

Called by run.sh with the server's address and its key; screenshots go to the folder named next, and names behind it choose among the checks.
What a model should say here is put in the place of the server's answer, where it matters.
"""

import sys

from playwright.sync_api import sync_playwright

from answering import calls, hostile_markdown, markdown, thoughts
from browser import BASE, KEY, SHOTS, faults
from choosing import settings, several_models, the_model
from looks import refusals_and_looks
from talking import conversations, edit_and_retry, files, stop, storage_is_full

CHROMIUM = "/usr/bin/chromium"
# Some look at what those before them left.
CHECKS = [
    the_model,
    several_models,
    conversations,
    edit_and_retry,
    settings,
    stop,
    thoughts,
    calls,
    markdown,
    hostile_markdown,
    files,
    storage_is_full,
    refusals_and_looks,
]

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
    unknown = set(chosen) - {check.__name__ for check in CHECKS}
    assert not unknown, f"no check has the name {', '.join(sorted(unknown))}"
    for test in CHECKS:
        if chosen and test.__name__ not in chosen:
            continue
        try:
            test(page)
        except Exception:
            page.screenshot(path=SHOTS / "failed.png")
            raise
        print(f"ok page: {test.__name__.replace('_', ' ')}")
    browser.close()
