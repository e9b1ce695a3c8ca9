/** How the turns of a conversation look. What is said reaches the page as text nodes alone. */

import { copyText, render } from "./markdown.js";
import { cost } from "./stream.js";

/** An element with a class, a text and what its click does. */
function made(name, className, text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  return element;
}

function button(text, label, act) {
  const element = made("button", "", text);
  element.type = "button";
  if (label) element.setAttribute("aria-label", label);
  element.addEventListener("click", () => act(element));
  return element;
}

/** Indented where it is JSON. */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** One turn on the page. */
export class TurnView {
  /** `acts` has what can be done: `edit(text)`, `retry()` and `respond(results)`. */
  constructor(turn, acts) {
    this.turn = turn;
    this.acts = acts;
    this.element = made("article", `turn ${turn.role}`);
    this.element.setAttribute("aria-label", { user: "You", assistant: "Answer", tool: "Result of a tool" }[turn.role]);
    this.foot = made("p", "foot");
  }

  /** Draws what has changed. */
  draw(isRunning, context) {
    const { turn, element } = this;
    element.classList.toggle("unfinished", isRunning);
    element.setAttribute("aria-busy", isRunning);
    if (turn.role === "assistant") {
      this.drawThought();
      if (turn.content) render((this.said ??= this.place(made("div", "said"))), turn.content);
      turn.calls?.forEach((call, i) => this.drawCall(call, i));
    } else {
      this.said ??= this.place(made("div", turn.role === "tool" ? "said result" : "said plain"));
      this.said.textContent = turn.content;
    }
    if (!isRunning && !this.foot.isConnected) this.drawFoot(context);
  }

  place(part) {
    this.element.append(part);
    return part;
  }

  /** What the model thinks, in a fold above what it says: open while it thinks, closed by the first word of the answer. */
  drawThought() {
    const { thought, content, calls } = this.turn;
    if (!thought) return;
    const hasAnswer = content !== "" || calls?.length > 0;
    if (!this.fold) {
      this.fold = made("details", "thought");
      this.fold.open = !hasAnswer;
      this.fold.append(made("summary", "", "Thinking"), made("p", ""));
      this.element.prepend(this.fold);
    } else if (hasAnswer && !this.hadAnswer) {
      this.fold.open = false;
    }
    this.hadAnswer = hasAnswer;
    this.fold.lastChild.textContent = thought.trim();
  }

  /** A call of a tool: its name and what it is called with. */
  drawCall(call, i) {
    this.calls ??= [];
    const box = (this.calls[i] ??= this.place(made("div", "call")));
    box.replaceChildren(made("strong", "", `Call of ${call.name}`), made("pre", "", pretty(call.arguments)));
  }

  drawFoot(context) {
    const { turn, acts } = this;
    const copy = button("Copy", "Copy the text", (self) => copyText(turn.content, self));
    if (turn.role === "user") {
      this.foot.append(button("Edit", "Edit the message", () => this.edit()), copy);
    } else if (turn.role === "assistant") {
      this.foot.append(made("span", "cost", cost(turn, context)), copy, button("Retry", "Answer anew", () => acts.retry()));
    }
    if (turn.role !== "tool") this.element.append(this.foot);
  }

  /** Lets the user write the message anew; what came after it is gone when it is sent. */
  edit() {
    if (this.editor) return;
    const field = Object.assign(document.createElement("textarea"), { value: this.turn.content, rows: 3 });
    field.setAttribute("aria-label", "Edited message");
    const close = () => {
      this.editor.remove();
      this.editor = null;
      this.said.hidden = this.foot.hidden = false;
    };
    const send = () => field.value.trim() && this.acts.edit(field.value.trim()) && close();
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    });
    this.editor = made("div", "editor");
    this.editor.append(field, button("Send again", "", send), button("Cancel", "", close));
    this.said.hidden = this.foot.hidden = true;
    this.element.append(this.editor);
    field.focus();
  }

  /** Asks for what the called tools gave, which the page cannot know. */
  askForResults() {
    const form = made("div", "results");
    const fields = this.turn.calls.map((call) => {
      const field = Object.assign(document.createElement("textarea"), { rows: 2, placeholder: "What the tool gave" });
      field.setAttribute("aria-label", `Result of ${call.name}`);
      return field;
    });
    const send = button("Send results", "", () => this.acts.respond(fields.map((field) => field.value)));
    form.append(...fields, send);
    this.element.append(form);
  }
}

/** The list of conversations. `acts` has `open`, `rename` and `remove`, each of a conversation. */
export function drawList(list, conversations, current, titleOf, acts) {
  list.replaceChildren(
    ...conversations.map((conversation) => {
      const title = titleOf(conversation);
      const item = document.createElement("li");
      const open = button(title, "", () => acts.open(conversation));
      open.className = "open";
      open.title = title;
      if (conversation.id === current) open.setAttribute("aria-current", "true");
      const rename = button("✎", `Rename ${title}`, () => {
        const field = Object.assign(document.createElement("input"), { value: title });
        field.setAttribute("aria-label", "Name of the conversation");
        let isDone = false;
        const finish = (name) => {
          if (isDone) return;
          isDone = true;
          acts.rename(conversation, name);
        };
        field.addEventListener("blur", () => finish(field.value.trim()));
        field.addEventListener("keydown", (event) => {
          if (event.key === "Enter") finish(field.value.trim());
          if (event.key === "Escape") finish(conversation.title);
        });
        item.replaceChildren(field);
        field.select();
      });
      item.append(open, rename, button("✕", `Delete ${title}`, () => acts.remove(conversation)));
      return item;
    }),
  );
}
