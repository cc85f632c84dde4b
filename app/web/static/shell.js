// What every page has: the theme, the API key, how the server is.

import { getJson, key } from "./api.js";
import { $ } from "./dom.js";

const SOON = 1500;
const LATER = 15000;

export function shell() {
  theme();
  keyDialog();
}

function theme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = $("theme-toggle");
  const dark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to the ${dark() ? "light" : "dark"} theme`);
  };
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    localStorage.setItem("theme", root.dataset.theme);
    show();
  });
  system.addEventListener("change", show);
  show();
}

function keyDialog() {
  const [dialog, input, why] = [$("key-dialog"), $("key"), $("key-why")];
  const usual = why.textContent;
  const open = (reason) => {
    why.textContent = reason;
    input.value = key.get();
    if (!dialog.open) dialog.showModal();
  };
  const settle = (value) => {
    key.set(value.trim());
    dialog.close();
    document.dispatchEvent(new CustomEvent("key-changed"));
  };
  $("key-open").addEventListener("click", () => open(usual));
  document.addEventListener("key-wanted", (event) => open(`${key.get() ? event.detail : "This server asks for an API key."} ${usual}`));
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    settle(input.value);
  });
  $("key-forget").addEventListener("click", () => settle(""));
  $("key-cancel").addEventListener("click", () => dialog.close());
}

/** Ask how the server is, again and again; `told` hears whether it is ready each time that is known. */
export async function watchHealth(told) {
  for (;;) {
    const state = await health();
    showHealth(state);
    told(state.ready);
    await new Promise((resolve) => setTimeout(resolve, state.ready ? LATER : SOON));
  }
}

/** Show how the server is, and call `act` whenever it has become ready. */
export function whenReady(act) {
  let before = false;
  watchHealth((ready) => {
    if (ready && !before) act();
    before = ready;
  });
}

async function health() {
  try {
    const { degraded } = await getJson("/health");
    return { ready: true, text: degraded.length ? "Limited" : "Ready", why: degraded, notice: sentence(degraded, "Works, but not all of it") };
  } catch (error) {
    if (!error.status) return { ready: false, text: "No answer", notice: "The server does not answer. The page tries again by itself." };
    return { ready: false, text: "Loading", notice: `${error.message} You can write meanwhile; the page notices when it is.` };
  }
}

const sentence = (reasons, head) => (reasons.length ? `${head}: ${reasons.join("; ")}.` : "");

function showHealth({ ready, text, notice }) {
  $("health").dataset.state = ready ? (notice ? "limited" : "ready") : "waiting";
  if ($("health-text").textContent !== text) $("health-text").textContent = text;
  $("notice").hidden = !notice;
  if ($("notice").textContent !== notice) $("notice").textContent = notice;
}
