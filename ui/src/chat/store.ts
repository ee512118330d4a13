/** All conversations, kept in the browser where it allows that; `storageProblem` says where it does not. */

import { signal } from "@preact/signals";
import { NO_SETTINGS, newConversation, newId, type Conversation } from "./model";
import { conversationOf, exported, imported } from "./saved";

const PREFIX = "twogear.conversation.";
const DRAFT = "twogear.draft";
const NOT_KEPT = "This browser keeps nothing for this page: conversations are lost when it is closed. Export saves them to a file.";
const FULL = "The browser's storage for this page is full: the newest is not kept. Export, then delete old conversations.";

export const storageProblem = signal<string | null>(null);
export const conversations = signal<Conversation[]>(stored());
export const current = signal<Conversation>(conversations.value[0] ?? newConversation(NO_SETTINGS));
/** What is typed and not sent. */
export const draft = signal(keptDraft());

draft.subscribe((text) => keep(DRAFT, text));

/** Keeps a conversation as it is now, at the head of the list. */
export function save(conversation: Conversation): void {
  conversation.updated = Date.now();
  conversations.value = [conversation, ...conversations.value.filter((other) => other.id !== conversation.id)];
  keep(PREFIX + conversation.id, JSON.stringify(conversation));
}

/** Shows a new one, with the settings of the one before. */
export function startNew(): void {
  current.value = newConversation(current.value.settings.value);
}

export function remove(conversation: Conversation): void {
  conversations.value = conversations.value.filter((other) => other.id !== conversation.id);
  if (current.value.id === conversation.id) current.value = conversations.value[0] ?? newConversation(NO_SETTINGS);
  try {
    localStorage.removeItem(PREFIX + conversation.id);
  } catch {
    storageProblem.value = NOT_KEPT;
  }
}

export function exportAll(): string {
  return exported(conversations.value);
}

/** Adds those of an exported file; ones that are here already come a second time. Throws NotAnExport. */
export function importAll(text: string): number {
  const added = imported(text);
  const taken = new Set(conversations.value.map((one) => one.id));
  for (const conversation of added.reverse()) {
    if (taken.has(conversation.id)) conversation.id = newId();
    save(conversation);
  }
  const newest = added.at(-1);
  if (newest !== undefined) current.value = newest;
  return added.length;
}

function keep(name: string, text: string): void {
  try {
    localStorage.setItem(name, text);
  } catch (error) {
    storageProblem.value = error instanceof DOMException && error.name === "QuotaExceededError" ? FULL : NOT_KEPT;
  }
}

function keptDraft(): string {
  try {
    return localStorage.getItem(DRAFT) ?? "";
  } catch {
    return "";
  }
}

/** The kept ones, the newest first; what cannot be read stays where it is and is not shown. */
function stored(): Conversation[] {
  try {
    const names = Object.keys(localStorage).filter((name) => name.startsWith(PREFIX));
    const found = names.flatMap((name) => readable(localStorage.getItem(name) ?? ""));
    return found.sort((one, other) => other.updated - one.updated);
  } catch {
    storageProblem.value = NOT_KEPT;
    return [];
  }
}

function readable(text: string): Conversation[] {
  try {
    return [conversationOf(JSON.parse(text), "it")];
  } catch {
    storageProblem.value = "A conversation that this browser kept cannot be read by this version of the page.";
    return [];
  }
}
