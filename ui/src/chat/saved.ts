/** The file form of conversations, as they are kept in the browser and exported; what is read is checked. */

import { signal } from "@preact/signals";
import type { ChatBody, TokenLogprob } from "../server/types";
import { TextFlow } from "./flow";
import { AT_START, isRunning, NO_SETTINGS, newId, type Conversation, type ModelTurn, type Progress, type Run, type Settings, type Turn } from "./model";

const FORMAT = "twogear-conversations";
const FORMAT_VERSION = 1;

/** Text that is no export of this page; the message says why. */
export class NotAnExport extends Error {}

type Fields = Record<string, unknown>;

export function exported(conversations: Conversation[]): string {
  return JSON.stringify({ format: FORMAT, version: FORMAT_VERSION, conversations }, null, 2);
}

/** The conversations in an exported file. Throws NotAnExport. */
export function imported(text: string): Conversation[] {
  let file: unknown;
  try {
    file = JSON.parse(text);
  } catch {
    throw new NotAnExport("This file is no JSON.");
  }
  const fields = objectOf(file, "The file");
  if (fields.format !== FORMAT) throw new NotAnExport(`This is no export of Twogear: its "format" is not "${FORMAT}".`);
  if (fields.version !== FORMAT_VERSION)
    throw new NotAnExport(`This export has version ${String(fields.version)}; this page reads version ${FORMAT_VERSION}.`);
  return listOf(fields.conversations, "conversations").map((each, at) => conversationOf(each, `conversations[${at}]`));
}

/** Throws NotAnExport, with `where` it is wrong. */
export function conversationOf(value: unknown, where: string): Conversation {
  const fields = objectOf(value, where);
  return {
    id: typeof fields.id === "string" ? fields.id : newId(),
    title: signal(textOf(fields.title, `${where}.title`)),
    updated: numberOf(fields.updated, `${where}.updated`),
    settings: signal(settingsOf(fields.settings, `${where}.settings`)),
    turns: signal(listOf(fields.turns, `${where}.turns`).map((turn, at) => turnOf(turn, `${where}.turns[${at}]`))),
  };
}

function turnOf(value: unknown, where: string): Turn {
  const fields = objectOf(value, where);
  switch (fields.role) {
    case "user":
      return { role: "user", text: textOf(fields.text, `${where}.text`) };
    case "tool":
      return { role: "tool", results: listOf(fields.results, `${where}.results`).map((one, at) => resultOf(one, `${where}.results[${at}]`)) };
    case "assistant":
      return modelTurnOf(fields, where);
    default:
      throw new NotAnExport(`${where}.role is none of user, assistant, tool.`);
  }
}

function modelTurnOf(fields: Fields, where: string): ModelTurn {
  const runs = listOf(fields.runs, `${where}.runs`).map((run, at) => runOf(run, `${where}.runs[${at}]`));
  const chosen = numberOf(fields.chosen, `${where}.chosen`);
  if (runs[chosen] === undefined) throw new NotAnExport(`${where}.chosen is none of its runs.`);
  return { role: "assistant", runs: signal(runs), chosen: signal(chosen), sideBySide: signal(fields.sideBySide === true) };
}

function resultOf(value: unknown, where: string): { id: string; name: string; content: string } {
  const fields = objectOf(value, where);
  return {
    id: textOf(fields.id, `${where}.id`),
    name: textOf(fields.name, `${where}.name`),
    content: textOf(fields.content, `${where}.content`),
  };
}

function runOf(value: unknown, where: string): Run {
  const fields = objectOf(value, where);
  const body = objectOf(fields.body, `${where}.body`);
  listOf(body.messages, `${where}.body.messages`);
  return {
    id: newId(),
    mode: textOf(fields.mode, `${where}.mode`),
    thinks: fields.thinks === true,
    body: body as ChatBody,
    thinking: new TextFlow(textOf(fields.thinking, `${where}.thinking`)),
    answer: new TextFlow(textOf(fields.answer, `${where}.answer`)),
    logprobs: signal(listOf(fields.logprobs, `${where}.logprobs`).map((entry, at) => logprobOf(entry, `${where}.logprobs[${at}]`))),
    progress: signal(progressOf(fields.progress, `${where}.progress`)),
  };
}

function logprobOf(value: unknown, where: string): TokenLogprob {
  const fields = objectOf(value, where);
  const pair = (one: Fields, at: string) => ({ token: textOf(one.token, `${at}.token`), logprob: numberOf(one.logprob, `${at}.logprob`) });
  const top = listOf(fields.top_logprobs, `${where}.top_logprobs`);
  return { ...pair(fields, where), top_logprobs: top.map((one, at) => pair(objectOf(one, where), `${where}.top_logprobs[${at}]`)) };
}

/** Of the fields that are there and of the right type. What ran when it was kept has ended since. */
function progressOf(value: unknown, where: string): Progress {
  const fields = objectOf(value, where);
  const progress = fitting(AT_START, fields);
  const calls = listOf(fields.toolCalls ?? [], `${where}.toolCalls`).map((each, at) => {
    const call = objectOf(each, `${where}.toolCalls[${at}]`);
    const called = objectOf(call.function, `${where}.toolCalls[${at}].function`);
    const [name, written] = [textOf(called.name, `${where}: a call's name`), textOf(called.arguments, `${where}: a call's arguments`)];
    return { id: textOf(call.id, `${where}: a call's id`), type: "function" as const, function: { name, arguments: written } };
  });
  const ended: Partial<Progress> = isRunning(progress) ? { phase: "failed", error: "The page was closed before the answer ended." } : {};
  return { ...progress, ...ended, toolCalls: calls, stalled: false };
}

function settingsOf(value: unknown, where: string): Settings {
  const fields = objectOf(value, where);
  const sampling = Object.entries(objectOf(fields.sampling ?? {}, `${where}.sampling`));
  return { ...fitting(NO_SETTINGS, fields), sampling: Object.fromEntries(sampling.filter((pair): pair is [string, string] => typeof pair[1] === "string")) };
}

/** `plain` with those of `fields` that have its fields' types; null may become a text or a number. */
function fitting<T extends object>(plain: T, fields: Fields): T {
  const fits = Object.entries(plain).filter(([name, own]) => {
    const given = fields[name];
    if (own === null) return given === null || typeof given === "string" || typeof given === "number";
    return typeof given === typeof own && typeof own !== "object";
  });
  return { ...plain, ...Object.fromEntries(fits.map(([name]) => [name, fields[name]])) };
}

function objectOf(value: unknown, where: string): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new NotAnExport(`${where} is no object.`);
  return value as Fields;
}

function listOf(value: unknown, where: string): unknown[] {
  if (!Array.isArray(value)) throw new NotAnExport(`${where} is no list.`);
  return value;
}

function textOf(value: unknown, where: string): string {
  if (typeof value !== "string") throw new NotAnExport(`${where} is no text.`);
  return value;
}

function numberOf(value: unknown, where: string): number {
  if (typeof value !== "number") throw new NotAnExport(`${where} is no number.`);
  return value;
}
