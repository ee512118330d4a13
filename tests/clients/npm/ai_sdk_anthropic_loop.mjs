// @ai-sdk/anthropic in a loop with a tool, without thinking and with it.
// Prints one JSON object. Arguments: the server's URL up to /v1, and the model.
import { createAnthropic } from "@ai-sdk/anthropic";
import { generateText, stepCountIs, tool } from "ai";
import { z } from "zod";

const [baseURL, name] = process.argv.slice(2);
const anthropic = createAnthropic({ baseURL, apiKey: "none" });
const weather = tool({
  description: "Get the weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => (city === "Rome" ? { temperature: 21, condition: "sunny" } : "unknown"),
});

async function looped(thinking) {
  const result = await generateText({
    model: anthropic(name),
    prompt: "What is the weather in Rome?",
    tools: { get_weather: weather },
    stopWhen: stepCountIs(3),
    maxOutputTokens: 400,
    maxRetries: 0,
    providerOptions: { anthropic: { thinking } },
  });
  return { text: result.text, steps: result.steps.map((step) => step.toolCalls.map((call) => [call.toolName, call.input])) };
}

console.log(JSON.stringify({
  disabled: await looped({ type: "disabled" }),
  enabled: await looped({ type: "enabled", budgetTokens: 1024 }),
}));
