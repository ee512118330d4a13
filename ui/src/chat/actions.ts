/** What the reader can do in a conversation. */

import { batch, computed, signal } from "@preact/signals";
import { models } from "../server/connection";
import { generate, stop } from "./generation";
import { chosenRun, isRunning, modelTurn, newRun, type Conversation, type ModelTurn, type Run, type Settings, type Turn } from "./model";
import { BadSetting, bodyOf } from "./request";
import { current, draft, save } from "./store";

const TITLE_LENGTH = 60;

/** Why the last thing asked for was not sent. */
export const problem = signal<string | null>(null);

/** The model that is asked: the chosen one, or the server's first. */
export const model = computed(() => models.value.find((one) => one.name === current.value.settings.value.model) ?? models.value[0]);
export const modes = computed(() => model.value?.modes ?? []);
/** The mode that is asked: the chosen one where the model has it, or its default. */
export const mode = computed(() => {
  const chosen = current.value.settings.value.mode;
  return modes.value.find((one) => one.name === chosen)?.name ?? model.value?.defaultMode ?? "";
});
/** The runs of the conversation that have not ended. */
export const runningRuns = computed(() =>
  current.value.turns.value.flatMap((turn) => (turn.role === "assistant" ? turn.runs.value.filter((run) => isRunning(run.progress.value)) : [])),
);
/** Whether there are any. What goes by this alone is not drawn anew with every frame of theirs. */
export const isBusy = computed(() => runningRuns.value.length > 0);

/** Keeps what was typed even before the first message; a mode chosen then is not worth a place in the list. */
export function change(changes: Partial<Settings>): void {
  const { settings, turns } = current.value;
  settings.value = { ...settings.value, ...changes };
  if (turns.value.length > 0 || changes.mode === undefined) save(current.value);
}

/** Sends what is typed, in these modes. */
export function send(asked: string[] = [mode.value]): void {
  const text = draft.value;
  if (text.trim() === "" || isBusy.value) return;
  if (ask([...current.value.turns.value, { role: "user", text }], asked)) draft.value = "";
}

/** Asks again from a changed message on; what came after it is gone. */
export function edit(at: number, text: string): boolean {
  return ask([...current.value.turns.value.slice(0, at), { role: "user", text }], [mode.value]);
}

/** Gives the results of the last turn's calls to the model. */
export function sendResults(results: { id: string; name: string; content: string }[], asked: string): boolean {
  return ask([...current.value.turns.value, { role: "tool", results }], [asked]);
}

/** Asks once more in `asked`, beside the runs that the last turn has; a failed one in that mode is replaced. */
export function retry(turn: ModelTurn, asked: string): void {
  const conversation = current.value;
  const before = conversation.turns.value.slice(0, conversation.turns.value.indexOf(turn));
  const run = prepared(before, conversation, asked);
  if (run === null) return;
  const kept = turn.runs.value.filter((one) => one.progress.value.phase !== "failed" || one.mode !== asked);
  batch(() => {
    turn.runs.value = [...kept, run];
    turn.chosen.value = kept.length;
  });
  void follow([run], conversation);
}

export function stopAll(): void {
  runningRuns.value.forEach(stop);
}

/** Chooses the run of a turn that the conversation goes on from. */
export function choose(turn: ModelTurn, index: number): void {
  turn.chosen.value = index;
  save(current.value);
}

export function showSideBySide(turn: ModelTurn, sideBySide: boolean): void {
  turn.sideBySide.value = sideBySide;
  save(current.value);
}

function ask(turns: Turn[], asked: string[]): boolean {
  const conversation = current.value;
  const runs = asked.map((one) => prepared(turns, conversation, one));
  if (runs.includes(null)) return false;
  const ready = runs.filter((run): run is Run => run !== null);
  batch(() => {
    conversation.turns.value = [...turns, modelTurn(ready)];
    if (conversation.title.value === "") conversation.title.value = titleOf(turns);
  });
  void follow(ready, conversation);
  return true;
}

function prepared(turns: Turn[], conversation: Conversation, asked: string): Run | null {
  const settings = { ...conversation.settings.value, model: model.value?.name ?? conversation.settings.value.model };
  const thinks = modes.value.find((one) => one.name === asked)?.thinks ?? false;
  try {
    const run = newRun(asked, thinks, bodyOf(turns, settings, asked, thinks));
    problem.value = null;
    return run;
  } catch (error) {
    if (!(error instanceof BadSetting)) throw error;
    problem.value = error.message;
    return null;
  }
}

async function follow(runs: Run[], conversation: Conversation): Promise<void> {
  save(conversation);
  await Promise.all(runs.map(generate));
  save(conversation);
}

function titleOf(turns: Turn[]): string {
  const text = turns.find((turn) => turn.role === "user")?.text.trim() ?? "";
  return text.length > TITLE_LENGTH ? `${text.slice(0, TITLE_LENGTH)}…` : text;
}

/** The calls that wait for results: those of the last turn's chosen run. */
export function openCalls(turn: Turn): boolean {
  const run = turn.role === "assistant" ? chosenRun(turn) : undefined;
  return run !== undefined && !isRunning(run.progress.value) && run.progress.value.toolCalls.length > 0;
}
