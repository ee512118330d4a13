/** Text that grows: views append what came, and never write the whole again. */
export class TextFlow {
  private parts: string[];
  private readonly listeners = new Set<(added: string) => void>();

  constructor(text = "") {
    this.parts = text === "" ? [] : [text];
  }

  get text(): string {
    if (this.parts.length > 1) this.parts = [this.parts.join("")];
    return this.parts[0] ?? "";
  }

  get isEmpty(): boolean {
    return this.parts.length === 0;
  }

  append(added: string): void {
    if (added === "") return;
    this.parts.push(added);
    for (const listener of this.listeners) listener(added);
  }

  /** Calls `listener` with the text so far, then with all that is added. Returns what ends that. */
  follow(listener: (added: string) => void): () => void {
    if (!this.isEmpty) listener(this.text);
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  toJSON(): string {
    return this.text;
  }
}
