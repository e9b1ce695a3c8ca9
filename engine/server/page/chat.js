/** The chat page: what its parts have to do with each other. */

import { DEFAULTS, Settings } from "./settings.js";
import * as store from "./store.js";
import { answer, cost, fault } from "./stream.js";
import { TurnView, drawList } from "./view.js";

const $ = (id) => document.getElementById(id);

/** Bytes of the largest file that is added as text. */
const MAX_FILE = 1 << 20;

/** The conversation that is shown; kept once something was said in it. */
let current = null;
/** The answer that is being made: its conversation, view and how it is ended; null where none is. */
let running = null;
/** The model that is asked, as `/v1/models` has it; null where none answers. */
let model = null;

const settings = new Settings($("controls"), () => {
  current.settings = settings.values;
  store.remember("settings", current.settings);
  if (current.turns.length) keep(current);
});

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

/** Puts a conversation where it lasts. */
function keep(conversation) {
  if (!store.save(conversation)) say("the browser keeps no more conversations: export or delete some", true);
}

// Showing.

function viewOf(turn) {
  const conversation = current;
  const at = () => conversation.turns.indexOf(turn);
  return new TurnView(turn, {
    edit: (text) => ask(conversation, [...conversation.turns.slice(0, at()), { ...turn, content: text }]),
    retry: () => ask(conversation, conversation.turns.slice(0, at())),
    respond: (results) => {
      const of = (call, i) => ({ role: "tool", content: results[i], call: call.id });
      ask(conversation, [...conversation.turns, ...turn.calls.map(of)]);
    },
  });
}

function drawTurns() {
  const isRunning = running?.conversation === current;
  const log = $("conversation");
  log.replaceChildren();
  for (const turn of current.turns) {
    const view = viewOf(turn);
    view.draw(false, model?.max_model_len);
    log.append(view.element);
  }
  if (isRunning) log.append(running.view.element);
  const last = current.turns.at(-1);
  if (!isRunning && last?.calls?.length && last.role === "assistant") {
    const view = viewOf(last);
    view.draw(false, model?.max_model_len);
    view.askForResults();
    log.lastChild.replaceWith(view.element);
  }
  if (!log.firstChild) {
    const empty = Object.assign(document.createElement("p"), { id: "empty", textContent: invitation() });
    log.append(empty);
  }
  log.scrollTop = log.scrollHeight;
}

function drawAll() {
  drawTurns();
  const conversations = store.all();
  drawList($("conversations"), conversations, current.id, store.titleOf, { open: (found) => open(found), rename, remove });
  $("export").disabled = current.turns.length === 0;
}

/** Shows a conversation; that of the running answer as it goes on. */
function open(conversation) {
  current = running?.conversation.id === conversation.id ? running.conversation : conversation;
  settings.values = current.settings;
  closeMenu();
  say("");
  drawAll();
  $("message").focus();
}

function startAnew() {
  open(store.create({ ...(current?.settings ?? store.recall("settings") ?? DEFAULTS) }));
}

function rename(conversation, name) {
  const found = conversation.id === current.id ? current : conversation;
  found.title = name;
  keep(found);
  drawAll();
}

function remove(conversation) {
  if (!confirm(`Delete “${store.titleOf(conversation)}”?`)) return;
  if (running?.conversation.id === conversation.id) {
    running.isDropped = true;
    running.controller.abort();
  }
  store.remove(conversation.id);
  if (conversation.id === current.id) startAnew();
  else drawAll();
}

// Asking.

/** Has the model answer to `turns`, which the conversation has from then on. Whether it was asked. */
function ask(conversation, turns) {
  if (running) return false;
  const fields = settings.request();
  if (!fields) return false;
  const before = conversation.turns;
  conversation.turns = turns;
  conversation.updated = Date.now();
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  const body = { messages: [...system, ...store.messages(turns)], ...fields };
  if (!$("models").hidden) body.model = model.id;
  const turn = { role: "assistant", content: "" };
  running = { conversation, view: viewOf(turn), controller: new AbortController() };
  setRunning(true);
  keep(conversation);
  running.view.draw(true);
  drawAll();
  say("waiting…");
  finish(body, turn, before);
  return true;
}

