/**
 * Markdown as models write it, made to nodes. What a model says reaches the page as text nodes alone: no HTML is parsed anywhere, and links
 * lead to the web and to mail only. Every scan is linear in the text, and nesting is bounded.
 */

/** How deep quotes, lists and labels may stand in each other; what is deeper is a paragraph. */
const MAX_DEPTH = 8;
/** Marks of emphasis in one paragraph; what is beyond them is text. */
const MAX_MARKS = 400;
/** Characters of the longest link. */
const MAX_LINK = 4096;

/** Draws `text` into `container`. Blocks that are as they were stay, so that an answer may be drawn with every piece of it. */
export function render(container, text) {
  const found = blocks(text.split("\n"), 0);
  found.forEach((block, i) => {
    const source = block.kind + block.lines.join("\n");
    const old = container.children[i];
    if (old?.source === source) return;
    const element = build(block, 0);
    element.source = source;
    if (old) old.replaceWith(element);
    else container.append(element);
  });
  while (container.children.length > found.length) container.lastElementChild.remove();
}

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( {1,4})|$)/;

const isBlank = (line) => line === undefined || line.trim() === "";
const indentOf = (line) => line.length - line.trimStart().length;

/** The cells of a row of a table. */
function cells(line) {
  const row = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return row.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function isTable(lines, i) {
  const below = lines[i + 1];
  if (!lines[i].includes("|") || isBlank(below) || !below.includes("-")) return false;
  const rules = cells(below);
  return rules.every((cell) => /^:?-+:?$/.test(cell)) && rules.length === cells(lines[i]).length;
}

/** Whether a line begins something else than a paragraph, in the midst of one. */
function interrupts(lines, i) {
  const line = lines[i];
  const item = ITEM.exec(line);
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || isTable(lines, i)
    || (item !== null && item[3] !== undefined && !/^(?!1[.)])\d/.test(item[2]));
}

