// @ai-sdk/openai with its defaults, which are /v1/responses: texts, streams, thinking, tools, objects, errors.
// Prints one JSON object. Arguments: the server's URL up to /v1, and the model.
import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, Output, generateText, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, name] = process.argv.slice(2);
const openai = createOpenAI({ baseURL, apiKey: "none" });
const options = { model: openai(name), maxOutputTokens: 600, maxRetries: 0 };
const thinking = { openai: { forceReasoning: true, reasoningEffort: "low", reasoningSummary: "auto" } };
async function streamed(fields) {
  const parts = [];
  const result = streamText({ ...options, ...fields, onError: ({ error }) => { throw error; } });
  for await (const part of result.fullStream) parts.push(part);
  const text = (type) => parts.filter((part) => part.type === type).map((part) => part.text).join("");
  return { text: text("text-delta"), thinking: text("reasoning-delta"), finish: await result.finishReason, usage: await result.usage };
}

const sum = { prompt: "What is 38 + 45?" };
const answers = { text: (await generateText({ ...options, ...sum })).text };
answers.stream = await streamed(sum);
answers.thought = await streamed({ ...sum, providerOptions: thinking });
answers.mode = await streamed({ ...sum, model: openai(`${name}:reasoning`) });
const { output } = await generateText({ ...options, prompt: "Two days of weather in Rome.",
  output: Output.object({ schema: z.object({ city: z.enum(["Rome", "Paris"]), days: z.literal([1, 2, 3]) }) }) });
answers.object = output;
answers.forced = (await generateText({ ...options, prompt: "What is the weather in Rome?", toolChoice: "required",
  tools: { get_weather: tool({ description: "Get the weather in a city", inputSchema: z.object({ city: z.enum(["Rome", "Oslo"]) }) }) },
})).toolCalls.map((call) => [call.toolName, typeof call.input.city]);
try {
  await generateText({ ...options, ...sum, temperature: 5 });
} catch (error) {
  answers.error = APICallError.isInstance(error) ? [error.statusCode, error.message] : String(error);
}
console.log(JSON.stringify(answers));
