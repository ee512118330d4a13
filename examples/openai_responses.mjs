// The Responses API with OpenAI's JavaScript SDK: thinking as items, a conversation that the server keeps, a stream.
//
//     npm install openai
//     node examples/openai_responses.mjs
//
// TWOGEAR_URL is where the server is, TWOGEAR_API_KEY the key, if it needs one.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.TWOGEAR_URL ?? "http://127.0.0.1:8000"}/v1`,
  apiKey: process.env.TWOGEAR_API_KEY ?? "none",
});
const model = (await client.models.list()).data[0].id;

const first = await client.responses.create({ model, input: "What is 38 + 45?", reasoning: { effort: "low" } });
for (const item of first.output.filter(({ type }) => type === "reasoning"))
  console.log("thought:", item.content.map(({ text }) => text).join(""));
console.log("answer:", first.output_text);

const second = await client.responses.create({ model, input: "What is 1 + 2?", previous_response_id: first.id });
console.log("then:", second.output_text);

const stream = client.responses.stream({ model: `${model}:reasoning`, input: "What is 7 + 8?" });
for await (const event of stream)
  if (event.type === "response.reasoning_text.delta" || event.type === "response.output_text.delta")
    process.stdout.write(event.delta);
console.log();
