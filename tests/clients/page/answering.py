"""What models say: thoughts, calls of tools, Markdown."""

import json
import re

from playwright.sync_api import expect

from browser import BASE, CHAT, SHOTS, anew, answers, ask, said, sent


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
