/** Whether the server is there and what it serves: asked again and again, so that the page comes back by itself. */

import { computed, signal } from "@preact/signals";
import { apiKey, fetchHealth, fetchModels, fetchVersion, ServerError } from "./api";
import type { ListedModel } from "./types";

const READY_PAUSE = 10_000;
const OTHER_PAUSE = 1_000;

export type Connection =
  | { state: "connecting" }
  | { state: "ready" }
  | { state: "loading"; progress: number; detail: string }
  | { state: "down"; detail: string }
  | { state: "key"; detail: string };

export interface Mode {
  name: string;
  thinks: boolean;
}

/** A model with its modes; `context` in tokens, null until it is known. */
export interface Model {
  name: string;
  context: number | null;
  modes: Mode[];
  defaultMode: string;
}

export const connection = signal<Connection>({ state: "connecting" });
export const models = signal<Model[]>([]);
export const version = signal<{ version: string; engine: string | null } | null>(null);
/** The version that the page was loaded from, once the server turned into another. */
export const formerVersion = signal<string | null>(null);
export const isReady = computed(() => connection.value.state === "ready");

let timer: ReturnType<typeof setTimeout> | undefined;

/** Begins to watch; also asks at once when the key changes, or the reader comes back to the page. */
export function watchServer(): void {
  apiKey.subscribe(() => void checkServer());
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) void checkServer();
  });
}

/** Asks now, and again after a while. */
export async function checkServer(): Promise<void> {
  clearTimeout(timer);
  connection.value = await look();
  clearTimeout(timer);
  timer = setTimeout(() => void checkServer(), connection.value.state === "ready" ? READY_PAUSE : OTHER_PAUSE);
}

async function look(): Promise<Connection> {
  try {
    const health = await fetchHealth();
    if (health.status === "loading")
      return { state: "loading", progress: health.progress ?? 0, detail: health.detail ?? "" };
    if (health.status !== "ok") return { state: "down", detail: `The server takes no requests now (${health.status}). ${health.detail ?? ""}` };
    if (connection.value.state !== "ready") await learn();
    return { state: "ready" };
  } catch (error) {
    if (error instanceof ServerError && (error.status === 401 || error.status === 403))
      return { state: "key", detail: error.message };
    return { state: "down", detail: error instanceof ServerError ? error.message : "The server's answer is not one of Twogear's." };
  }
}

/** What is served, and by which version. */
async function learn(): Promise<void> {
  models.value = grouped(await fetchModels());
  const now = await fetchVersion();
  if (version.value !== null && version.value.version !== now.version) formerVersion.value = version.value.version;
  version.value = now;
}

/** The listed names, one model with its modes for each root. */
function grouped(listed: ListedModel[]): Model[] {
  const byRoot = Map.groupBy(listed, (entry) => entry.root ?? entry.id);
  return [...byRoot].map(([name, entries]) => {
    const aliases = entries.filter((entry) => entry.id !== name && entry.reasoning_mode !== undefined);
    const own = entries.find((entry) => entry.id === name);
    return {
      name,
      context: own?.max_model_len ?? null,
      modes: aliases.map((entry) => ({ name: entry.reasoning_mode ?? "", thinks: entry.kind !== "direct" })),
      defaultMode: own?.reasoning_mode ?? "",
    };
  });
}
