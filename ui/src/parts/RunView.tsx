import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { answerNow } from "../chat/generation";
import { isRunning, tokenRate, type Progress, type Run } from "../chat/model";
import { duration, number, tokens } from "../text/format";
import { MarkdownView } from "../text/MarkdownView";
import { SnippetDialog } from "./SnippetDialog";
import { Thought } from "./Thought";
import { Timeline } from "./Timeline";
import { TokenView } from "./TokenView";

const FINISHES: Record<string, string> = { length: "ended by the token limit", tool_calls: "calls a tool" };

/** One run: its thinking, its answer, its calls, the exact figures. `scale`: the milliseconds of its timeline's width. */
export function RunView({ run, scale, actions }: { run: Run; scale: number; actions?: ComponentChildren }) {
  const [showsCode, setShowsCode] = useState(false);
  const progress = run.progress.value;
  const hasTokens = run.logprobs.value.length > 0 && !isRunning(progress);
  return (
    <article class={`run ${run.thinks ? "thinks" : "direct"}`} aria-label={`Answer in ${run.mode || "the default"} mode`} aria-busy={isRunning(progress)}>
      <header class="run-head">
        <span class="gear">{run.mode || "default"}</span>
        {progress.phase === "waiting" && <span class="dim">waits for its first token…</span>}
        {progress.phase === "thinking" && (
          <button type="button" class="small accent" onClick={() => void answerNow(run)}>
            Answer now
          </button>
        )}
        <span class="actions">
          {actions}
          <button type="button" class="small" onClick={() => setShowsCode(true)}>
            Code
          </button>
        </span>
      </header>
      <Timeline progress={progress} scale={scale} />
      {run.thinks && progress.firstToken !== null && <Thought flow={run.thinking} progress={progress} />}
      {hasTokens ? <TokenView tokens={run.logprobs.value} /> : <MarkdownView flow={run.answer} />}
      {progress.toolCalls.map((call) => (
        <div class="call" key={call.id}>
          <span class="dim">calls</span> <b>{call.function.name}</b>
          <pre tabIndex={0}>{pretty(call.function.arguments)}</pre>
        </div>
      ))}
      {progress.stalled && <p class="note">Nothing has come for a while; the connection is still open. Stop ends it.</p>}
      {progress.phase === "stopped" && <p class="note">Stopped. What came is kept.</p>}
      {progress.error !== null && (
        <p class="error" role="alert">
          {progress.error}
        </p>
      )}
      <footer class="figures">
        <Figures progress={progress} />
      </footer>
      {showsCode && <SnippetDialog body={run.body} onClose={() => setShowsCode(false)} />}
    </article>
  );
}

function Figures({ progress }: { progress: Progress }) {
  if (progress.completionTokens === 0) return <span />;
  const { reasoningTokens, completionTokens, firstToken } = progress;
  const parts = [
    reasoningTokens > 0
      ? `${tokens(completionTokens)}: ${number(reasoningTokens)} thinking, ${number(completionTokens - reasoningTokens)} answer`
      : tokens(completionTokens),
    firstToken === null ? null : `first after ${duration(firstToken)}`,
    rateOf(progress),
    `prompt ${number(progress.promptTokens)}${progress.cachedTokens > 0 ? `, ${number(progress.cachedTokens)} cached` : ""}`,
    progress.finish === null ? null : (FINISHES[progress.finish] ?? null),
  ];
  return <span class="numbers">{parts.filter((part) => part !== null).map((part) => <span key={part}>{part}</span>)}</span>;
}

function rateOf(progress: Progress): string | null {
  const rate = tokenRate(progress);
  if (rate !== null) return `${number(rate)} tokens/s`;
  return progress.phase === "done" && progress.lastToken !== null && progress.completionTokens > 1 ? "too quick for a rate" : null;
}

function pretty(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}
