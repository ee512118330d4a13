/** From a conversation and its settings to the body of a chat completion. */

import type { ChatBody, ChatMessage } from "../server/types";
import { chosenRun, type Settings, type Turn } from "./model";

/** The sampling fields that can be set, with what each does. `whole`: a whole number. */
export const SAMPLING = [
  { name: "temperature", about: "0 takes the likeliest token", whole: false },
  { name: "top_p", about: "share of the likeliest tokens", whole: false },
  { name: "top_k", about: "so many likeliest tokens", whole: true },
  { name: "min_p", about: "least share of the likeliest", whole: false },
  { name: "presence_penalty", about: "against any repetition", whole: false },
  { name: "frequency_penalty", about: "against frequent repetition", whole: false },
  { name: "repetition_penalty", about: "1 changes nothing", whole: false },
  { name: "seed", about: "the same draw each time", whole: true },
  { name: "max_completion_tokens", about: "thinking and answer", whole: true },
] as const;

const TOP_LOGPROBS = 5;

/** Settings that cannot be sent; the message names the field and what would be right. */
export class BadSetting extends Error {}

/** The body for `mode`; an empty one leaves the mode to the server. Throws BadSetting. */
export function bodyOf(turns: Turn[], settings: Settings, mode: string, thinks: boolean): ChatBody {
  const body: ChatBody = {
    model: settings.model,
    messages: messagesOf(turns, settings.system),
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
  if (mode !== "") body.reasoning_mode = mode;
  if (thinks && settings.budget.trim() !== "") body.thinking_token_budget = numberOf("Thinking budget", settings.budget, true);
  for (const { name, whole } of SAMPLING) {
    const typed = settings.sampling[name]?.trim() ?? "";
    if (typed !== "") body[name] = numberOf(name, typed, whole);
  }
  const tools = toolsOf(settings.tools);
  if (tools !== null) body.tools = tools;
  const schema = schemaOf(settings.schema);
  if (schema !== null) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  if (settings.logprobs) Object.assign(body, { logprobs: true, top_logprobs: TOP_LOGPROBS });
  return body;
}

/** The tools as typed: a list of functions, each bare or as OpenAI has it. Null: none. Throws BadSetting. */
export function toolsOf(text: string): unknown[] | null {
  if (text.trim() === "") return null;
  const tools = jsonOf("Tools", text);
  if (!Array.isArray(tools)) throw new BadSetting('Tools: a JSON list is needed, as [{"name": "clock", "parameters": {"type": "object"}}].');
  return tools.map((tool: unknown) => (isObject(tool) && !("type" in tool) ? { type: "function", function: tool } : tool));
}

/** Null: none. Throws BadSetting. */
export function schemaOf(text: string): object | null {
  if (text.trim() === "") return null;
  const schema = jsonOf("JSON schema", text);
  if (!isObject(schema)) throw new BadSetting('JSON schema: an object is needed, as {"type": "object"}.');
  return schema;
}

function messagesOf(turns: Turn[], system: string): ChatMessage[] {
  const head: ChatMessage[] = system.trim() === "" ? [] : [{ role: "system", content: system }];
  return [...head, ...turns.flatMap(messagesOfTurn)];
}

function messagesOfTurn(turn: Turn): ChatMessage[] {
  if (turn.role === "user") return [{ role: "user", content: turn.text }];
  if (turn.role === "tool") return turn.results.map(({ id, content }) => ({ role: "tool", tool_call_id: id, content }));
  const run = chosenRun(turn);
  if (run === undefined) return [];
  const calls = run.progress.value.toolCalls;
  const content = run.answer.text;
  if (calls.length > 0) return [{ role: "assistant", content: content === "" ? null : content, tool_calls: calls }];
  return content === "" ? [] : [{ role: "assistant", content }];
}

function numberOf(name: string, text: string, whole: boolean): number {
  const number = Number(text);
  if (!Number.isFinite(number) || (whole && !Number.isInteger(number)))
    throw new BadSetting(`${name}: ${JSON.stringify(text)} is no ${whole ? "whole " : ""}number.`);
  return number;
}

function jsonOf(name: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new BadSetting(`${name}: this is no JSON (${(error as Error).message}).`);
  }
}

function isObject(value: unknown): value is object {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
