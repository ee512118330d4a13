/** What goes to the server and comes from it, as docs/api.md has it; only the fields that the page uses. */

export interface ListedModel {
  id: string;
  root?: string;
  max_model_len?: number | null;
  reasoning_mode?: string;
  kind?: string;
}

export interface ToolCall {
  id: string;
  type: "function";
  function: { name: string; arguments: string };
}

export type ChatMessage =
  | { role: "system" | "user"; content: string }
  | { role: "assistant"; content: string | null; tool_calls?: ToolCall[] }
  | { role: "tool"; tool_call_id: string; content: string };

/** A chat completion's body; sampling fields stand beside the named ones. */
export interface ChatBody {
  model: string;
  messages: ChatMessage[];
  reasoning_mode?: string;
  thinking_token_budget?: number;
  tools?: unknown[];
  response_format?: unknown;
  logprobs?: boolean;
  top_logprobs?: number;
  stream: true;
  stream_options: { include_usage: true; continuous_usage_stats: true };
  [sampling: string]: unknown;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens?: number };
  completion_tokens_details?: { reasoning_tokens?: number };
}

export interface TokenLogprob {
  token: string;
  logprob: number;
  top_logprobs: { token: string; logprob: number }[];
}

export interface ErrorBody {
  message: string;
  type?: string;
  param?: string | null;
  code?: string | null;
}

export interface ToolCallDelta {
  index: number;
  id?: string;
  function?: { name?: string; arguments?: string };
}

export interface ChatChunk {
  id?: string;
  error?: ErrorBody;
  usage?: Usage | null;
  choices?: {
    delta: { content?: string | null; reasoning_content?: string | null; reasoning?: string | null; tool_calls?: ToolCallDelta[] };
    logprobs?: { content?: TokenLogprob[] | null } | null;
    finish_reason?: string | null;
    reasoning_finish_reason?: string;
  }[];
}

export interface Health {
  status: string;
  progress?: number;
  detail?: string;
}
