/** Figures as people read them. */

const whole = new Intl.NumberFormat("en");

export function tokens(count: number): string {
  return `${whole.format(count)} ${count === 1 ? "token" : "tokens"}`;
}

export function number(value: number): string {
  return whole.format(Math.round(value));
}

export function duration(milliseconds: number): string {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  const seconds = milliseconds / 1000;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

export function percent(share: number): string {
  return `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}
