// OpenAI's own client for JavaScript, against a running server with the haiku model.
//
// Called by run.sh with the server's address and its key; see docs/server.md.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [base, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "Write a haiku about the sea with the word forty-two" }];
const settings = { model: "haiku", messages, seed: 1, temperature: 0.7 };

const whole = await client.chat.completions.create(settings);
const text = whole.choices[0].message.content;
assert.match(text, /forty-two/);

let streamed = "";
let usage = null;
for await (const chunk of await client.chat.completions.create({ ...settings, stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
console.log("ok chat");

const sail = {
  type: "function",
  function: {
    name: "sail",
    parameters: { type: "object", properties: { days: { enum: [1, 2] } }, required: ["days"], additionalProperties: false },
  },
};
const called = await client.chat.completions.create({ ...settings, tools: [sail], tool_choice: "required", parallel_tool_calls: false });
const message = called.choices[0].message;
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.ok([1, 2].includes(JSON.parse(message.tool_calls[0].function.arguments).days));
const turns = [...messages, message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: "a gale" }];
assert.ok((await client.chat.completions.create({ ...settings, messages: turns, tools: [sail], max_tokens: 3 })).usage.completion_tokens > 0);
const runner = client.chat.completions.stream({ ...settings, tools: [sail], tool_choice: "required", parallel_tool_calls: false });
assert.equal((await runner.finalChatCompletion()).choices[0].message.tool_calls.length, 1);
console.log("ok tools");

const format = { type: "json_schema", json_schema: { name: "sail", strict: true, schema: sail.function.parameters } };
const parsed = await client.chat.completions.parse({ ...settings, response_format: format });
assert.ok([1, 2].includes(parsed.choices[0].message.parsed.days));
console.log("ok formats");

const nothing = { user: "ann", store: false, metadata: {}, logit_bias: {}, service_tier: "auto", reasoning_effort: "low", verbosity: "low" };
assert.equal((await client.chat.completions.create({ ...settings, ...nothing })).choices[0].message.content, text);
await assert.rejects(client.chat.completions.create({ ...settings, logit_bias: { 1: 1e7 } }), { status: 400, param: "logit_bias" });
const long = [{ role: "user", content: "the sea ".repeat(600) }];
await assert.rejects(client.chat.completions.create({ ...settings, messages: long }), { code: "context_length_exceeded" });
assert.match((await client.responses.create({ model: "haiku", input: "Hi", max_output_tokens: 3 })).id, /^resp_/);
console.log("ok fields and errors");
