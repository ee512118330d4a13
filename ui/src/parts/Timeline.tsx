import type { Progress } from "../chat/model";
import { duration } from "../text/format";

/** Where a run's time went: the wait for its first token, the thinking, the answer. `scale`: the milliseconds of the whole width. */
export function Timeline({ progress, scale }: { progress: Progress; scale: number }) {
  const { firstToken, firstAnswer, elapsed } = progress;
  if (firstToken === null) return null;
  const thought = (firstAnswer ?? elapsed) - firstToken;
  const parts = [
    { kind: "wait", about: "until the first token", time: firstToken },
    { kind: "thinking", about: "thinking", time: thought },
    { kind: "answering", about: "answering", time: elapsed - firstToken - thought },
  ].filter((part) => part.time > 0);
  const told = parts.map((part) => `${duration(part.time)} ${part.about}`).join(", ");
  let at = 0;
  return (
    <svg class="timeline" viewBox="0 0 1000 1" preserveAspectRatio="none" role="img" aria-label={told}>
      <title>{told}</title>
      {parts.map(({ kind, time }) => {
        const [x, width] = [(1000 * at) / scale, (1000 * time) / scale];
        at += time;
        return <rect key={kind} class={kind} x={x} y={0} width={width} height={1} />;
      })}
    </svg>
  );
}
