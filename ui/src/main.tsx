/** The page of a Twogear server: everything it shows comes from that server's own API. */

import { render } from "preact";
import { App } from "./parts/App";
import { watchServer } from "./server/connection";
import "./style.css";

watchServer();
render(<App />, document.getElementById("app") as HTMLElement);
