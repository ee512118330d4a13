import { signal } from "@preact/signals";

/** What has just happened, in words; shown until it is put away. */
export const notice = signal<string | null>(null);
