/** Answers of the server as they come. */

/** What an answer that is an error says. */
export async function fault(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
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

/** Adds the piece of a call to those of the turn. */
function addCall(turn, { index, id, function: piece }) {
  turn.calls ??= [];
  const call = (turn.calls[index] ??= { id: "", name: "", arguments: "" });
  call.id ||= id ?? "";
  call.name ||= piece?.name ?? "";
  call.arguments += piece?.arguments ?? "";
}

/**
 * Asks for an answer and adds what comes of it to `turn`: its text, what the model thinks, its calls, why it ended and what it cost.
 * `changed` is called with every piece.
 */
export async function answer(body, turn, changed, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw new Error(await fault(response));
  const stats = (turn.stats = { tokens: 0, seconds: 0, used: 0 });
  let first = null;
  for await (const data of events(response)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) {
      stats.tokens = chunk.usage.completion_tokens;
      stats.used = (chunk.usage.prompt_tokens ?? 0) + stats.tokens;
    }
    const choice = chunk.choices[0];
    if (!choice) continue;
    turn.reason = choice.finish_reason ?? turn.reason;
    const { reasoning_content: thought, content, tool_calls: calls } = choice.delta;
    if (!thought && !content && !calls) continue;
    first ??= performance.now();
    stats.tokens += 1;
    turn.thought = (turn.thought ?? "") + (thought ?? "");
    turn.content += content ?? "";
    calls?.forEach((call) => addCall(turn, call));
    stats.seconds = (performance.now() - first) / 1000;
    changed();
  }
}

/** What an answer cost, in words; `context` is the length of the longest sequence, if that is known. */
export function cost({ stats, reason }, context) {
  const words = [];
  if (stats?.tokens) words.push(`${stats.tokens} tokens`);
  // The first token is there when the clock begins.
  if (stats?.tokens > 1 && stats.seconds > 0) words.push(`${((stats.tokens - 1) / stats.seconds).toFixed(1)} tokens/s`);
  if (stats?.used && context) words.push(`context ${stats.used} of ${context} (${Math.round((100 * stats.used) / context)} %)`);
  if (reason === "length") words.push("cut off by the limit");
  if (reason === "stopped") words.push("stopped");
  return words.join(", ");
}
