// The page at / and at /runs/ID: the form, and one run.

import { call, getJson, inWords, key } from "./api.js";
import { $, copy, el } from "./dom.js";
import { follow, start } from "./follow.js";
import { fillExample, fillForm, requestBody } from "./form.js";
import { Outcome } from "./outcome.js";
import { shell, watchHealth } from "./shell.js";
import { curl, python } from "./snippets.js";

const keeps = document.body.dataset.keeps === "yes";
const RUN = /^\/runs\/([^/]+)$/;
let ready = false;
let path = location.pathname;
let shown = null; // id of the run on the page
let current = null; // {id, control, kept, over, stopping} of the run whose events come

function enable() {
  $("run").disabled = !ready || current !== null;
  $("stop").hidden = current === null || Boolean(current.over);
}

/** Show a run's events as they come. `begun` hears its id. */
async function show(events, run, settings) {
  const outcome = new Outcome({ ...settings, reuse });
  $("outcome").replaceChildren(outcome.root);
  current = run;
  enable();
  try {
    for await (const event of events) {
      if (event.type === "run.created") begun(event.id);
      outcome.take(event);
    }
  } catch (error) {
    if (!run.control.signal.aborted) outcome.failed(inWords(error));
  }
  if (current === run) current = null;
  enable();
}

function begun(id) {
  current.id = shown = id;
  if (current.stopping) cancel();
  if (current.kept && !location.pathname.endsWith(id)) history.pushState(null, "", (path = `/runs/${id}`));
}

function submit() {
  if (current || !ready || !$("request").reportValidity()) return;
  const body = { ...requestBody(), view: "edits" };
  const control = new AbortController();
  const kept = keeps && body.store !== false;
  const settings = { gate: body.min_win_probability ?? 0.5, hidden: $("blind").checked };
  show(start(body, { kept, signal: control.signal }), { id: null, control, kept }, settings);
  if (matchMedia("(max-width: 900px)").matches) $("outcome").scrollIntoView({ block: "start" });
}

/** Open the run that the address names. */
async function open(id) {
  const control = new AbortController();
  $("empty")?.remove();
  try {
    const { request, state } = await getJson(`/v1/improve/${encodeURIComponent(id)}`);
    fillForm(request);
    const settings = { gate: request.min_win_probability ?? 0.5, hidden: false };
    await show(follow(id, { signal: control.signal }), { id, control, kept: true, over: state !== "running" }, settings);
  } catch (error) {
    $("outcome").replaceChildren(el("div", { class: "empty" }, el("h2", {}, "This run cannot be shown"), el("p", { role: "alert" }, inWords(error))));
  }
}

function stop() {
  if (!current || current.stopping) return;
  current.stopping = true;
  $("stop").disabled = true;
  if (current.id) cancel();
}

async function cancel() {
  const run = current;
  try {
    await call(`/v1/improve/${run.id}/cancel`, { method: "POST" });
  } catch {
    run.control.abort(); // without the server nothing more comes anyway
  }
  $("stop").disabled = false;
}

/** Take a text as the next draft. */
function reuse(text) {
  $("draft").value = text;
  $("draft").focus();
  $("draft").scrollIntoView({ block: "center" });
}

function snippets() {
  const [body, origin, withKey] = [requestBody(), location.origin, Boolean(key.get())];
  $("curl").textContent = curl(body, origin, withKey);
  $("python").textContent = python(body, origin, withKey);
}

function route() {
  const id = RUN.exec(location.pathname)?.[1];
  if (id && shown !== id) open(id);
}

/** A run that could not be read while the server started is read now. */
function settle(now) {
  if (now && !ready) route();
  ready = now;
  enable();
}

shell();
watchHealth(settle);
$("request").addEventListener("submit", (event) => (event.preventDefault(), submit()));
$("stop").addEventListener("click", stop);
$("example")?.addEventListener("click", () => (fillExample(), $("prompt").focus()));
$("code").addEventListener("toggle", snippets);
$("request").addEventListener("input", () => $("code").open && snippets());
for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", () => copy($(button.dataset.copies).textContent, button));
}
document.addEventListener("key-changed", () => (ready && route(), $("code").open && snippets()));
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) (event.preventDefault(), submit());
  if (event.key === "Escape") stop();
});
window.addEventListener("popstate", () => location.pathname !== path && location.reload());
if (!keeps) $("unkept").closest("p").hidden = true;
