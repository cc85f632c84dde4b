// The page at /docs, which is made on the server: here is only what every page has.

import { shell, whenReady } from "./shell.js";

shell();
whenReady(() => {});
