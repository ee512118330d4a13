import { useEffect, useRef } from "preact/hooks";
import type { TextFlow } from "../chat/flow";
import { blocksOf, renderBlock } from "./markdown";

/** How many times as long as it took the end of a text is left alone before it is rendered again. */
const REST = 6;

/** A text as Markdown. Of one that grows, finished blocks are rendered once and the last one again and again. */
export function MarkdownView({ flow }: { flow: TextFlow }) {
  const element = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const writer = new BlockWriter(element.current as HTMLDivElement);
    const end = flow.follow((added) => writer.append(added));
    return () => {
      end();
      writer.close();
    };
  }, [flow]);
  return <div class="markdown" ref={element} />;
}

class BlockWriter {
  private open = "";
  private last: HTMLElement | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private notBefore = 0;

  constructor(private readonly element: HTMLElement) {
    element.replaceChildren();
  }

  append(added: string): void {
    this.open += added;
    if (this.timer !== undefined) return;
    const wait = this.notBefore - performance.now();
    if (wait <= 0) this.render();
    else this.timer = setTimeout(() => this.render(), wait);
  }

  close(): void {
    clearTimeout(this.timer);
  }

  private render(): void {
    this.timer = undefined;
    const began = performance.now();
    const blocks = blocksOf(this.open);
    const last = blocks.pop();
    for (const block of blocks) {
      renderBlock(this.place(), block);
      this.last = null;
    }
    this.open = last?.raw ?? "";
    if (last !== undefined) renderBlock(this.place(), last);
    const now = performance.now();
    this.notBefore = now + REST * (now - began);
  }

  private place(): HTMLElement {
    this.last ??= this.element.appendChild(document.createElement("div"));
    return this.last;
  }
}
