// @ai-sdk/anthropic: text, stream, thinking, an object, an error.
// Prints one JSON object. Arguments: the server's URL up to /v1, and the model.
import { createAnthropic } from "@ai-sdk/anthropic";
import { APICallError, Output, generateText, streamText } from "ai";
import { z } from "zod";

const [baseURL, name] = process.argv.slice(2);
const anthropic = createAnthropic({ baseURL, apiKey: "none" });
const options = { model: anthropic(name), maxOutputTokens: 400, maxRetries: 0 };
const thinking = { providerOptions: { anthropic: { thinking: { type: "enabled", budgetTokens: 1024 } } } };
const sum = { prompt: "What is 38 + 45?" };

async function streamed(fields) {
  const parts = [];
  const result = streamText({ ...options, ...fields, onError: ({ error }) => { throw error; } });
  for await (const part of result.fullStream) parts.push(part);
  const text = (type) => parts.filter((part) => part.type === type).map((part) => part.text).join("");
  return { text: text("text-delta"), thinking: text("reasoning-delta"), finish: await result.finishReason, usage: await result.usage };
}

const answers = { text: (await generateText({ ...options, ...sum })).text };
answers.stream = await streamed(sum);
answers.thought = await streamed({ ...sum, ...thinking });
const { output } = await generateText({ ...options, prompt: "Two days of weather in Rome.",
  output: Output.object({ schema: z.object({ city: z.enum(["Rome", "Paris"]), days: z.literal([1, 2, 3]) }) }) });
answers.object = output;
try {
  await generateText({ ...options, ...sum, model: anthropic("another-model") });
} catch (error) {
  answers.error = APICallError.isInstance(error) ? [error.statusCode, error.message] : String(error);
}
console.log(JSON.stringify(answers));
