import { useEffect, useState } from "preact/hooks";
import { fetchMetrics, ServerError } from "../server/api";
import { connection, version } from "../server/connection";
import { type Reading, readingOf } from "../server/metrics";
import { number, percent } from "../text/format";

const PAUSE = 1000;
const KEPT = 60;

/** The server as it works now, from /metrics. */
export function ServerPanel() {
  const [readings, setReadings] = useState<Reading[]>([]);
  const [trouble, setTrouble] = useState<string | null>(null);
  useEffect(() => {
    const look = async () => {
      if (document.hidden) return;
      try {
        const reading = readingOf(await fetchMetrics(), performance.now());
        setReadings((before) => [...before, reading].slice(-KEPT));
        setTrouble(null);
      } catch (error) {
        setTrouble(troubleOf(error));
      }
    };
    void look();
    const timer = setInterval(() => void look(), PAUSE);
    return () => clearInterval(timer);
  }, []);
  const last = readings.at(-1);
  return (
    <div class="panel">
      <p>
        <span class={`dot ${connection.value.state}`} /> {connection.value.state}
        {version.value !== null && (
          <span class="dim">
            {" "}
            · Twogear {version.value.version}, vLLM {version.value.engine ?? "not up"}
          </span>
        )}
      </p>
      {trouble !== null && <p class="error">{trouble}</p>}
      {last !== undefined && <Readings readings={readings} last={last} />}
    </div>
  );
}

function Readings({ readings, last }: { readings: Reading[]; last: Reading }) {
  const mostPages = Math.max(1, ...readings.flatMap((reading) => reading.groups.map((group) => group.used)));
  const rates = readings.slice(1).map((reading, at) => rateBetween(readings[at] as Reading, reading));
  return (
    <>
      <table>
        <thead>
          <tr>
            <th scope="col">mode</th>
            <th scope="col">running</th>
            <th scope="col">waiting</th>
          </tr>
        </thead>
        <tbody>
          {Object.entries(last.running).map(([name, running]) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              <td>{running}</td>
              <td>{last.waiting[name] ?? 0}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <h3>
        {number(rates.at(-1) ?? 0)} tokens/s <span class="dim">generated now</span>
      </h3>
      <Line values={rates} label="Tokens per second" />
      <h3>Tokens of requests that ended</h3>
      <table>
        <tbody>
          {Object.entries(last.tokens).map(([kind, count]) => (
            <tr key={kind}>
              <th scope="row">{kind}</th>
              <td>{number(count)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <h3>KV cache pages</h3>
      {last.groups.map(({ group, used, cached, free }) => (
        <figure key={group}>
          <figcaption>
            {group}{" "}
            <span class="dim">
              {number(used)} in use, {number(cached)} cached, {number(free)} free
            </span>
          </figcaption>
          <Line values={readings.map((reading) => usedOf(reading, group))} most={mostPages} label={`Pages of ${group} in use`} />
        </figure>
      ))}
      <h3>Prefix cache</h3>
      <p>
        {last.prefixQueries > 0 ? percent(last.prefixHits / last.prefixQueries) : "0 %"} <span class="dim">of {number(last.prefixQueries)} prompt tokens found</span>
      </p>
      {last.restarts > 0 && <p class="error">The engine was started again {number(last.restarts)} times.</p>}
    </>
  );
}

/** The last minute of a figure. `most`: the value at the top, where several are to be compared. */
function Line({ values, label, most = Math.max(1, ...values) }: { values: number[]; label: string; most?: number }) {
  const points = values.map((value, at) => `${at + KEPT - values.length},${19 - (18 * value) / most}`).join(" ");
  return (
    <svg class="line" viewBox={`0 0 ${KEPT - 1} 20`} preserveAspectRatio="none" role="img" aria-label={`${label} in the last minute, at most ${number(Math.max(0, ...values))}`}>
      <polyline points={points} />
    </svg>
  );
}

function usedOf(reading: Reading, group: string): number {
  return reading.groups.find((one) => one.group === group)?.used ?? 0;
}

function rateBetween(one: Reading, next: Reading): number {
  return Math.max(0, (1000 * (next.generated - one.generated)) / (next.at - one.at));
}

function troubleOf(error: unknown): string {
  if (error instanceof ServerError && (error.status === 401 || error.status === 403))
    return `The live view needs an API key that may read /metrics. ${error.message}`;
  return error instanceof ServerError ? error.message : String(error);
}
