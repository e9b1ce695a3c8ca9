// The package `ai` with its providers, against a running server with the haiku model.
//
// Called by run.sh with the server's address and its key; see docs/server.md.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, streamText, tool } from "ai";

const [base, key] = process.argv.slice(2);
const address = { baseURL: `${base}/v1`, apiKey: key };
const models = {
  "openai-compatible": createOpenAICompatible({ name: "qernel", supportsStructuredOutputs: true, includeUsage: true, ...address })("haiku"),
  openai: createOpenAI(address).chat("haiku"),
};
const prompt = "Write a haiku about the sea with the word forty-two";
const schema = jsonSchema({
  type: "object", properties: { days: { enum: [1, 2] } }, required: ["days"], additionalProperties: false,
});

for (const [name, model] of Object.entries(models)) {
  const settings = { model, seed: 1, temperature: 0.7, maxRetries: 0, maxOutputTokens: 150 };
  const whole = await generateText({ ...settings, prompt });
  assert.match(whole.text, /forty-two/);
  const stream = streamText({ ...settings, prompt });
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  assert.equal(text, whole.text);
  assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);

  const { output } = await generateText({ ...settings, prompt: "Go", output: Output.object({ schema }) });
  assert.ok([1, 2].includes(output.days));

  // A call, its result, and what the model thought of it in an earlier step.
  const tools = { sail: tool({ description: "Sail.", inputSchema: schema }) };
  const called = await generateText({ ...settings, prompt: "Go", tools, toolChoice: "required" });
  assert.equal(called.toolCalls[0].toolName, "sail");
  const thought = { role: "assistant", content: [{ type: "reasoning", text: "a day, or two" }, { type: "text", text: "Two." }] };
  const { toolCallId, toolName, input } = called.toolCalls[0];
  const call = { type: "tool-call", toolCallId, toolName, input };
  const result = { type: "tool-result", toolCallId, toolName, output: { type: "text", value: "a gale" } };
  const steps = [{ role: "assistant", content: [call] }, { role: "tool", content: [result] }];
  const messages = [{ role: "user", content: "Go" }, thought, ...steps, { role: "user", content: "Sure?" }];
  assert.ok((await generateText({ ...settings, messages, tools, toolChoice: "none", maxOutputTokens: 3 })).usage.outputTokens > 0);
  console.log("ok", name);
}
