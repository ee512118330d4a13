import { useEffect, useRef } from "preact/hooks";
import type { TextFlow } from "../chat/flow";

/** Characters in one element: what comes later leaves the layout of full ones alone. */
const PIECE = 1000;

/** A text as it is. What is added becomes a text node; nothing is written again. */
export function PlainView({ flow }: { flow: TextFlow }) {
  const element = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const whole = element.current as HTMLDivElement;
    whole.replaceChildren();
    let piece = whole.appendChild(document.createElement("div"));
    let length = 0;
    return flow.follow((added) => {
      for (const line of added.split(/(?<=\n)/)) {
        if (length > PIECE) {
          piece = whole.appendChild(document.createElement("div"));
          length = 0;
        }
        piece.append(line);
        length = line.endsWith("\n") || length < PIECE ? length + line.length : length;
      }
    });
  }, [flow]);
  return <div class="plain" ref={element} />;
}
