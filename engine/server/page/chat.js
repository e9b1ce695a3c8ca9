"use strict";

const $ = (id) => document.getElementById(id);

/** The conversation as the server gets it, without the system message. */
let messages = [];
/** Ends the answer that is being made; null where none is. */
let running = null;

/** Fields of the form that are numbers of the request. */
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "seed"];

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function addTurn(role, text) {
  $("empty")?.remove();
  const turn = document.createElement("div");
  turn.className = `turn ${role}`;
  turn.textContent = text;
  $("conversation").append(turn);
  scrollDown();
  return turn;
}

/** Shows what the model thinks in a fold above what it says: open while it thinks, closed by the first word of the answer. */
function showThought(turn, text) {
  let fold = turn.querySelector("details");
  if (!fold) {
    fold = document.createElement("details");
    fold.className = "thought";
    fold.open = true;
    const title = document.createElement("summary");
    title.textContent = "Thinking";
    fold.append(title, document.createElement("p"));
    turn.prepend(fold);
  }
  fold.querySelector("p").textContent = text;
}

function showText(turn, text) {
  let said = turn.querySelector(".said");
  if (!said) {
    const fold = turn.querySelector("details");
    if (fold) fold.open = false;
    said = document.createElement("span");
    said.className = "said";
    turn.append(said);
  }
  said.textContent = text;
}

/** The assistant's turn as the server gets it back. */
function turnOf(answer) {
  const message = { role: "assistant", content: answer.text };
  if (answer.thought) message.reasoning_content = answer.thought;
  return message;
}

function scrollDown() {
  const log = $("conversation");
  log.scrollTop = log.scrollHeight;
}

/** The body of the request, or null where a field is not filled in properly. */
function request() {
  const system = $("system").value.trim();
  const body = {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
  };
  for (const name of NUMBERS) {
    const input = $(name);
    if (!input.checkValidity()) {
      $("sampling").open = true;
      input.reportValidity();
      return null;
    }
    if (input.value !== "") body[name] = Number(input.value);
  }
  return body;
}

/** The data of Server-Sent Events, as they come. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    for (let end; (end = buffer.indexOf("\n\n")) >= 0; buffer = buffer.slice(end + 2)) {
      const lines = buffer.slice(0, end).split("\n").filter((line) => line.startsWith("data: "));
      const data = lines.map((line) => line.slice(6)).join("\n");
      if (data) yield data;
    }
  }
}

/** What an answer that is an error says. */
async function fault(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

/** Streams an answer into `turn` and `answer`: its text, what the model thought and how it ended. */
async function stream(body, turn, answer, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw new Error(await fault(response));
  let first = null;
  let pieces = 0;
  for await (const data of events(response)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) answer.tokens = chunk.usage.completion_tokens;
    const choice = chunk.choices[0];
    if (!choice) continue;
    answer.reason = choice.finish_reason ?? answer.reason;
    const thought = choice.delta.reasoning_content;
    const piece = choice.delta.content;
    if (!thought && !piece) continue;
    first ??= performance.now();
    pieces += 1;
    if (thought) {
      answer.thought += thought;
      showThought(turn, answer.thought);
    }
    if (piece) {
      answer.text += piece;
      showText(turn, answer.text);
    }
    answer.seconds = (performance.now() - first) / 1000;
    if (pieces > 1) say(`${pieces} tokens, ${rate(pieces - 1, answer.seconds)}`);
    scrollDown();
  }
}

function rate(tokens, seconds) {
  return seconds > 0 ? `${(tokens / seconds).toFixed(1)} tokens/s` : "";
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = controller !== null;
  $("stop").hidden = controller === null;
  $("clear").disabled = controller !== null;
}

async function ask() {
  const text = $("message").value.trim();
  if (!text || running) return;
  messages.push({ role: "user", content: text });
  const body = request();
  if (!body) {
    messages.pop();
    return;
  }
  const question = addTurn("user", text);
  const turn = addTurn("assistant", "");
  turn.classList.add("unfinished");
  $("message").value = "";
  say("waiting…");
  setRunning(new AbortController());
  const answer = { text: "", thought: "", reason: null, tokens: 0, seconds: 0 };
  try {
    await stream(body, turn, answer, running.signal);
    messages.push(turnOf(answer));
    const length = answer.reason === "length" ? ", cut off by the limit" : "";
    say(`${answer.tokens} tokens, ${rate(answer.tokens - 1, answer.seconds)}${length}`);
  } catch (error) {
    if (error.name === "AbortError") {
      messages.push(turnOf(answer));
      say("stopped");
    } else {
      // The question may be asked again.
      messages.pop();
      if (!turn.textContent) {
        turn.remove();
        question.remove();
        $("message").value = text;
      }
      say(error.message, true);
      showModel();
    }
  } finally {
    turn.classList.remove("unfinished");
    setRunning(null);
    $("message").focus();
  }
}

/** Says what to ask this model for; the one that the program carries knows haiku alone. */
function introduce(model) {
  const isHaiku = model.id === "haiku";
  document.title = `${model.id} · qernel`;
  $("model").textContent = `${model.id} · ${model.device} · ${model.max_model_len} tokens`;
  $("message").placeholder = isHaiku
    ? "Write a haiku about the sea with the word forty-two"
    : `Message to ${model.id}`;
  const empty = $("empty");
  if (empty) empty.textContent = isHaiku ? "Ask for a haiku about anything, with any word." : `Ask ${model.id} anything.`;
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
    introduce((await response.json()).data[0]);
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

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  messages = [];
  $("conversation").replaceChildren();
  say("");
  $("message").focus();
});
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
});
document.addEventListener("visibilitychange", () => {
  // A browser slows the clocks of pages that nobody sees.
  if (!document.hidden) showModel();
});
showModel();
