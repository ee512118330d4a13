import { useEffect, useRef } from "preact/hooks";
import type { TextFlow } from "../chat/flow";
import { thinkingTime, type Progress } from "../chat/model";
import { duration, tokens } from "../text/format";
import { PlainView } from "../text/PlainView";

const PEEK = 240;
const HOW: Record<string, string> = {
  budget: "ended by its budget",
  repetition: "closed for going in circles",
  confident: "closed, the answer being known",
  length: "ended by the token limit",
  stopped: "told to answer",
};

/** The thinking: folded, with its last words on view while it goes on. */
export function Thought({ flow, progress }: { flow: TextFlow; progress: Progress }) {
  const goesOn = progress.phase === "thinking";
  const time = thinkingTime(progress);
  const how = progress.reasoningFinish === null ? undefined : HOW[progress.reasoningFinish];
  return (
    <details class={goesOn ? "thought goes-on" : "thought"}>
      <summary>
        <span>
          {goesOn ? "Thinking" : "Thought"} · {tokens(progress.reasoningTokens)}
          {time !== null && ` · ${duration(time)}`}
          {how !== undefined && <span class="how"> · {how}</span>}
        </span>
        {goesOn && <Peek flow={flow} />}
      </summary>
      <PlainView flow={flow} />
    </details>
  );
}

/** The last words of a text that grows. Hidden from screen readers, which would read every one of them. */
function Peek({ flow }: { flow: TextFlow }) {
  const element = useRef<HTMLSpanElement>(null);
  useEffect(() => {
    const { firstChild } = element.current as HTMLSpanElement;
    const words = firstChild as HTMLSpanElement;
    let last = "";
    return flow.follow((added) => {
      last = (last + added).slice(-PEEK);
      words.textContent = last;
    });
  }, [flow]);
  return (
    <span class="peek" ref={element} aria-hidden="true">
      <span />
    </span>
  );
}
