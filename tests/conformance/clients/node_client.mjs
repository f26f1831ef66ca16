// The openai npm client against the server: chat, stream, completion, response, embedding, an error. URL and MODEL come as arguments.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const greedy = { model, messages, temperature: 0, max_tokens: 8 };

const chat = await client.chat.completions.create(greedy);
const text = chat.choices[0].message.content;
assert.ok(text.length > 0);

let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...greedy, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(streamed, text);

const helper = client.chat.completions.stream(greedy);
assert.equal(await helper.finalContent(), text);

const completion = await client.completions.create({ model, prompt: "One, two,", max_tokens: 2, temperature: 0 });
assert.equal(completion.usage.completion_tokens, 2);

const response = await client.responses.create({ model, input: messages[0].content, temperature: 0, max_output_tokens: 8 });
assert.equal(response.output_text, text);
let deltas = "";
for await (const event of client.responses.stream({ model, input: messages[0].content, temperature: 0, max_output_tokens: 8 })) {
  if (event.type === "response.output_text.delta") deltas += event.delta;
}
assert.equal(deltas, text);

const embedded = await client.embeddings.create({ model, input: ["a", "b"] });
const length = Math.hypot(...embedded.data[0].embedding);
assert.ok(Math.abs(length - 1) < 1e-5);

await assert.rejects(client.chat.completions.create({ ...greedy, model: "gpt-4" }), (error) => error.code === "model_not_found");
assert.ok((await client.models.list()).data.some((each) => each.id === model));
console.log("ok");
