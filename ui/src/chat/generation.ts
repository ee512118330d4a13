/** One run: sends it, and moves its texts and progress on, once for each frame however much came. */

import { endThinking, ServerError, startCompletion } from "../server/api";
import { checkServer } from "../server/connection";
import { CutStream, readChunks } from "../server/stream";
import type { ChatChunk, TokenLogprob, ToolCall, ToolCallDelta } from "../server/types";
import { AT_START, isRunning, type Progress, type Run } from "./model";

const STALL_MS = 15_000;
/** Where no frames are drawn, as in a tab behind others. */
const HIDDEN_FRAME_MS = 250;

const running = new Map<string, AbortController>();

/** Sends the run and follows it to its end; resolves then, whatever the end is. */
export async function generate(run: Run): Promise<void> {
  const controller = new AbortController();
  running.set(run.id, controller);
  const writer = new RunWriter(run);
  try {
    await readChunks(await startCompletion(run.body, controller.signal), (chunks) => writer.take(chunks));
    writer.end({ phase: "done" });
  } catch (error) {
    writer.end(failure(error));
    if (!controller.signal.aborted) void checkServer();
  } finally {
    controller.abort();
    running.delete(run.id);
  }
}

/** Ends it where it is; what came stays. */
export function stop(run: Run): void {
  running.get(run.id)?.abort();
}

/** Ends its thinking; the answer follows. */
export async function answerNow(run: Run): Promise<void> {
  const id = run.progress.value.completionId;
  if (id === null) return;
  try {
    await endThinking(id);
  } catch (error) {
    if (isRunning(run.progress.value)) run.progress.value = { ...run.progress.value, error: `The thinking goes on: ${(error as Error).message}` };
  }
}

/** How a run ends that has not come to its end. */
function failure(error: unknown): Partial<Progress> {
  if (error instanceof DOMException && error.name === "AbortError") return { phase: "stopped" };
  if (error instanceof ServerError) {
    const wait = error.retryAfter === null ? "" : ` Try again in ${error.retryAfter} s.`;
    return { phase: "failed", error: error.message + wait };
  }
  if (error instanceof CutStream) return { phase: "failed", error: `${error.message} What came before is kept.` };
  return { phase: "failed", error: `The server sent what this page does not understand: ${String(error)}` };
}

/** Gathers what chunks bring, and shows it at the next frame. */
class RunWriter {
  private thinking = "";
  private answer = "";
  private logprobs: TokenLogprob[] = [];
  private changes: Partial<Progress> = {};
  private calls: ToolCall[] = [];
  private counted = 0;
  private readonly started = performance.now();
  private lastCame = this.started;
  private frame = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private readonly clock: ReturnType<typeof setInterval>;

  constructor(private readonly run: Run) {
    run.progress.value = AT_START;
    this.clock = setInterval(() => this.tick(), 100);
  }

  /** Chunks that came together. Throws ServerError for one that tells of an error. */
  take(chunks: ChatChunk[]): void {
    this.lastCame = performance.now();
    const now = this.lastCame - this.started;
    for (const chunk of chunks) {
      if (chunk.error !== undefined) throw new ServerError(0, chunk.error);
      this.takeOne(chunk, now);
    }
    this.noteArrival(now);
    this.show();
  }

  /** Shows the rest, and how it ended. */
  end(how: Partial<Progress>): void {
    clearInterval(this.clock);
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    Object.assign(this.changes, how, { elapsed: performance.now() - this.started, stalled: false });
    this.flush();
  }

  private takeOne(chunk: ChatChunk, now: number): void {
    const changes = this.changes;
    if (chunk.id !== undefined) changes.completionId = chunk.id;
    if (chunk.usage) {
      changes.promptTokens = chunk.usage.prompt_tokens;
      changes.cachedTokens = chunk.usage.prompt_tokens_details?.cached_tokens ?? 0;
      changes.completionTokens = chunk.usage.completion_tokens;
      changes.reasoningTokens = chunk.usage.completion_tokens_details?.reasoning_tokens ?? 0;
    }
    const choice = chunk.choices?.[0];
    if (choice === undefined) return;
    const thought = choice.delta.reasoning_content ?? choice.delta.reasoning ?? "";
    const said = choice.delta.content ?? "";
    this.thinking += thought;
    this.answer += said;
    if (thought !== "") this.reach("thinking", now);
    if (said !== "" || choice.delta.tool_calls !== undefined) this.reach("answering", now);
    for (const call of choice.delta.tool_calls ?? []) this.takeCall(call);
    if (choice.logprobs?.content) this.logprobs.push(...choice.logprobs.content);
    if (choice.finish_reason) changes.finish = choice.finish_reason;
    if (choice.reasoning_finish_reason !== undefined) changes.reasoningFinish = choice.reasoning_finish_reason;
  }

  private reach(phase: "thinking" | "answering", now: number): void {
    const before = { ...this.run.progress.value, ...this.changes };
    this.changes.phase = phase;
    if (before.firstToken === null) this.changes.firstToken = now;
    if (phase === "answering" && before.firstAnswer === null) this.changes.firstAnswer = now;
  }

  /** When tokens came: one time for all that came together. */
  private noteArrival(now: number): void {
    const { firstToken, completionTokens } = { ...this.run.progress.value, ...this.changes };
    this.changes.elapsed = now;
    if (firstToken === now) this.changes.firstTokens = completionTokens;
    if (completionTokens > this.counted) this.changes.lastToken = now;
    this.counted = completionTokens;
  }

  private takeCall(delta: ToolCallDelta): void {
    const before = this.calls[delta.index] ?? { id: "", type: "function" as const, function: { name: "", arguments: "" } };
    const { name, arguments: added } = delta.function ?? {};
    this.calls[delta.index] = {
      id: delta.id ?? before.id,
      type: "function",
      function: { name: name ?? before.function.name, arguments: before.function.arguments + (added ?? "") },
    };
    this.changes.toolCalls = [...this.calls];
  }

  private show(): void {
    if (this.frame !== 0 || this.timer !== undefined) return;
    if (document.hidden) this.timer = setTimeout(() => this.flush(), HIDDEN_FRAME_MS);
    else this.frame = requestAnimationFrame(() => this.flush());
  }

  private tick(): void {
    const now = performance.now();
    this.changes.elapsed = now - this.started;
    this.changes.stalled = now - this.lastCame > STALL_MS;
    this.show();
  }

  private flush(): void {
    this.frame = 0;
    this.timer = undefined;
    const { run } = this;
    run.thinking.append(this.thinking);
    run.answer.append(this.answer);
    this.thinking = this.answer = "";
    if (this.logprobs.length > 0) run.logprobs.value = [...run.logprobs.value, ...this.logprobs.splice(0)];
    run.progress.value = { ...run.progress.value, ...this.changes };
    this.changes = {};
  }
}
