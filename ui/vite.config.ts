import { readFileSync } from "node:fs";
import { defineConfig, type Plugin } from "vite";

const LIBRARIES = ["preact", "@preact/signals", "@preact/signals-core", "marked", "dompurify", "katex"];

/** Puts the licences of what is bundled beside it. */
function licences(): Plugin {
  return {
    name: "licences",
    generateBundle() {
      const texts = LIBRARIES.map((name) => {
        const about = JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8")) as Record<string, string>;
        return `${name} ${about.version} (${about.license})\n\n${readFileSync(`node_modules/${name}/LICENSE`, "utf8").trim()}\n`;
      });
      this.emitFile({ type: "asset", fileName: "assets/licences.txt", source: texts.join(`\n${"-".repeat(80)}\n\n`) });
    },
  };
}

// Relative addresses, so that the page works under any path of a proxy. Nothing is inlined: the policy allows files only.
export default defineConfig({
  base: "./",
  plugins: [licences()],
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../server/ui",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
  },
});
