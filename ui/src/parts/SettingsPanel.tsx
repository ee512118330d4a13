import { change, model } from "../chat/actions";
import { BadSetting, SAMPLING, schemaOf, toolsOf } from "../chat/request";
import { current } from "../chat/store";
import { models } from "../server/connection";
import { number } from "../text/format";
import { KeyField } from "./KeyField";

const TOOLS_EXAMPLE = `[{"name": "calculator", "description": "Evaluate an arithmetic expression",
  "parameters": {"type": "object", "properties": {"expression": {"type": "string"}},
    "required": ["expression"]}}]`;
const SCHEMA_EXAMPLE = `{"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}`;

/** What is asked for with each message of the conversation. */
export function SettingsPanel() {
  const settings = current.value.settings.value;
  return (
    <div class="panel">
      {models.value.length > 1 && (
        <label>
          Model
          <select value={model.value?.name} onChange={(event) => change({ model: event.currentTarget.value })}>
            {models.value.map(({ name }) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
      )}
      {model.value !== undefined && (
        <p class="dim">
          {model.value.name}
          {model.value.context !== null && `, ${number(model.value.context)} tokens of context`}
        </p>
      )}
      <label>
        System prompt
        <textarea rows={3} value={settings.system} onInput={(event) => change({ system: event.currentTarget.value })} />
      </label>
      <fieldset>
        <legend>Sampling</legend>
        <p class="dim">Left empty, the mode's own.</p>
        <div class="sampling">
          {SAMPLING.map(({ name, about }) => (
            <label key={name} title={about}>
              {name}
              <input type="text" inputMode="decimal" value={settings.sampling[name] ?? ""} onInput={(event) => change({ sampling: { ...settings.sampling, [name]: event.currentTarget.value } })} />
            </label>
          ))}
        </div>
      </fieldset>
      <label class="check">
        <input type="checkbox" checked={settings.logprobs} onChange={(event) => change({ logprobs: event.currentTarget.checked })} />
        Token probabilities
      </label>
      <JsonField label="Tools" hint="A list of functions. Calls are shown, and you type in what they return." example={TOOLS_EXAMPLE} value={settings.tools} check={toolsOf} onInput={(tools) => change({ tools })} />
      <JsonField label="JSON schema of the answer" hint="Binds the answer, never the thinking." example={SCHEMA_EXAMPLE} value={settings.schema} check={schemaOf} onInput={(schema) => change({ schema })} />
      <KeyField />
    </div>
  );
}

interface JsonFieldProps {
  label: string;
  hint: string;
  example: string;
  value: string;
  check: (text: string) => unknown;
  onInput: (text: string) => void;
}

function JsonField({ label, hint, example, value, check, onInput }: JsonFieldProps) {
  const wrong = wrongWith(value, check);
  return (
    <div>
      <label>
        {label}
        <textarea rows={4} spellcheck={false} class="code" value={value} aria-invalid={wrong !== null} onInput={(event) => onInput(event.currentTarget.value)} />
      </label>
      <p class={wrong === null ? "dim" : "error"}>
        {wrong ?? hint}{" "}
        {value === "" && (
          <button type="button" class="small" onClick={() => onInput(example)}>
            Example<span class="hidden"> of {label}</span>
          </button>
        )}
      </p>
    </div>
  );
}

function wrongWith(text: string, check: (text: string) => unknown): string | null {
  try {
    check(text);
    return null;
  } catch (error) {
    if (!(error instanceof BadSetting)) throw error;
    return error.message;
  }
}
