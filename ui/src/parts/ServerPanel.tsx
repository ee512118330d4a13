import { useEffect, useState } from "preact/hooks";
import { fetchMetrics, ServerError } from "../server/api";
import { connection, version } from "../server/connection";
import { type PageGroup, type Reading, readingOf } from "../server/metrics";
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
      <Line values={rates} />
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
      {last.groups.map((group) => (
        <Pages key={group.group} group={group} />
      ))}
      <h3>Prefix cache</h3>
      <p>
        {last.prefixQueries > 0 ? percent(last.prefixHits / last.prefixQueries) : "0 %"} <span class="dim">of {number(last.prefixQueries)} prompt tokens found</span>
      </p>
      {last.restarts > 0 && <p class="error">The engine was started again {number(last.restarts)} times.</p>}
    </>
  );
}

function Pages({ group }: { group: PageGroup }) {
  const all = group.used + group.cached + group.free;
  const share = (count: number) => (all === 0 ? 0 : (100 * count) / all);
  const text = `${number(group.used)} in use, ${number(group.cached)} cached, ${number(group.free)} free`;
  return (
    <figure>
      <figcaption>
        {group.group} <span class="dim">{text}</span>
      </figcaption>
      <svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" role="img" aria-label={`${group.group}: ${text}`}>
        <rect class="used" width={share(group.used)} height="4" />
        <rect class="cached" x={share(group.used)} width={share(group.cached)} height="4" />
      </svg>
    </figure>
  );
}

/** The last minute of a rate. */
function Line({ values }: { values: number[] }) {
  const most = Math.max(1, ...values);
  const points = values.map((value, at) => `${at + KEPT - 1 - values.length},${19 - (18 * value) / most}`).join(" ");
  return (
    <svg class="line" viewBox={`0 0 ${KEPT - 2} 20`} preserveAspectRatio="none" role="img" aria-label={`Tokens per second of the last minute, at most ${number(most)}`}>
      <polyline points={points} />
    </svg>
  );
}

function rateBetween(one: Reading, next: Reading): number {
  return Math.max(0, (1000 * (next.generated - one.generated)) / (next.at - one.at));
}

function troubleOf(error: unknown): string {
  if (error instanceof ServerError && (error.status === 401 || error.status === 403))
    return `The live view needs an API key that may read /metrics. ${error.message}`;
  return error instanceof ServerError ? error.message : String(error);
}
