/** What the live view shows, from Prometheus's text. */

export interface Sample {
  labels: Record<string, string>;
  value: number;
}

export interface PageGroup {
  group: string;
  used: number;
  cached: number;
  free: number;
}

/** One reading. Counters count from the server's start; `at` in milliseconds. */
export interface Reading {
  at: number;
  running: Record<string, number>;
  waiting: Record<string, number>;
  tokens: Record<string, number>;
  groups: PageGroup[];
  /** Generated tokens as they come; `tokens` are counted when requests end. */
  generated: number;
  prefixQueries: number;
  prefixHits: number;
  restarts: number;
}

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** The samples by the name of their metric. */
export function parseMetrics(text: string): Map<string, Sample[]> {
  const found = new Map<string, Sample[]>();
  for (const line of text.split("\n")) {
    const [, name, labels, value] = LINE.exec(line) ?? [];
    if (name === undefined) continue;
    const pairs = [...(labels ?? "").matchAll(LABEL)].map((match): [string, string] => [match[1] ?? "", match[2] ?? ""]);
    const sample = { labels: Object.fromEntries(pairs), value: Number(value) };
    const before = found.get(name);
    if (before === undefined) found.set(name, [sample]);
    else before.push(sample);
  }
  return found;
}

export function readingOf(text: string, at: number): Reading {
  const metrics = parseMetrics(text);
  const summed = (name: string, label: string) => sumBy(metrics.get(name) ?? [], label);
  const total = (name: string) => (metrics.get(name) ?? []).reduce((sum, sample) => sum + sample.value, 0);
  return {
    at,
    running: summed("twogear_requests_running", "mode"),
    waiting: summed("twogear_requests_waiting", "mode"),
    tokens: summed("twogear_tokens_total", "kind"),
    groups: groupsOf(metrics.get("twogear_kv_pages") ?? []),
    generated: total("vllm:generation_tokens_total"),
    prefixQueries: total("vllm:prefix_cache_queries_total"),
    prefixHits: total("vllm:prefix_cache_hits_total"),
    restarts: total("twogear_engine_restarts_total"),
  };
}

function sumBy(samples: Sample[], label: string): Record<string, number> {
  const sums: Record<string, number> = {};
  for (const { labels, value } of samples) sums[labels[label] ?? ""] = (sums[labels[label] ?? ""] ?? 0) + value;
  return sums;
}

function groupsOf(samples: Sample[]): PageGroup[] {
  const groups = Map.groupBy(samples, (sample) => sample.labels.group ?? "");
  return [...groups].map(([group, states]) => {
    const count = (state: string) => states.find((one) => one.labels.state === state)?.value ?? 0;
    return { group, used: count("used"), cached: count("cached"), free: count("free") };
  });
}