/** Makes an answer and puts it where it belongs. */
async function finish(body, turn, before) {
  const { conversation, view, controller } = running;
  let isDue = false;
  const draw = () => {
    isDue = false;
    const log = $("conversation");
    // Who reads further up is left there.
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    view.draw(running?.view === view, model?.max_model_len);
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  };
  const changed = () => {
    if (current === conversation) say(cost(turn));
    // A browser paints what is seen; an answer is also drawn where nobody looks.
    if (!isDue) (document.hidden ? setTimeout : requestAnimationFrame)(draw);
    isDue = true;
  };
  running.turn = turn;
  let wrong = null;
  try {
    await answer(body, turn, changed, controller.signal);
  } catch (error) {
    if (error.name === "AbortError") turn.reason = "stopped";
    else wrong = error;
  }
  const isDropped = running.isDropped;
  running = null;
  setRunning(false);
  if (isDropped) return;
  const isEmpty = !turn.content && !turn.thought && !turn.calls;
  if (!wrong || !isEmpty) conversation.turns = [...conversation.turns, turn];
  else takeBack(conversation, before);
  if (current === conversation) say(wrong?.message ?? "", wrong !== null);
  if (conversation.turns.length) keep(conversation);
  else store.remove(conversation.id);
  drawAll();
  if (wrong || !model?.device) showModel();
  $("message").focus();
}

/** What was refused may be asked again: the question goes back to where it was written. */
function takeBack(conversation, before) {
  const last = conversation.turns.at(-1);
  const isNew = conversation.turns.length === before.length + 1 && last.role === "user";
  conversation.turns = before;
  if (isNew && current === conversation && !$("message").value) $("message").value = last.content;
}

function send() {
  const text = $("message").value.trim();
  if (text && ask(current, [...current.turns, { role: "user", content: text }])) $("message").value = "";
}

function setRunning(isRunning) {
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
}

// Files.

/** Adds text files to the message, each in a fence that it does not hold. */
async function attach(files) {
  for (const file of files) {
    const text = file.size <= MAX_FILE ? await file.text() : null;
    if (text === null || text.includes("\0")) {
      say(`${file.name}: expected a text of at most ${MAX_FILE / 1024} KiB`, true);
      continue;
    }
    let fence = "```";
    while (text.includes(fence)) fence += "`";
    const before = $("message").value.trimEnd();
    $("message").value = `${before}${before && "\n\n"}${file.name}:\n${fence}\n${text.trimEnd()}\n${fence}\n`;
  }
  $("message").focus();
}

