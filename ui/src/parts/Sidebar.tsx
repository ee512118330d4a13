import { useRef } from "preact/hooks";
import { NotAnExport } from "../chat/saved";
import { conversations, current, exportAll, importAll, remove, startNew } from "../chat/store";
import { notice } from "./notice";

/** The conversations of this browser. `onChoose` closes the list where it lies over the page. */
export function Sidebar({ onChoose }: { onChoose: () => void }) {
  const file = useRef<HTMLInputElement>(null);
  return (
    <nav class="sidebar" aria-label="Conversations">
      <button
        type="button"
        class="accent"
        onClick={() => {
          startNew();
          onChoose();
        }}
      >
        New conversation
      </button>
      <ul>
        {conversations.value.map((conversation) => (
          <li key={conversation.id} class={conversation === current.value ? "current" : undefined}>
            <button
              type="button"
              class="name"
              aria-current={conversation === current.value}
              onClick={() => {
                current.value = conversation;
                onChoose();
              }}
            >
              {conversation.title.value || "Untitled"}
            </button>
            <button type="button" class="icon" aria-label={`Delete ${conversation.title.value || "Untitled"}`} onClick={() => remove(conversation)}>
              ✕
            </button>
          </li>
        ))}
      </ul>
      <div class="row">
        <button type="button" class="small" disabled={conversations.value.length === 0} onClick={download}>
          Export
        </button>
        <button type="button" class="small" onClick={() => file.current?.click()}>
          Import
        </button>
        <input
          ref={file}
          type="file"
          accept="application/json,.json"
          class="hidden"
          aria-label="File to import"
          tabIndex={-1}
          onChange={(event) => void read(event.currentTarget)}
        />
      </div>
    </nav>
  );
}

function download(): void {
  const url = URL.createObjectURL(new Blob([exportAll()], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = "twogear-conversations.json";
  link.click();
  URL.revokeObjectURL(url);
}

async function read(input: HTMLInputElement): Promise<void> {
  const file = input.files?.[0];
  if (file === undefined) return;
  try {
    const count = importAll(await file.text());
    notice.value = `Imported ${count} ${count === 1 ? "conversation" : "conversations"} from ${file.name}.`;
  } catch (error) {
    if (!(error instanceof NotAnExport)) throw error;
    notice.value = `${file.name} was not imported. ${error.message}`;
  }
  input.value = "";
}