/** The blocks of lines: what each is, and the lines it is made of. */
function blocks(lines, depth) {
  const found = [];
  for (let i = 0; i < lines.length;) {
    const begin = i;
    const take = (kind, more) => found.push({ kind, lines: lines.slice(begin, i), ...more });
    const line = lines[i];
    let match;
    if (isBlank(line)) {
      i += 1;
    } else if ((match = FENCE.exec(line))) {
      const [, fence, info] = match;
      const isEnd = (line) => {
        const text = line.trim();
        return text.length >= fence.length && indentOf(line) < 4 && text === fence[0].repeat(text.length);
      };
      i += 1;
      while (i < lines.length && !isEnd(lines[i])) i += 1;
      const end = i;
      i = Math.min(i + 1, lines.length);
      const indent = indentOf(line);
      const code = lines.slice(begin + 1, end).map((line) => line.slice(Math.min(indent, indentOf(line))));
      take("code", { code: code.join("\n"), language: info.trim().split(/\s/)[0] });
    } else if ((match = HEADING.exec(line))) {
      i += 1;
      take("heading", { level: match[1].length, text: line.trim().slice(match[1].length).trim().replace(/\s#+$/, "") });
    } else if (RULE.test(line)) {
      i += 1;
      take("rule");
    } else if (depth < MAX_DEPTH && QUOTE.test(line)) {
      while (i < lines.length && QUOTE.test(lines[i])) i += 1;
      take("quote", { within: lines.slice(begin, i).map((line) => line.replace(QUOTE, "")) });
    } else if (depth < MAX_DEPTH && ITEM.test(line)) {
      const items = [];
      i = list(lines, i, items);
      take("list", { items, start: parseInt(line, 10) });
    } else if (isTable(lines, i)) {
      i += 2;
      while (i < lines.length && !isBlank(lines[i]) && lines[i].includes("|")) i += 1;
      take("table");
    } else {
      i += 1;
      while (i < lines.length && !isBlank(lines[i]) && !interrupts(lines, i)) i += 1;
      take("paragraph");
    }
  }
  return found;
}

/** Reads the items of a list that begins at line `i`, and says where it ends. */
function list(lines, i, items) {
  const kind = (marker) => marker.slice(-1);
  const first = ITEM.exec(lines[i]);
  while (i < lines.length) {
    const match = ITEM.exec(lines[i]);
    if (!match || kind(match[2]) !== kind(first[2]) || RULE.test(lines[i])) break;
    const [head, indent] = match;
    const item = [lines[i].slice(head.length)];
    // Models indent by two as by four: what is further in than the marker is the item's.
    const inner = Math.min(head.length, indent.length + 2);
    for (i += 1; i < lines.length; i += 1) {
      if (isBlank(lines[i])) {
        if (isBlank(lines[i + 1]) || indentOf(lines[i + 1]) < inner) break;
        item.push("");
      } else if (indentOf(lines[i]) >= inner) {
        item.push(lines[i].slice(Math.min(head.length, indentOf(lines[i]))));
      } else if (ITEM.test(lines[i]) || interrupts(lines, i)) {
        break;
      } else {
        item.push(lines[i]);
      }
    }
    items.push(item);
    // A blank line between two items.
    if (isBlank(lines[i]) && lines[i + 1] !== undefined && ITEM.test(lines[i + 1])) i += 1;
  }
  return i;
}

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

/** The element of a block. */
function build(block, depth) {
  const within = (lines) => blocks(lines, depth + 1).map((inner) => build(inner, depth + 1));
  switch (block.kind) {
    case "code":
      return code(block);
    case "heading":
      return element(`h${Math.min(block.level + 2, 6)}`, inline(block.text, depth));
    case "rule":
      return element("hr");
    case "quote":
      return element("blockquote", ...within(block.within));
    case "list": {
      const list = element(Number.isNaN(block.start) ? "ul" : "ol");
      if (block.start > 1) list.start = block.start;
      list.append(...block.items.map((item) => element("li", ...within(item))));
      return list;
    }
    case "table":
      return table(block.lines, depth);
    default:
      return element("p", inline(block.lines.join("\n"), depth));
  }
}

function code({ code, language }) {
  const copy = element("button", "Copy");
  copy.type = "button";
  copy.setAttribute("aria-label", "Copy the code");
  copy.addEventListener("click", () => copyText(code, copy));
  const head = element("div", element("span", language), copy);
  head.className = "code-head";
  const text = element("pre", element("code", code));
  text.tabIndex = 0;
  const box = element("div", head, text);
  box.className = "code";
  return box;
}

function table(lines, depth) {
  const sides = cells(lines[1]).map((rule) => (rule.endsWith(":") ? (rule.startsWith(":") ? "center" : "right") : "left"));
  const row = (line, name) => {
    const given = cells(line);
    return element("tr", ...sides.map((side, i) => {
      const cell = element(name, inline(given[i] ?? "", depth));
      cell.className = side;
      return cell;
    }));
  };
  const body = element("tbody", ...lines.slice(2).map((line) => row(line, "td")));
  const box = element("div", element("table", element("thead", row(lines[0], "th")), body));
  box.className = "table";
  return box;
}

/** Puts a text on the clipboard, and says so on the button for a while. */
export async function copyText(text, button) {
  const label = button.textContent;
  try {
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(text);
    } else {
      // Pages that came over plain HTTP have no clipboard but this.
      const field = element("textarea", text);
      document.body.append(field);
      field.select();
      const isDone = document.execCommand("copy");
      field.remove();
      if (!isDone) throw new Error("refused");
    }
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not copied";
  }
  setTimeout(() => (button.textContent = label), 1500);
}

/** Where a link may lead, or null. */
function safe(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function link(address, label) {
  const href = safe(address);
  if (!href) return null;
  const made = element("a", label);
  made.href = href;
  made.target = "_blank";
  made.rel = "noopener noreferrer";
  return made;
}

const SPECIAL = /[\\`*_~[!<$]|https?:\/\//g;
const LINK = /!?\[((?:[^[\]\\]|\\.|\[[^[\]]*\])*)\]\(\s*<?([^\s<>()]*(?:\([^\s()]*\)[^\s<>()]*)*)>?(?:\s+"[^"]*")?\s*\)/y;
const BARE = /https?:\/\/[^\s<>`]+/y;
const IN_BRACKETS = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
/** Formulas stay as they were written. */
const FORMULA = /\\\([^\n]*?\\\)|\\\[[^]*?\\\]|\$\$[^]*?\$\$/y;

function sticky(pattern, text, at) {
  pattern.lastIndex = 0;
  return pattern.exec(text.slice(at, at + MAX_LINK));
}

/** A fragment of what stands in a line: code, links, emphasis. */
function inline(text, depth) {
  const made = document.createDocumentFragment();
  const marks = [];
  let plain = "";
  const flush = () => {
    if (plain) made.append(plain);
    plain = "";
  };
  const put = (node) => {
    flush();
    made.append(node);
  };
  for (let at = 0; at < text.length;) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(at, next);
    at = next;
    if (at === text.length) break;
    const special = text[at];
    let match;
    if ((special === "\\" || special === "$") && (match = sticky(FORMULA, text, at))) {
      const formula = element("span", match[0]);
      formula.className = "formula";
      put(formula);
    } else if (special === "\\" && /[\\`*_{}#+\-.!|~<>$]/.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      match = ["12"];
    } else if (special === "`") {
      const fence = /`+/y;
      fence.lastIndex = at;
      const ticks = fence.exec(text)[0];
      const end = closing(text, ticks, at + ticks.length);
      if (end >= 0) {
        const code = text.slice(at + ticks.length, end).replaceAll("\n", " ");
        put(element("code", /^ .*[^ ].* $/.test(code) ? code.slice(1, -1) : code));
        match = [text.slice(at, end + ticks.length)];
      } else {
        plain += ticks;
        match = [ticks];
      }
    } else if ((special === "[" || special === "!") && depth < MAX_DEPTH && (match = sticky(LINK, text, at))) {
      const made = link(match[2], inline(match[1] || match[2], depth + 1));
      if (made) put(made);
      else plain += match[0];
    } else if (special === "<" && (match = sticky(IN_BRACKETS, text, at))) {
      put(link(match[1], match[1]) ?? match[0]);
    } else if (special === "h" && (match = sticky(BARE, text, at))) {
      match[0] = trimmed(match[0]);
      put(link(match[0], match[0]) ?? match[0]);
    } else if ("*_~".includes(special) && marks.length < MAX_MARKS) {
      let end = at;
      while (text[end] === special) end += 1;
      match = [text.slice(at, end)];
      flush();
      const node = document.createTextNode(match[0]);
      made.append(node);
      marks.push({ node, sign: special, ...sides(text, at, end) });
    }
    if (match) {
      at += match[0].length;
    } else {
      plain += special;
      at += 1;
    }
  }
  flush();
  emphasise(marks);
  return made;
}

/** A bare address without the punctuation of its sentence. */
function trimmed(address) {
  let text = address.replace(/[.,:;!?'"*_~]+$/, "");
  if (text.endsWith(")") && !text.includes("(")) text = text.replace(/\)+[.,:;!?'"*_~]*$/, "");
  return text;
}

/** Where exactly these backticks come again, or -1. */
function closing(text, ticks, from) {
  for (let at = text.indexOf(ticks, from); at >= 0; at = text.indexOf(ticks, at)) {
    let end = at;
    while (text[end] === "`") end += 1;
    if (end - at === ticks.length) return at;
    at = end;
  }
  return -1;
}

/** Whether a run of marks may open and close emphasis (CommonMark's left- and right-flanking runs). */
function sides(text, begin, end) {
  const before = text[begin - 1] ?? " ";
  const after = text[end] ?? " ";
  const isSpace = (sign) => /\s/.test(sign);
  const isPunctuation = (sign) => /[\p{P}\p{S}]/u.test(sign);
  const isLeft = !isSpace(after) && (!isPunctuation(after) || isSpace(before) || isPunctuation(before));
  const isRight = !isSpace(before) && (!isPunctuation(before) || isSpace(after) || isPunctuation(after));
  if (text[begin] === "~") return { opens: isLeft && end - begin === 2, closes: isRight && end - begin === 2 };
  if (text[begin] === "*") return { opens: isLeft, closes: isRight };
  return { opens: isLeft && (!isRight || isPunctuation(before)), closes: isRight && (!isLeft || isPunctuation(after)) };
}

/** Puts what stands between marks that belong together into elements. */
function emphasise(marks) {
  const open = [];
  for (const mark of marks) {
    while (mark.closes && mark.node.data) {
      const i = open.findLastIndex((other) => other.sign === mark.sign);
      if (i < 0) break;
      const opener = open[i];
      open.length = i + 1;
      const count = Math.min(2, opener.node.data.length, mark.node.data.length);
      const box = document.createElement(mark.sign === "~" ? "del" : count === 2 ? "strong" : "em");
      while (opener.node.nextSibling !== mark.node) box.append(opener.node.nextSibling);
      opener.node.after(box);
      opener.node.data = opener.node.data.slice(count);
      mark.node.data = mark.node.data.slice(count);
      if (!opener.node.data) open.pop();
    }
    if (mark.opens && mark.node.data) open.push(mark);
  }
}