function exportConversation() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([store.exported(current)], { type: "application/json" }));
  link.download = `${store.titleOf(current).replace(/[^\p{L}\p{N} -]/gu, "").trim() || "conversation"}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function importConversation(file) {
  try {
    const found = store.imported(await file.text(), current.settings);
    keep(found);
    open(found);
  } catch (error) {
    say(`${file.name}: ${error.message}`, true);
  }
}

// The model.

const isHaiku = () => model?.id === "haiku";

function invitation() {
  if (!model) return "Ask anything.";
  return isHaiku() ? "Ask for a haiku about anything, with any word." : `Ask ${model.id} anything.`;
}

/** What is said of a model that is not loaded. */
const STATES = { unloaded: "not loaded: the first message loads it", loading: "being loaded" };

/** Lets one of several be chosen. The one that was chosen stays as long as it is there. */
function offer(all) {
  if (!all.length) throw new Error("there is no model in the server's folder");
  const chosen = store.recall("model");
  model = all.find(({ id }) => id === chosen) ?? all.find(({ status }) => status?.value === "loaded") ?? all[0];
  const select = $("models");
  select.hidden = all.length < 2;
  const names = all.map(({ id }) => id);
  // A list that somebody may be looking at is left as it is.
  if (names.join("\n") !== [...select.options].map(({ value }) => value).join("\n")) select.replaceChildren(...names.map((id) => new Option(id)));
  select.value = model.id;
}

/** Says what to ask this model for; the one that the program carries knows haiku alone. */
function introduce() {
  document.title = `${model.id} · qernel`;
  const name = $("models").hidden ? [model.id] : [];
  const facts = model.device ? [model.device, `${model.max_model_len} tokens`] : [model.status?.reason ?? STATES[model.status?.value]];
  $("model").textContent = [...name, ...facts].join(" · ");
  $("message").placeholder = isHaiku() ? "Write a haiku about the sea with the word forty-two" : `Message to ${model.id}`;
  if ($("empty")) $("empty").textContent = invitation();
}

/** The next look at which model there is, and whether the last one found one. */
let nextLook = null;
let isReady = false;

/** Shows which model answers. Looks again, soon where none does yet: the server may start anew with another one. */
async function showModel() {
  let seconds = 30;
  try {
    const response = await fetch("v1/models", { cache: "no-store" });
    if (!response.ok) throw new Error(await fault(response));
    offer((await response.json()).data);
    introduce();
    // What was refused meanwhile can be asked now.
    if (!isReady && !running) say("");
    isReady = true;
  } catch (error) {
    $("model").textContent = error.message;
    isReady = false;
    seconds = 1;
  }
  clearTimeout(nextLook);
  nextLook = setTimeout(showModel, seconds * 1000);
}

// What is pressed.

function closeMenu() {
  document.body.classList.remove("menu");
  $("menu").setAttribute("aria-expanded", "false");
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").value = theme;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("stop").addEventListener("click", () => running?.controller.abort());
$("new").addEventListener("click", startAnew);
$("menu").addEventListener("click", () => {
  const isOpen = document.body.classList.toggle("menu");
  $("menu").setAttribute("aria-expanded", isOpen);
  if (isOpen) $("new").focus();
});
$("page").addEventListener("click", (event) => {
  if (!$("menu").contains(event.target)) closeMenu();
});
$("models").addEventListener("change", () => {
  store.remember("model", $("models").value);
  showModel();
});
$("theme").addEventListener("change", () => {
  setTheme($("theme").value);
  store.remember("theme", $("theme").value);
});
$("export").addEventListener("click", exportConversation);
for (const [button, field, take] of [["import", "import-file", ([file]) => importConversation(file)], ["attach", "attach-file", attach]]) {
  $(button).addEventListener("click", () => $(field).click());
  $(field).addEventListener("change", () => {
    const files = [...$(field).files];
    $(field).value = "";
    if (files.length) take(files);
  });
}
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && $("message").value === "") {
    event.preventDefault();
    [...document.querySelectorAll('[aria-label="Edit the message"]')].at(-1)?.click();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (document.body.classList.contains("menu")) {
    closeMenu();
    $("menu").focus();
  } else {
    running?.controller.abort();
  }
});
document.addEventListener("dragover", (event) => {
  if (event.dataTransfer.types.includes("Files")) event.preventDefault();
});
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  attach([...event.dataTransfer.files]);
});
document.addEventListener("visibilitychange", () => {
  // A browser slows the clocks of pages that nobody sees.
  if (!document.hidden) showModel();
});
addEventListener("pagehide", () => {
  // What has come of an answer stays.
  if (running?.turn?.content) {
    store.save({ ...running.conversation, turns: [...running.conversation.turns, { ...running.turn, reason: "stopped" }] });
  }
});
addEventListener("storage", (event) => {
  // Another window has changed a conversation.
  if (!store.isOurs(event.key) || running) return;
  current = store.load(current.id) ?? current;
  drawAll();
});
setTheme(store.recall("theme") ?? "");
startAnew();
showModel();
