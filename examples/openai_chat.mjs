// Chat completions with OpenAI's JavaScript SDK: one question in every mode, streamed, with the thinking and the counts.
//
//     npm install openai
//     node examples/openai_chat.mjs
//
// TWOGEAR_URL is where the server is, TWOGEAR_API_KEY the key, if it needs one.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.TWOGEAR_URL ?? "http://127.0.0.1:8000"}/v1`,
  apiKey: process.env.TWOGEAR_API_KEY ?? "none",
});
const model = (await client.models.list()).data[0].id;

for (const mode of ["standard", "reasoning"]) {
  console.log(`# ${mode}`);
  const stream = await client.chat.completions.create({
    model,
    messages: [{ role: "user", content: "What is 303 + 948 - 105?" }],
    stream: true,
    stream_options: { include_usage: true },
    reasoning_mode: mode, // sent as it is
  });
  for await (const chunk of stream) {
    for (const { delta } of chunk.choices) process.stdout.write(delta.reasoning_content ?? delta.content ?? "");
    if (chunk.usage) {
      const { completion_tokens, completion_tokens_details } = chunk.usage;
      console.log(`\n(${completion_tokens} tokens, ${completion_tokens_details.reasoning_tokens} of them thinking)`);
    }
  }
}
