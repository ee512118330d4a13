// @ai-sdk/openai in a loop with a tool: with what the server stores, which is the default, and without.
// Prints one JSON object. Arguments: the server's URL up to /v1, and the model.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, stepCountIs, tool } from "ai";
import { z } from "zod";

const [baseURL, name] = process.argv.slice(2);
const openai = createOpenAI({ baseURL, apiKey: "none" });
const weather = tool({
  description: "Get the weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => (city === "Rome" ? { temperature: 21, condition: "sunny" } : "unknown"),
});

async function looped(options) {
  const result = await generateText({
    model: openai(name),
    prompt: "What is the weather in Rome?",
    tools: { get_weather: weather },
    stopWhen: stepCountIs(3),
    maxRetries: 0,
    providerOptions: { openai: options },
  });
  return { text: result.text, steps: result.steps.map((step) => step.toolCalls.map((call) => [call.toolName, call.input])) };
}

const thinking = { forceReasoning: true, reasoningEffort: "low", reasoningSummary: "auto" };
console.log(JSON.stringify({
  stored: await looped(thinking),
  stateless: await looped({ ...thinking, store: false, include: ["reasoning.encrypted_content"] }),
}));
