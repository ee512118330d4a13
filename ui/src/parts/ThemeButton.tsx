import { signal } from "@preact/signals";

const NAME = "twogear.theme";
const THEMES = ["auto", "light", "dark"] as const;
type Theme = (typeof THEMES)[number];
const LOOKS: Record<Theme, string> = { auto: "◐", light: "☀", dark: "☾" };

const theme = signal(kept());
theme.subscribe((chosen) => {
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
});

/** Light, dark, or as the system has it. */
export function ThemeButton() {
  const next = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length] as Theme;
  return (
    <button type="button" class="icon" title={`Colours: ${theme.value}`} aria-label={`Colours: ${theme.value}; change to ${next}`} onClick={() => choose(next)}>
      {LOOKS[theme.value]}
    </button>
  );
}

function choose(chosen: Theme): void {
  theme.value = chosen;
  try {
    localStorage.setItem(NAME, chosen);
  } catch {
    // It holds until the page is closed.
  }
}

function kept(): Theme {
  try {
    return THEMES.find((one) => one === localStorage.getItem(NAME)) ?? "auto";
  } catch {
    return "auto";
  }
}
