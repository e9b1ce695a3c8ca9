"""Which model answers, and how."""

from playwright.sync_api import expect

from browser import CHAT, SHOTS, anew, answers, ask, faults, message, said, sent


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
