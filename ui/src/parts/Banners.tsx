import type { ComponentChildren } from "preact";
import { storageProblem } from "../chat/store";
import { connection, formerVersion, isReady, models, version } from "../server/connection";
import { KeyField } from "./KeyField";
import { notice } from "./notice";

/** What the reader has to know: the server's state, the browser's storage, what just happened. */
export function Banners() {
  return (
    <div class="banners" role="status">
      <ServerBanner />
      {formerVersion.value !== null && (
        <Banner>
          The server is now version {version.value?.version}; this page came from {formerVersion.value}.{" "}
          <button type="button" class="small" onClick={() => location.reload()}>
            Load the new one
          </button>{" "}
          What you typed is kept.
        </Banner>
      )}
      {isReady.value && models.value.every((model) => model.modes.length === 0) && (
        <Banner>This server lists no modes. It may be another than this page is made for; requests are sent without a mode.</Banner>
      )}
      {storageProblem.value !== null && <Banner>{storageProblem.value}</Banner>}
      {notice.value !== null && (
        <Banner>
          {notice.value}{" "}
          <button type="button" class="small" onClick={() => (notice.value = null)}>
            OK
          </button>
        </Banner>
      )}
    </div>
  );
}

function ServerBanner() {
  const now = connection.value;
  switch (now.state) {
    case "ready":
    case "connecting":
      return null;
    case "loading":
      return (
        <Banner>
          The model is loading: {now.detail} <progress max={1} value={now.progress} aria-label="Loading" /> {Math.round(100 * now.progress)} %
        </Banner>
      );
    case "down":
      return <Banner>{now.detail} The page tries again every second; nothing typed is lost.</Banner>;
    case "key":
      return (
        <Banner>
          {now.detail} <KeyField />
        </Banner>
      );
  }
}

function Banner({ children }: { children: ComponentChildren }) {
  return <div class="banner">{children}</div>;
}
