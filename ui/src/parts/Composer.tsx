import { useEffect, useRef } from "preact/hooks";
import { change, isBusy, mode, modes, problem, send, stopAll } from "../chat/actions";
import { current, draft } from "../chat/store";
import { isReady } from "../server/connection";
import { Choice } from "./Choice";

const MOST_HEIGHT = 220;

/** Where the reader types, chooses the gear, sends and stops. */
export function Composer() {
  const text = useRef<HTMLTextAreaElement>(null);
  const settings = current.value.settings.value;
  const names = modes.value.map((one) => one.name);
  const thinks = modes.value.find((one) => one.name === mode.value)?.thinks ?? false;
  const canSend = isReady.value && draft.value.trim() !== "" && !isBusy.value;
  useEffect(() => text.current?.focus(), [current.value]);
  useEffect(() => {
    const element = text.current as HTMLTextAreaElement;
    element.style.height = "auto";
    element.style.height = `${Math.min(element.scrollHeight, MOST_HEIGHT)}px`;
  }, [draft.value]);
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        if (canSend) send();
      }}
    >
      {problem.value !== null && (
        <p class="error" role="alert">
          {problem.value}
        </p>
      )}
      <textarea
        ref={text}
        rows={1}
        aria-label="Message"
        placeholder="Ask something"
        value={draft.value}
        onInput={(event) => (draft.value = event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
          event.preventDefault();
          if (canSend) send(event.ctrlKey || event.metaKey ? names : undefined);
        }}
      />
      <div class="row">
        <Choice
          label="Mode"
          options={names}
          chosen={mode.value}
          onChoose={(name) => change({ mode: name })}
          look={(name) => (modes.value.find((one) => one.name === name)?.thinks ? "thinks" : "direct")}
        />
        {thinks && (
          <label class="budget">
            think at most
            <input type="text" inputMode="numeric" size={6} placeholder="no limit" aria-label="Thinking budget in tokens" value={settings.budget} onInput={(event) => change({ budget: event.currentTarget.value })} />
            tokens
          </label>
        )}
        {isBusy.value ? (
          <span class="send" key="stop">
            <button type="button" class="stop" onClick={stopAll}>
              Stop
            </button>
          </span>
        ) : (
          <span class="send" key="send">
            {names.length > 1 && (
              <button type="button" disabled={!canSend} title="Ctrl+Enter" onClick={() => send(names)}>
                All gears
              </button>
            )}
            <button type="submit" class="accent" disabled={!canSend} title="Enter">
              Send
            </button>
          </span>
        )}
      </div>
    </form>
  );
}
