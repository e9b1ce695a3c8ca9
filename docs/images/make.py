#!/usr/bin/env python3
"""Draws README's pictures anew: speed.svg from speed.csv, chat.png and kernel.png by headless Chromium.

    cargo build --release
    docs/images/make.py [--qernel target/release/qernel] [--chromium chromium] [--only speed|chat|kernel|readme]

`readme` is README itself as a page, docs/images/readme.png, to look at and not to keep; it needs Python's package markdown.
"""
import argparse
import base64
import csv
import html
import json
import os
import pathlib
import re
import subprocess
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class Browser:
    """Headless Chromium, spoken to over two pipes (DevTools protocol, messages end with a zero byte)."""

    def __init__(self, program):
        self.home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self.to = os.pipe()
        self.of, from_browser = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command = [program, *flags, "--remote-debugging-pipe", f"--user-data-dir={self.home.name}", "about:blank"]
        # The browser reads from 3 and writes to 4, wherever our ends are.
        script = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        pipes = (to_browser, from_browser)
        self.process = subprocess.Popen(["bash", "-c", script, "bash", *command], pass_fds=pipes, stderr=subprocess.DEVNULL)
        for pipe in pipes:
            os.close(pipe)
        self.rest, self.count, self.session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                read = os.read(self.of, 1 << 20)
                if not read:
                    raise SystemExit("the browser has ended")
                self.rest += read
            text, self.rest = self.rest.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def evaluate(self, script):
        return self.call("Runtime.evaluate", expression=script, awaitPromise=True)["result"].get("value")

    def wait_for(self, script, seconds=60):
        end = time.monotonic() + seconds
        while not self.evaluate(script):
            if time.monotonic() > end:
                raise SystemExit(f"waited {seconds} s for {script}")
            time.sleep(0.1)

    def open(self, url, width, height):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1.5, mobile=False)
        self.call("Page.navigate", url=url)
        time.sleep(0.3)
        self.wait_for("document.readyState == 'complete'")

    def save(self, name, whole_page=False):
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=whole_page)
        (HERE / name).write_bytes(base64.b64decode(picture["data"]))
        print(f"docs/images/{name}: {(HERE / name).stat().st_size >> 10} KiB")

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.home.cleanup()


def wait_until_ready(url, seconds=60):
    """503, and before it no connection, while the model loads."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise SystemExit(f"{url} is not ready after {seconds} s")
            time.sleep(0.1)


def chat(browser, args):
    """A conversation with the embedded model on the server's own page."""
    port = "8091"
    command = [args.qernel, "serve", "--port", port, "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name != "QERNEL_MODEL"}
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/health")
        browser.open(f"http://127.0.0.1:{port}/", 960, 640)
        browser.evaluate("document.querySelector('#seed').value = 1")
        for question in ["Write a haiku about the sea with the word forty-two", "Write a haiku about the moon with the word seven"]:
            browser.evaluate(f"document.querySelector('#message').value = {json.dumps(question)}")
            browser.evaluate("document.querySelector('#send').click()")
            time.sleep(0.3)
            browser.wait_for("document.querySelector('#stop').hidden")
        browser.evaluate("document.activeElement.blur()")
        browser.save("chat.png")
    finally:
        server.terminate()
        server.wait()


def kernel(browser, args):
    """A stored report of the laboratory: matrix products on an H200."""
    browser.open((ROOT / "docs/lab-h200/matmul.html").as_uri(), 1000, 640)
    browser.evaluate("document.querySelector('h2').scrollIntoView()")
    browser.save("kernel.png")


def readme(browser, args):
    """README as a page."""
    import markdown

    text = (ROOT / "README.md").read_text()
    body = markdown.markdown(text, extensions=["tables", "fenced_code"])
    style = """body { font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
        table { border-collapse: collapse; margin: 1em 0 } td, th { border: 1px solid #ddd; padding: .3em .8em }
        pre { background: #f4f4f4; padding: 1em; overflow: auto } code { background: #f4f4f4 } img { max-width: 100% }"""
    with tempfile.NamedTemporaryFile("w", suffix=".html", dir=ROOT) as page:
        page.write(f"<!doctype html><meta charset=utf-8><style>{style}</style>{body}")
        page.flush()
        browser.open(pathlib.Path(page.name).as_uri(), 1100, 900)
        browser.save("readme.png", whole_page=True)


def speed(args):
    """Bars, one group for each case, as long as the engine is fast beside the fastest of its group."""
    groups = {}
    for row in csv.DictReader((HERE / "speed.csv").open()):
        groups.setdefault((row["case"], row["unit"]), []).append((row["engine"], float(row["value"])))
    parts, y, width = [], 8, 470
    for (case, unit), rows in groups.items():
        parts.append(f'<text x="8" y="{y + 14}" class="case">{html.escape(case)}</text>')
        y += 24
        largest = max(value for _, value in rows)
        for engine, value in rows:
            bar = max(2, round(width * value / largest))
            text = f"{value:,.1f}".removesuffix(".0") if value < 1000 else f"{value:,.0f}"
            parts.append(
                f'<text x="118" y="{y + 13}" class="name">{html.escape(engine)}</text>'
                f'<rect x="126" y="{y}" width="{bar}" height="17" class="{"ours" if engine == "qernel" else "peer"}"/>'
                f'<text x="{132 + bar}" y="{y + 13}">{text} {html.escape(unit)}</text>'
            )
            y += 21
        y += 10
    style = (
        "text{font:13px sans-serif;fill:#333}.case{font-weight:bold}.name{text-anchor:end}.ours{fill:#b7410e}.peer{fill:#9aa5b1}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}.peer{fill:#667}}"
    )
    picture = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {y}" width="760" height="{y}" role="img">'
    picture += f"<title>Speed on an H200, 2026-11-28</title><style>{style}</style>{''.join(parts)}</svg>\n"
    (HERE / "speed.svg").write_text(re.sub(r"(</text>|/>)(?=<)", r"\1\n", picture))
    print(f"docs/images/speed.svg: {len(picture) >> 10} KiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qernel", default=ROOT / "target/release/qernel", help="the program")
    parser.add_argument("--chromium", default="chromium", help="the browser")
    parser.add_argument("--only", choices=["speed", "chat", "kernel", "readme"])
    args = parser.parse_args()
    if args.only in (None, "speed"):
        speed(args)
    pictures = [draw for draw in (chat, kernel) if args.only in (None, draw.__name__)]
    pictures += [readme] if args.only == "readme" else []
    if pictures:
        browser = Browser(args.chromium)
        try:
            for draw in pictures:
                draw(browser, args)
        finally:
            browser.close()


if __name__ == "__main__":
    main()
