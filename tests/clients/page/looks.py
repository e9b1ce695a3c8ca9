"""What is refused, and what it looks like."""

from playwright.sync_api import expect

from browser import CHAT, SHOTS, anew, ask, faults, message


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
