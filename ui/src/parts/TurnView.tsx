import { useState } from "preact/hooks";
import { choose, edit, isBusy, mode, modes, openCalls, retry, sendResults, showSideBySide } from "../chat/actions";
import { chosenRun, isRunning, type ModelTurn, type ToolTurn, type Turn, type UserTurn } from "../chat/model";
import { RunView } from "./RunView";

/** A turn of a conversation; `isLast` allows what goes on from it. */
export function TurnView({ turn, at, isLast }: { turn: Turn; at: number; isLast: boolean }) {
  if (turn.role === "user") return <UserView turn={turn} at={at} />;
  if (turn.role === "tool") return <ResultsView turn={turn} />;
  return <ModelView turn={turn} isLast={isLast} />;
}

function UserView({ turn, at }: { turn: UserTurn; at: number }) {
  const [text, setText] = useState<string | null>(null);
  if (text === null)
    return (
      <div class="user">
        <p>{turn.text}</p>
        <button type="button" class="small" disabled={isBusy.value} onClick={() => setText(turn.text)}>
          Edit
        </button>
      </div>
    );
  const sent = () => {
    if (text.trim() !== "" && edit(at, text)) setText(null);
  };
  return (
    <form
      class="user edited"
      onSubmit={(event) => {
        event.preventDefault();
        sent();
      }}
    >
      <textarea aria-label="Edit the message" value={text} rows={3} ref={(element) => element?.focus()} onInput={(event) => setText(event.currentTarget.value)} />
      <div class="row">
        <button type="submit" class="small accent">
          Send again
        </button>
        <button type="button" class="small" onClick={() => setText(null)}>
          Cancel
        </button>
        <span class="dim">What came after it is replaced.</span>
      </div>
    </form>
  );
}

function ModelView({ turn, isLast }: { turn: ModelTurn; isLast: boolean }) {
  const runs = turn.runs.value;
  const shown = turn.sideBySide.value ? runs : runs.slice(turn.chosen.value, turn.chosen.value + 1);
  const run = chosenRun(turn);
  const scale = Math.max(1, ...shown.map((one) => one.progress.value.elapsed));
  return (
    <section class="model" aria-label="Answers">
      <div class={turn.sideBySide.value ? "columns" : undefined}>
        {shown.map((one) => (
          <RunView
            key={one.id}
            run={one}
            scale={scale}
            actions={
              turn.sideBySide.value && (
                <label class="keep">
                  <input type="radio" name={`chosen-${runs[0]?.id ?? ""}`} checked={one === run} onChange={() => choose(turn, runs.indexOf(one))} />
                  go on from this
                </label>
              )
            }
          />
        ))}
      </div>
      <TurnActions turn={turn} isLast={isLast} />
      {isLast && run !== undefined && openCalls(turn) && <ResultForm key={run.id} turn={turn} />}
    </section>
  );
}

function TurnActions({ turn, isLast }: { turn: ModelTurn; isLast: boolean }) {
  const [runs, run] = [turn.runs.value, chosenRun(turn)];
  if (run === undefined || runs.some((one) => isRunning(one.progress.value))) return null;
  const failed = run.progress.value.phase === "failed";
  const known = modes.value.map((one) => one.name);
  const offered = known.length > 0 ? known : [mode.value];
  return (
    <div class="row turn-actions">
      {runs.length > 1 && !turn.sideBySide.value && (
        <span class="pager">
          <button type="button" class="small" aria-label="The answer before" disabled={turn.chosen.value === 0} onClick={() => choose(turn, turn.chosen.value - 1)}>
            ‹
          </button>
          {turn.chosen.value + 1} of {runs.length}
          <button type="button" class="small" aria-label="The next answer" disabled={turn.chosen.value === runs.length - 1} onClick={() => choose(turn, turn.chosen.value + 1)}>
            ›
          </button>
        </span>
      )}
      {runs.length > 1 && (
        <button type="button" class="small" onClick={() => showSideBySide(turn, !turn.sideBySide.value)}>
          {turn.sideBySide.value ? "One at a time" : "Side by side"}
        </button>
      )}
      {isLast &&
        offered.map((name) => (
          <button type="button" key={name} class={failed && name === run.mode ? "small accent" : "small"} onClick={() => retry(turn, name)}>
            {name === run.mode ? `Again in ${name || "the same mode"}` : `Retry in ${name}`}
          </button>
        ))}
    </div>
  );
}

/** The results of the calls, typed in by the reader. */
function ResultForm({ turn }: { turn: ModelTurn }) {
  const run = chosenRun(turn);
  const calls = run?.progress.value.toolCalls ?? [];
  const [results, setResults] = useState<string[]>(calls.map(() => ""));
  return (
    <form
      class="results"
      onSubmit={(event) => {
        event.preventDefault();
        sendResults(calls.map((call, at) => ({ id: call.id, name: call.function.name, content: results[at] ?? "" })), run?.mode ?? "");
      }}
    >
      {calls.map((call, at) => (
        <label key={call.id}>
          What {call.function.name} returns
          <textarea rows={2} required value={results[at]} onInput={(event) => setResults(results.with(at, event.currentTarget.value))} />
        </label>
      ))}
      <button type="submit" class="small accent">
        Send {calls.length === 1 ? "the result" : "the results"}
      </button>
    </form>
  );
}

function ResultsView({ turn }: { turn: ToolTurn }) {
  return (
    <div class="tool">
      {turn.results.map((result) => (
        <div class="call" key={result.id}>
          <b>{result.name}</b> <span class="dim">returned</span>
          <pre tabIndex={0}>{result.content}</pre>
        </div>
      ))}
    </div>
  );
}
