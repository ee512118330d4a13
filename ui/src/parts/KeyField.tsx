import { useState } from "preact/hooks";
import { apiKey, setApiKey } from "../server/api";

/** The API key, for this tab only. */
export function KeyField() {
  const [typed, setTyped] = useState(apiKey.value);
  return (
    <form
      class="key"
      onSubmit={(event) => {
        event.preventDefault();
        setApiKey(typed.trim());
      }}
    >
      <label>
        API key
        <input type="password" autocomplete="off" value={typed} placeholder="none" onInput={(event) => setTyped(event.currentTarget.value)} />
      </label>
      <button type="submit" class="small" disabled={typed.trim() === apiKey.value}>
        Use it
      </button>
    </form>
  );
}
