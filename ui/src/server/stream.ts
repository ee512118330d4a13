/** Server-sent events of a completion, as objects. */

import type { ChatChunk } from "./types";

const DATA = "data: ";
const DONE = "[DONE]";

/** A stream that ended without its last event. */
export class CutStream extends Error {}

/** Gives `take` all chunks of each read at once; resolves with the stream's last event, throws CutStream without it. */
export async function readChunks(body: ReadableStream<Uint8Array>, take: (chunks: ChatChunk[]) => void): Promise<void> {
  const reader = body.pipeThrough(new TextDecoderStream() as TransformStream<Uint8Array, string>).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await readOn(reader);
    if (done) throw new CutStream("The stream ended before the answer did.");
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    const events = lines.filter((line) => line.startsWith(DATA)).map((line) => line.slice(DATA.length).trimEnd());
    take(events.filter((event) => event !== DONE).map((event) => JSON.parse(event) as ChatChunk));
    if (events.at(-1) === DONE) return;
  }
}

async function readOn(reader: ReadableStreamDefaultReader<string>): Promise<ReadableStreamReadResult<string>> {
  try {
    return await reader.read();
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new CutStream("The connection was cut.");
  }
}
