import { useState } from "preact/hooks";
import type { TokenLogprob } from "../server/types";
import { percent } from "../text/format";

const STEPS = 5;

/** An answer's tokens, each coloured by how sure the model was; one that is pointed at shows what else it might have been. */
export function TokenView({ tokens }: { tokens: TokenLogprob[] }) {
  const [shown, setShown] = useState<number | null>(null);
  const token = shown === null ? undefined : tokens[shown];
  return (
    <div class="tokens">
      <p>
        {tokens.map((one, index) => (
          <span
            key={index}
            class={`token sure${step(one.logprob)}${index === shown ? " shown" : ""}`}
            onPointerEnter={() => setShown(index)}
            onClick={() => setShown(index)}
          >
            {one.token}
          </span>
        ))}
      </p>
      <p class="dim alternatives" aria-live="polite">
        {token === undefined
          ? "Point at a token to see what else it might have been."
          : token.top_logprobs.map((one) => (
              <span key={one.token}>
                <code>{JSON.stringify(one.token)}</code> {percent(Math.exp(one.logprob))}
              </span>
            ))}
      </p>
    </div>
  );
}

/** 0 for the unsurest tokens to STEPS for the surest. */
function step(logprob: number): number {
  return Math.round(Math.exp(logprob) * STEPS);
}
