// The page at /batches: upload a file of requests, watch it being worked on, take the results.

import { call, getJson, inWords, postJson } from "./api.js";
import { $, count, el, when } from "./dom.js";
import { shell, whenReady } from "./shell.js";

const OVER = new Set(["completed", "failed", "expired", "cancelled"]);
const SOON = 1000;
const rows = new Map(); // by id
let timer = null;

async function refresh() {
  clearTimeout(timer);
  try {
    const { data } = await getJson("/v1/batches?limit=100");
    $("batches-note").textContent = data.length ? "" : "No batches yet.";
    data.toReversed().forEach(update);
    if (data.some((batch) => !OVER.has(batch.status))) timer = setTimeout(refresh, SOON);
  } catch (error) {
    $("batches-note").textContent = inWords(error);
    if (error.status !== 401 && error.status !== 404) timer = setTimeout(refresh, 5 * SOON);
  }
}

/** The newest is first: whoever is new goes on top. */
function update(batch) {
  if (!rows.has(batch.id)) {
    rows.set(batch.id, new Row(batch));
    $("batches").prepend(rows.get(batch.id).root);
  }
  rows.get(batch.id).show(batch);
}

class Row {
  constructor(batch) {
    this.chip = el("span", { class: "chip" });
    this.bar = el("progress", { max: 1, value: 0, "aria-label": "progress" });
    this.facts = el("p", { class: "hint" });
    this.cancel = this.button("Cancel", () => postJson(`/v1/batches/${batch.id}/cancel`, {}));
    this.links = el("div", { class: "actions" }, this.cancel);
    const head = el("div", { class: "head" }, el("h2", {}, batch.metadata?.name ?? batch.id), this.chip, el("time", { class: "hint" }, when(batch.created_at)));
    this.root = el("li", { class: "card" }, head, this.bar, this.facts, this.links);
  }

  show(batch) {
    const { total, completed, failed } = batch.request_counts;
    const over = OVER.has(batch.status);
    this.root.dataset.state = this.chip.textContent = batch.status.replace("_", " ");
    if (total) this.bar.value = (completed + failed) / total;
    else if (!over) this.bar.removeAttribute("value"); // its lines are being read
    this.bar.hidden = over && !total;
    this.facts.textContent = `${batch.endpoint} · ${completed} of ${count(total, "request")} done${failed ? `, ${failed} failed` : ""}${refusals(batch)}`;
    this.cancel.hidden = over || batch.status === "cancelling";
    this.offer("output", batch.output_file_id, "Download results");
    this.offer("errors", batch.error_file_id, "Download errors");
  }

  button(label, work) {
    return el("button", { type: "button", class: "quiet", onclick: () => act(this.facts, work) }, label);
  }

  offer(kind, file, label) {
    if (!file || this[kind]) return;
    this[kind] = this.button(label, () => download(file, kind));
    this.links.append(this[kind]);
  }
}

const refusals = ({ errors }) =>
  (errors?.data ?? []).slice(0, 5).map(({ line, message }) => ` · ${line ? `line ${line}: ` : ""}${message}`).join("");

/** A click's work; what goes wrong is said where `place` is. */
async function act(place, work) {
  try {
    await work();
    refresh();
  } catch (error) {
    place.textContent = inWords(error);
  }
}

/** By fetch and not by a link, which could not send the key. */
async function download(file, kind) {
  const address = URL.createObjectURL(await (await call(`/v1/files/${file}/content`)).blob());
  el("a", { href: address, download: `${file}-${kind}.jsonl` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

async function begin(event) {
  event.preventDefault();
  $("begin").disabled = true;
  $("batches-note").textContent = "Uploading…";
  try {
    const [chosen] = $("file").files;
    const form = new FormData();
    form.append("purpose", "batch");
    form.append("file", chosen);
    const { id } = await getJson("/v1/files", { method: "POST", body: form });
    await postJson("/v1/batches", {
      input_file_id: id,
      endpoint: $("endpoint").value,
      completion_window: $("window").value,
      metadata: { name: chosen.name.slice(0, 512) },
    });
    $("upload").reset();
    await refresh();
  } catch (error) {
    $("batches-note").textContent = inWords(error);
  }
  $("begin").disabled = false;
}

shell();
whenReady(refresh);
$("upload").addEventListener("submit", begin);
document.addEventListener("key-changed", refresh);
