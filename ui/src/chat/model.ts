/** What a conversation is: turns of the reader, of the model (one run for each mode that was asked), of tools. */

import { signal, type Signal } from "@preact/signals";
import type { ChatBody, TokenLogprob, ToolCall } from "../server/types";
import { TextFlow } from "./flow";

export type Phase = "waiting" | "thinking" | "answering" | "done" | "stopped" | "failed";

/**
 * How far a run is. Times in milliseconds since it was sent; counts are the server's own. `firstToken`, `lastToken`: when the
 * first and the latest tokens came; `firstTokens`: how many had come with the first.
 */
export interface Progress {
  phase: Phase;
  completionId: string | null;
  promptTokens: number;
  cachedTokens: number;
  reasoningTokens: number;
  completionTokens: number;
  firstToken: number | null;
  firstTokens: number;
  lastToken: number | null;
  firstAnswer: number | null;
  elapsed: number;
  finish: string | null;
  reasoningFinish: string | null;
  error: string | null;
  toolCalls: ToolCall[];
  /** Whether nothing has come for a while. */
  stalled: boolean;
}

export interface Run {
  id: string;
  mode: string;
  thinks: boolean;
  body: ChatBody;
  thinking: TextFlow;
  answer: TextFlow;
  logprobs: Signal<TokenLogprob[]>;
  progress: Signal<Progress>;
}

export interface UserTurn {
  role: "user";
  text: string;
}

export interface ModelTurn {
  role: "assistant";
  runs: Signal<Run[]>;
  /** The run that the conversation goes on from. */
  chosen: Signal<number>;
  /** Whether all runs are shown side by side. */
  sideBySide: Signal<boolean>;
}

export interface ToolTurn {
  role: "tool";
  results: { id: string; name: string; content: string }[];
}

export type Turn = UserTurn | ModelTurn | ToolTurn;

/** What is asked for with each message. Texts are as typed; empty is the mode's own. */
export interface Settings {
  model: string;
  mode: string;
  system: string;
  budget: string;
  sampling: Record<string, string>;
  tools: string;
  schema: string;
  logprobs: boolean;
}

export interface Conversation {
  id: string;
  title: Signal<string>;
  updated: number;
  settings: Signal<Settings>;
  turns: Signal<Turn[]>;
}

export const NO_SETTINGS: Settings = {
  model: "",
  mode: "",
  system: "",
  budget: "",
  sampling: {},
  tools: "",
  schema: "",
  logprobs: false,
};

export const AT_START: Progress = {
  phase: "waiting",
  completionId: null,
  promptTokens: 0,
  cachedTokens: 0,
  reasoningTokens: 0,
  completionTokens: 0,
  firstToken: null,
  firstTokens: 0,
  lastToken: null,
  firstAnswer: null,
  elapsed: 0,
  finish: null,
  reasoningFinish: null,
  error: null,
  toolCalls: [],
  stalled: false,
};

/** Shorter spans are not shown: in some browsers the clock ticks in whole milliseconds, and what came in one piece has no span. */
const LEAST_SPAN = 10;

/** Tokens per second between the first arrival and the last. Null: most came with the first, or all too quickly to tell. */
export function tokenRate({ firstToken, firstTokens, lastToken, completionTokens }: Progress): number | null {
  const [span, later] = [measured((lastToken ?? 0) - (firstToken ?? 0)), completionTokens - firstTokens];
  return span === null || later < completionTokens / 2 ? null : (1000 * later) / span;
}

/** Milliseconds from the first token to the answer's first. Null: both came at once, or too quickly to tell. */
export function thinkingTime({ firstToken, firstAnswer, elapsed }: Progress): number | null {
  return measured((firstAnswer ?? elapsed) - (firstToken ?? elapsed));
}

function measured(span: number): number | null {
  return span < LEAST_SPAN ? null : span;
}

export function newConversation(settings: Settings): Conversation {
  return { id: newId(), title: signal(""), updated: Date.now(), settings: signal(settings), turns: signal([]) };
}

export function newRun(mode: string, thinks: boolean, body: ChatBody): Run {
  return {
    id: newId(),
    mode,
    thinks,
    body,
    thinking: new TextFlow(),
    answer: new TextFlow(),
    logprobs: signal([]),
    progress: signal(AT_START),
  };
}

export function modelTurn(runs: Run[]): ModelTurn {
  return { role: "assistant", runs: signal(runs), chosen: signal(0), sideBySide: signal(runs.length > 1) };
}

export function chosenRun(turn: ModelTurn): Run | undefined {
  return turn.runs.value[turn.chosen.value];
}

export function isRunning(progress: Progress): boolean {
  return progress.phase === "waiting" || progress.phase === "thinking" || progress.phase === "answering";
}

/** Unique enough; `crypto.randomUUID` is missing on pages that came over plain HTTP. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
