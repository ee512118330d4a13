/** From what the model writes to elements: Markdown, then a sanitizer, then formulas. Nothing in it runs or is loaded. */

import DOMPurify from "dompurify";
import { Marked, type Token, type TokenizerAndRendererExtension } from "marked";

const TAGS = [
  ...["p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "li", "pre", "code", "em", "strong", "del"],
  ...["a", "table", "thead", "tbody", "tr", "th", "td", "span", "sub", "sup", "kbd"],
];
const ATTRIBUTES = ["href", "title", "class", "start", "align", "data-tex", "data-display"];
/** Formulas as TeX writes them: `\(…\)`, `\[…\]`, `$$…$$`, and `$…$` that looks like one. */
const FORMULA = /^(?:\\\[([\s\S]+?)\\\]|\$\$([\s\S]+?)\$\$|\\\(([\s\S]+?)\\\)|\$(?![\s\d]*\d+[\s,.])([^$\n]*[^$\s\\])\$(?!\d))/;
const FORMULA_BEGIN = /\\\[|\\\(|\$/;

const formula: TokenizerAndRendererExtension = {
  name: "formula",
  level: "inline",
  start: (source) => FORMULA_BEGIN.exec(source)?.index,
  tokenizer(source) {
    const match = FORMULA.exec(source);
    if (match === null) return undefined;
    const [raw, bracketed, dollars, inline, dollar] = match;
    const shown = bracketed ?? dollars;
    return { type: "formula", raw, text: shown ?? inline ?? dollar ?? "", display: shown !== undefined };
  },
  renderer: (token) => `<span class="formula" data-display="${token.display === true}" data-tex="${escaped(token.text)}">${escaped(token.raw)}</span>`,
};

// Images are shown as links: a picture's address would tell another server what was said.
const marked = new Marked({
  gfm: true,
  extensions: [formula],
  renderer: {
    html: ({ text }) => escaped(text),
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text === "" ? href : text)}</a>`,
  },
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

/** The blocks of a text: paragraphs, lists, code. All but the last stay as they are when the text goes on. */
export function blocksOf(text: string): Token[] {
  return marked.lexer(text);
}

/** Puts a block into `element`. */
export function renderBlock(element: Element, block: Token): void {
  const clean = DOMPurify.sanitize(marked.parser([block]), {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
    RETURN_DOM_FRAGMENT: true,
  });
  for (const pre of clean.querySelectorAll("pre")) addCopyButton(pre);
  const formulas = [...clean.querySelectorAll<HTMLElement>(".formula")];
  element.replaceChildren(clean);
  if (formulas.length > 0) void renderFormulas(formulas);
}

/** KaTeX comes with the first formula. It makes MathML, which browsers draw themselves. */
async function renderFormulas(formulas: HTMLElement[]): Promise<void> {
  const { default: katex } = await import("katex");
  for (const element of formulas) {
    const options = { output: "mathml" as const, displayMode: element.dataset.display === "true", throwOnError: false, trust: false };
    katex.render(element.dataset.tex ?? "", element, options);
  }
}

function addCopyButton(pre: HTMLElement): void {
  const button = document.createElement("button");
  Object.assign(button, { className: "copy", type: "button", textContent: "Copy", ariaLabel: "Copy this code" });
  button.addEventListener("click", () => {
    void navigator.clipboard?.writeText(pre.querySelector("code")?.textContent ?? "").then(() => Object.assign(button, { textContent: "Copied", ariaLabel: "Copied this code" }));
  });
  pre.append(button);
  pre.tabIndex = 0;
}

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
