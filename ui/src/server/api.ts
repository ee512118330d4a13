/** Requests to the server that the page came from. */

import { signal } from "@preact/signals";
import type { ChatBody, ErrorBody, Health, ListedModel } from "./types";

const KEY = "twogear.key";

/** The API key that was typed in; kept until the tab is closed, where the browser allows that. */
export const apiKey = signal(storedKey());

export function setApiKey(key: string): void {
  apiKey.value = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // Without storage it lives as long as the page.
  }
}

/** An answer of the server that is an error; `status` 0: there was no answer at all. */
export class ServerError extends Error {
  constructor(
    readonly status: number,
    readonly body: ErrorBody,
    readonly retryAfter: number | null = null,
  ) {
    super(body.message);
  }
}

/** The address of an API's path, under whatever path a proxy serves the page. */
export function addressOf(path: string): string {
  return new URL(path, document.baseURI).href;
}

export async function fetchModels(): Promise<ListedModel[]> {
  const response = await request("v1/models");
  const listed = (await response.json()) as { data?: ListedModel[] };
  return listed.data ?? [];
}

/** What /health says, whether the server takes requests or not. */
export async function fetchHealth(): Promise<Health> {
  const response = await send("health", {});
  return (await response.json()) as Health;
}

export async function fetchVersion(): Promise<{ version: string; engine: string | null }> {
  return (await (await request("version")).json()) as { version: string; engine: string | null };
}

export async function fetchMetrics(): Promise<string> {
  return (await request("metrics")).text();
}

/** Ends the thinking of a running completion; the answer follows in its stream. */
export async function endThinking(completionId: string): Promise<void> {
  await post(`v1/chat/completions/${encodeURIComponent(completionId)}/control`, { action: "end_reasoning" });
}

export async function startCompletion(body: ChatBody, signal: AbortSignal): Promise<ReadableStream<Uint8Array>> {
  const response = await post("v1/chat/completions", body, signal);
  if (response.body === null) throw new ServerError(0, { message: "The response has no body." });
  return response.body;
}

function post(path: string, body: unknown, signal?: AbortSignal): Promise<Response> {
  const init: RequestInit = { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  return request(path, signal === undefined ? init : { ...init, signal });
}

async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const response = await send(path, init);
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function send(path: string, init: RequestInit): Promise<Response> {
  const headers = new Headers(init.headers);
  if (apiKey.value !== "") headers.set("Authorization", `Bearer ${apiKey.value}`);
  try {
    return await fetch(addressOf(path), { ...init, headers, cache: "no-store" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ServerError(0, { message: "The server cannot be reached." });
  }
}

async function errorOf(response: Response): Promise<ServerError> {
  const seconds = Number(response.headers.get("Retry-After") ?? NaN);
  const retryAfter = Number.isFinite(seconds) ? seconds : null;
  try {
    const { error } = (await response.json()) as { error: ErrorBody };
    return new ServerError(response.status, error, retryAfter);
  } catch {
    return new ServerError(response.status, { message: `The server answered ${response.status} ${response.statusText}.` }, retryAfter);
  }
}

function storedKey(): string {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}
