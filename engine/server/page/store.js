/**
 * The conversations that this browser keeps, each under a key of its own. Where it keeps nothing (private windows, a full storage) they live
 * as long as the page.
 *
 * A conversation is `{id, title, updated, settings, turns}`. A turn is what one side says: `{role: "user", content}`,
 * `{role: "assistant", content, thought, calls, reason, stats}` or `{role: "tool", content, call}`.
 */

const PREFIX = "qernel.conversation.";
const ROLES = ["user", "assistant", "tool"];
/** What the browser did not take. */
const unkept = new Map();

function stored(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

/** Keeps a small value: the theme, say. */
export function remember(name, value) {
  try {
    localStorage.setItem(`qernel.${name}`, JSON.stringify(value));
  } catch {
    // It lasts as long as the page.
  }
}

/** What was remembered, or null. */
export function recall(name) {
  try {
    return JSON.parse(stored(`qernel.${name}`));
  } catch {
    return null;
  }
}

export const isOurs = (key) => key === null || key.startsWith(PREFIX);

/** A conversation without turns. */
export function create(settings) {
  // `randomUUID` is there on secure pages only.
  const id = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, title: "", updated: Date.now(), settings, turns: [] };
}

/** A kept conversation, or null. */
export function load(id) {
  const unsaved = unkept.get(id);
  if (unsaved) return unsaved;
  try {
    const found = JSON.parse(stored(PREFIX + id));
    return found && { ...checked(found), id };
  } catch {
    return null;
  }
}

/** All of them, the newest first. */
export function all() {
  const ids = new Set(unkept.keys());
  try {
    for (let i = 0; i < localStorage.length; i += 1) {
      const key = localStorage.key(i);
      if (key.startsWith(PREFIX)) ids.add(key.slice(PREFIX.length));
    }
  } catch {
    // Nothing is kept.
  }
  return [...ids].map(load).filter(Boolean).sort((one, other) => other.updated - one.updated);
}

/** Keeps a conversation. Whether the browser took it. */
export function save(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    unkept.delete(conversation.id);
    return true;
  } catch {
    unkept.set(conversation.id, conversation);
    return false;
  }
}

export function remove(id) {
  unkept.delete(id);
  try {
    localStorage.removeItem(PREFIX + id);
  } catch {
    // It was not kept.
  }
}

/** What a list shows for it. */
export function titleOf({ title, turns }) {
  const first = turns.find((turn) => turn.role === "user")?.content ?? "";
  return title || first.trim().split("\n")[0].slice(0, 60) || "New conversation";
}

/** The turns as messages of a request. */
export function messages(turns) {
  return turns.map((turn) => {
    const message = { role: turn.role, content: turn.content };
    if (turn.thought) message.reasoning_content = turn.thought;
    if (turn.calls?.length) message.tool_calls = turn.calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
    if (turn.call) message.tool_call_id = turn.call;
    return message;
  });
}

/** A conversation as a file's text: its messages are those of a request. */
export function exported({ title, settings, turns }) {
  return JSON.stringify({ format: "qernel-conversation", version: 1, title, settings, messages: messages(turns) }, null, 2);
}

/**
 * The conversation of a file: one that was exported, or anything else with `messages` as OpenAI has them.
 *
 * Throws what is wrong with it.
 */
export function imported(text, settings) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("expected a conversation as JSON, found something else");
  }
  const list = Array.isArray(file) ? file : file?.messages;
  if (!Array.isArray(list)) throw new Error("expected a conversation with a list of `messages`, found none");
  const system = list.filter((message) => ["system", "developer"].includes(message?.role)).map((message) => textOf(message.content));
  const turns = list.filter((message) => !["system", "developer"].includes(message?.role)).map(turnOf);
  const given = typeof file.settings === "object" && file.settings !== null ? file.settings : {};
  const made = { ...create({ ...settings, ...given }), title: typeof file.title === "string" ? file.title : "", turns };
  if (system.length) made.settings.system = system.join("\n\n");
  return checked(made);
}

/** The text of a message's content, which may be in parts. */
function textOf(content) {
  if (Array.isArray(content)) return content.map((part) => part?.text ?? "").join("");
  return typeof content === "string" ? content : "";
}

function turnOf(message, i) {
  if (!ROLES.includes(message?.role)) throw new Error(`message ${i + 1}: expected the role user, assistant, tool or system`);
  const turn = { role: message.role, content: textOf(message.content) };
  if (typeof message.reasoning_content === "string") turn.thought = message.reasoning_content;
  if (typeof message.tool_call_id === "string") turn.call = message.tool_call_id;
  if (Array.isArray(message.tool_calls)) {
    turn.calls = message.tool_calls.map((call) => ({
      id: String(call?.id ?? ""),
      name: String(call?.function?.name ?? ""),
      arguments: String(call?.function?.arguments ?? ""),
    }));
  }
  return turn;
}

/** What is read was perhaps written by another program. */
function checked({ id, title, updated, settings, turns }) {
  const isTurn = (turn) => ROLES.includes(turn?.role) && typeof turn.content === "string" && (turn.calls === undefined || Array.isArray(turn.calls));
  if (!Array.isArray(turns) || !turns.every(isTurn)) throw new Error("expected turns with a role and a text");
  const texts = Object.entries(settings ?? {}).filter(([, value]) => typeof value === "string");
  return { id, title: String(title ?? ""), updated: Number(updated) || 0, settings: Object.fromEntries(texts), turns };
}
