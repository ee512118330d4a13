/** The request that a run was, as code for a terminal or a program, in any of the server's APIs. */

import { addressOf } from "../server/api";
import type { ChatBody, ChatMessage } from "../server/types";

export const APIS = ["Chat completions", "Responses", "Messages"] as const;
export const LANGUAGES = ["curl", "Python", "JavaScript"] as const;
export type Api = (typeof APIS)[number];
export type Language = (typeof LANGUAGES)[number];

type Body = Record<string, unknown>;

/** The fields that the Python packages of OpenAI and Anthropic name; the others go into their `extra_body`. */
const KNOWN: Record<Api, ReadonlySet<string>> = {
  "Chat completions": new Set([
    ...["model", "messages", "stream", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"],
    ...["max_completion_tokens", "tools", "response_format", "logprobs", "top_logprobs"],
  ]),
  Responses: new Set(["model", "input", "instructions", "stream", "temperature", "top_p", "max_output_tokens", "tools", "text", "include", "top_logprobs"]),
  Messages: new Set(["model", "messages", "system", "stream", "max_tokens", "tools"]),
};
const PATHS: Record<Api, string> = { "Chat completions": "v1/chat/completions", Responses: "v1/responses", Messages: "v1/messages" };
const CALLS: Record<Api, string> = { "Chat completions": "chat.completions.create", Responses: "responses.create", Messages: "messages.create" };
const SAME_IN_ALL = ["reasoning_mode", "thinking_token_budget", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed"];
const SAME_IN_MESSAGES = ["reasoning_mode", "thinking_token_budget", "temperature", "top_p", "top_k"];
const MESSAGES_LIMIT = 4096;

/** The code, without the key: it stands in the environment. */
export function snippet(body: ChatBody, api: Api, language: Language, withKey: boolean): string {
  const sent = bodyIn(api, body);
  if (language === "curl") return curl(sent, api, withKey);
  return language === "Python" ? python(sent, api) : javaScript(sent, api);
}

function bodyIn(api: Api, body: ChatBody): Body {
  if (api === "Responses") return responsesBody(body);
  return api === "Messages" ? messagesBody(body) : body;
}

function responsesBody(body: ChatBody): Body {
  const system = body.messages.find((message) => message.role === "system");
  const format = body.response_format as { json_schema: object } | undefined;
  return {
    model: body.model,
    ...(system === undefined ? {} : { instructions: system.content }),
    input: body.messages.filter((message) => message.role !== "system").flatMap(itemsOf),
    ...picked(body, SAME_IN_ALL),
    ...(body.max_completion_tokens === undefined ? {} : { max_output_tokens: body.max_completion_tokens }),
    ...(body.tools === undefined ? {} : { tools: body.tools.map((tool) => ({ type: "function", ...functionOf(tool) })) }),
    ...(format === undefined ? {} : { text: { format: { type: "json_schema", ...format.json_schema } } }),
    ...(body.logprobs === true ? { include: ["message.output_text.logprobs"], top_logprobs: body.top_logprobs } : {}),
    stream: true,
  };
}

function itemsOf(message: ChatMessage): Body[] {
  if (message.role === "tool") return [{ type: "function_call_output", call_id: message.tool_call_id, output: message.content }];
  const said: Body[] = message.content === null ? [] : [{ role: message.role, content: message.content }];
  const calls = message.role === "assistant" ? (message.tool_calls ?? []) : [];
  return [...said, ...calls.map((call) => ({ type: "function_call", call_id: call.id, name: call.function.name, arguments: call.function.arguments }))];
}

function messagesBody(body: ChatBody): Body {
  const system = body.messages.find((message) => message.role === "system");
  const format = body.response_format as { json_schema: { schema: object } } | undefined;
  return {
    model: body.model,
    ...(system === undefined ? {} : { system: system.content }),
    messages: body.messages.filter((message) => message.role !== "system").map(anthropicMessage),
    max_tokens: body.max_completion_tokens ?? MESSAGES_LIMIT,
    ...picked(body, SAME_IN_MESSAGES),
    ...(body.tools === undefined ? {} : { tools: body.tools.map(anthropicTool) }),
    ...(format === undefined ? {} : { output_config: { format: { type: "json_schema", schema: format.json_schema.schema } } }),
    stream: true,
  };
}

function anthropicMessage(message: ChatMessage): Body {
  if (message.role === "tool")
    return { role: "user", content: [{ type: "tool_result", tool_use_id: message.tool_call_id, content: message.content }] };
  if (message.role !== "assistant" || message.tool_calls === undefined) return { role: message.role, content: message.content };
  const said = message.content === null ? [] : [{ type: "text", text: message.content }];
  const calls = message.tool_calls.map((call) => ({ type: "tool_use", id: call.id, name: call.function.name, input: inputOf(call.function.arguments) }));
  return { role: "assistant", content: [...said, ...calls] };
}

function anthropicTool(tool: unknown): Body {
  const { name, description, parameters } = functionOf(tool);
  return { name, ...(description === undefined ? {} : { description }), input_schema: parameters ?? { type: "object" } };
}

function functionOf(tool: unknown): Body {
  return ((tool as { function?: Body }).function ?? tool) as Body;
}

function inputOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}

function curl(body: Body, api: Api, withKey: boolean): string {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const key = withKey ? ` \\\n  -H "Authorization: Bearer $TWOGEAR_API_KEY"` : "";
  return `curl -N ${addressOf(PATHS[api])} \\\n  -H "Content-Type: application/json"${key} \\\n  -d '${json}'`;
}

function python(body: Body, api: Api): string {
  const [known, extra] = divided(body, api);
  const fields = Object.entries(known).map(([name, value]) => `    ${name}=${inPython(value, 1)},`);
  if (Object.keys(extra).length > 0) fields.push(`    extra_body=${inPython(extra, 1)},`);
  const maker = api === "Messages" ? "anthropic import Anthropic" : "openai import OpenAI";
  const client = api === "Messages" ? `Anthropic(base_url="${base(api)}", api_key=key)` : `OpenAI(base_url="${base(api)}", api_key=key)`;
  return [
    "import os",
    "",
    `from ${maker}`,
    "",
    'key = os.environ.get("TWOGEAR_API_KEY", "none")',
    `client = ${client}`,
    `stream = client.${CALLS[api]}(`,
    ...fields,
    ")",
    "for event in stream:",
    "    print(event)",
  ].join("\n");
}

function javaScript(body: Body, api: Api): string {
  const name = api === "Messages" ? "Anthropic" : "OpenAI";
  const library = api === "Messages" ? "@anthropic-ai/sdk" : "openai";
  return [
    `import ${name} from "${library}";`,
    "",
    `const client = new ${name}({ baseURL: "${base(api)}", apiKey: process.env.TWOGEAR_API_KEY ?? "none" });`,
    `const stream = await client.${CALLS[api]}(${JSON.stringify(body, null, 2)});`,
    "for await (const event of stream) console.log(JSON.stringify(event));",
  ].join("\n");
}

/** Anthropic's packages add `/v1` themselves. */
function base(api: Api): string {
  return addressOf(api === "Messages" ? "." : "v1").replace(/\/$/, "");
}

function divided(body: Body, api: Api): [Body, Body] {
  const entries = Object.entries(body);
  return [Object.fromEntries(entries.filter(([name]) => KNOWN[api].has(name))), Object.fromEntries(entries.filter(([name]) => !KNOWN[api].has(name)))];
}

function picked(body: ChatBody, names: string[]): Body {
  return Object.fromEntries(names.filter((name) => body[name] !== undefined).map((name) => [name, body[name]]));
}

/** A JSON value as Python writes it. */
function inPython(value: unknown, depth: number): string {
  const [inner, outer] = ["    ".repeat(depth + 1), "    ".repeat(depth)];
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const isList = Array.isArray(value);
  const lines = isList
    ? value.map((one) => inner + inPython(one, depth + 1))
    : Object.entries(value).map(([name, one]) => `${inner}${JSON.stringify(name)}: ${inPython(one, depth + 1)}`);
  const [open, close] = isList ? "[]" : "{}";
  return lines.length === 0 ? `${open}${close}` : `${open}\n${lines.join(",\n")},\n${outer}${close}`;
}
