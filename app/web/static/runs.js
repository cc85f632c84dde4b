// The page at /runs: the runs so far, the newest first.

import { getJson, inWords } from "./api.js";
import { $, count, el, percent, when } from "./dom.js";
import { shell, whenReady } from "./shell.js";

const PAGE = 20;
let last = null;

async function more() {
  $("more").hidden = true;
  try {
    const { data, has_more } = await getJson(`/v1/improve?limit=${PAGE}${last ? `&after=${last}` : ""}`);
    $("runs-note").textContent = data.length || last ? "" : "No runs yet.";
    $("runs").append(...data.map(row));
    last = data.at(-1)?.id ?? last;
    $("more").hidden = !has_more;
  } catch (error) {
    $("runs-note").textContent = inWords(error);
  }
}

function row(run) {
  const link = el("a", { href: `/runs/${run.id}` }, el("span", { class: "prompt" }, run.excerpt || run.id));
  const chip = el("span", { class: "chip" }, run.state);
  const outcome = el("span", { class: "hint" }, verdict(run));
  return el("li", { "data-state": run.state }, link, chip, outcome, el("time", { class: "hint" }, when(run.created)));
}

function verdict({ improved, win_probability, iterations }) {
  if (iterations === null) return "";
  const how = improved ? `improved${win_probability ? `, ${percent(win_probability)}` : ""}` : "kept";
  return `${how} · ${count(iterations, "iteration")}`;
}

function again() {
  last = null;
  $("runs").replaceChildren();
  more();
}

shell();
whenReady(again);
$("more").addEventListener("click", more);
document.addEventListener("key-changed", again);
