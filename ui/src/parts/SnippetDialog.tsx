import { useState } from "preact/hooks";
import { APIS, LANGUAGES, snippet } from "../chat/snippets";
import { apiKey } from "../server/api";
import type { ChatBody } from "../server/types";
import { Choice } from "./Choice";
import { Dialog } from "./Dialog";

/** The request of a run as code. */
export function SnippetDialog({ body, onClose }: { body: ChatBody; onClose: () => void }) {
  const [api, setApi] = useState(APIS[0] as (typeof APIS)[number]);
  const [language, setLanguage] = useState(LANGUAGES[0] as (typeof LANGUAGES)[number]);
  const [copied, setCopied] = useState(false);
  const code = snippet(body, api, language, apiKey.value !== "");
  const copy = () => void navigator.clipboard?.writeText(code).then(() => setCopied(true));
  return (
    <Dialog title="This request as code" onClose={onClose}>
      <div class="row">
        <Choice label="Language" options={LANGUAGES} chosen={language} onChoose={setLanguage} />
        <Choice label="API" options={APIS} chosen={api} onChoose={setApi} />
        <button type="button" class="small" onClick={copy}>
          {copied ? "Copied" : "Copy"}
        </button>
      </div>
      <pre class="code" tabIndex={0}>
        {code}
      </pre>
    </Dialog>
  );
}
