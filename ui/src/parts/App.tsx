import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { isBusy, model, modes, runningRuns, send, stopAll } from "../chat/actions";
import { answerNow } from "../chat/generation";
import { current, draft } from "../chat/store";
import { connection, isReady } from "../server/connection";
import { Banners } from "./Banners";
import { Composer } from "./Composer";
import { ServerPanel } from "./ServerPanel";
import { SettingsPanel } from "./SettingsPanel";
import { Sidebar } from "./Sidebar";
import { ThemeButton } from "./ThemeButton";
import { TurnView } from "./TurnView";

type Panel = "none" | "list" | "settings" | "server";

/** The whole page. */
export function App() {
  const panel = useSignal<Panel>("none");
  const toggle = (which: Panel) => (panel.value = panel.value === which ? "none" : which);
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.key === "Escape" && !event.defaultPrevented && document.querySelector("dialog[open]") === null) interrupt();
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);
  return (
    <div class={`page shows-${panel.value}`}>
      <header class="top">
        <button type="button" class="icon narrow" aria-label="Conversations" aria-expanded={panel.value === "list"} onClick={() => toggle("list")}>
          ☰
        </button>
        <h1>
          <Gears /> Twogear <span class="dim">{model.value?.name}</span>
        </h1>
        <span class="grow" />
        <ThemeButton />
        <button type="button" aria-expanded={panel.value === "settings"} onClick={() => toggle("settings")}>
          Settings
        </button>
        <button type="button" aria-expanded={panel.value === "server"} onClick={() => toggle("server")}>
          <span class={`dot ${connection.value.state}`} /> Server
        </button>
      </header>
      <Sidebar onChoose={() => (panel.value = "none")} />
      <main>
        <Banners />
        <Talk />
        <Composer />
      </main>
      {(panel.value === "settings" || panel.value === "server") && (
        <aside class="drawer" aria-label={panel.value === "settings" ? "Settings" : "Server"}>
          <header>
            <h2>{panel.value === "settings" ? "Settings" : "Server"}</h2>
            <button type="button" class="icon" aria-label="Close" onClick={() => (panel.value = "none")}>
              ✕
            </button>
          </header>
          {panel.value === "settings" ? <SettingsPanel key={current.value.id} /> : <ServerPanel />}
        </aside>
      )}
    </div>
  );
}

/** Escape: a run that thinks shall answer, one that answers shall stop. */
function interrupt(): void {
  const thinking = runningRuns.value.filter((run) => run.progress.value.phase === "thinking");
  if (thinking.length > 0) thinking.forEach((run) => void answerNow(run));
  else stopAll();
}

/** The turns. The end stays in view while it grows, unless the reader has scrolled away. */
function Talk() {
  const scroller = useRef<HTMLDivElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const turns = current.value.turns.value;
  useEffect(() => {
    const element = scroller.current as HTMLDivElement;
    const observer = new ResizeObserver(() => {
      if (follows.current) element.scrollTop = element.scrollHeight;
    });
    observer.observe(content.current as HTMLDivElement);
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    follows.current = true;
  }, [turns.length, current.value]);
  const onScroll = () => {
    const { scrollTop, clientHeight, scrollHeight } = scroller.current as HTMLDivElement;
    follows.current = scrollTop + clientHeight > scrollHeight - 40;
  };
  return (
    <div class="talk" ref={scroller} onScroll={onScroll} tabIndex={0} role="region" aria-label="Conversation">
      <div class="turns" ref={content}>
        {turns.length === 0 && <Welcome />}
        {turns.map((turn, at) => (
          <TurnView key={`${current.value.id}-${at}`} turn={turn} at={at} isLast={at === turns.length - 1} />
        ))}
      </div>
      <Announcer />
    </div>
  );
}

/** Questions on which the gears differ. */
const EXAMPLES = ["What is 303 + 948 - 105?", "What is 17 * 23?", "Sort these numbers: 42, 7, 19, 3, 28"];

function Welcome() {
  const askInAll = (question: string) => {
    draft.value = question;
    send(modes.value.map((mode) => mode.name));
  };
  return (
    <div class="welcome">
      <Gears />
      <h2>One model, two gears</h2>
      <p class="gears">
        {modes.value.map((mode) => (
          <span key={mode.name} class={mode.thinks ? "thinks" : "direct"}>
            <b class="gear">{mode.name}</b> {mode.thinks ? "thinks first" : "answers at once"}
          </span>
        ))}
      </p>
      <p>See them side by side:</p>
      <ul class="examples" aria-label="Examples">
        {EXAMPLES.map((question) => (
          <li key={question}>
            <button type="button" disabled={!isReady.value || modes.value.length === 0} onClick={() => askInAll(question)}>
              {question}
            </button>
          </li>
        ))}
      </ul>
      <p class="dim">
        <kbd>Enter</kbd> sends · <kbd>Ctrl</kbd> <kbd>Enter</kbd> asks in all gears · <kbd>Esc</kbd> ends the thinking, then the answer
      </p>
    </div>
  );
}

/** The sign of the page. */
function Gears() {
  return (
    <svg class="sign" viewBox="0 0 32 32" aria-hidden="true">
      <circle class="direct" cx="12" cy="12" r="7.5" stroke-width="5" stroke-dasharray="3.6 2.29" />
      <circle class="direct" cx="12" cy="12" r="6" stroke-width="3" />
      <circle class="thinks" cx="22" cy="22" r="7" stroke-width="5" stroke-dasharray="3.3 2.2" />
      <circle class="thinks" cx="22" cy="22" r="5.5" stroke-width="3" />
    </svg>
  );
}

/** Tells screen readers when an answer begins and ends, not every word of it. */
function Announcer() {
  return (
    <p class="hidden" aria-live="polite">
      {isBusy.value ? "The model is writing." : current.value.turns.value.length > 0 ? "The answer has ended." : ""}
    </p>
  );
}
