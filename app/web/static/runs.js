// The page at /runs: the runs so far, the newest first.

import { getJson, inWords } from "./api.js";
import { $, count, el, percent, when } from "./dom.js";
import { shell, whenReady } from "./shell.js";

const PAGE = 20;
const AT_A_TIME = 4;
let last = null;

async function more() {
  $("more").hidden = true;
  try {
    const { data, has_more } = await getJson(`/v1/improve?limit=${PAGE}${last ? `&after=${last}` : ""}`);
    $("runs-note").textContent = data.length || last ? "" : "No runs yet.";
    const rows = data.map(row);
    $("runs").append(...rows.map(({ item }) => item));
    last = data.at(-1)?.id ?? last;
    $("more").hidden = !has_more;
    details(rows);
  } catch (error) {
    $("runs-note").textContent = inWords(error);
  }
}

function row(run) {
  const prompt = el("span", { class: "prompt" }, run.id);
  const result = el("span", { class: "hint" }, run.iterations === null ? "" : count(run.iterations, "iteration"));
  const chip = el("span", { class: "chip" }, run.state);
  const link = el("a", { href: `/runs/${run.id}` }, prompt);
  const item = el("li", { "data-state": run.state }, link, chip, result, el("time", { class: "hint" }, when(run.created)));
  return { run, item, prompt, result };
}

/** The list does not hold what was asked: each run is read for that, some at a time. */
async function details(rows) {
  const waiting = [...rows];
  const worker = async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      const { request, result } = await getJson(`/v1/improve/${next.run.id}`).catch(() => ({}));
      if (!request) continue;
      const { content } = request.messages.at(-1);
      next.prompt.textContent = typeof content === "string" ? content : content.map((part) => part.text).join(" ");
      if (result) next.result.textContent = verdict(result);
    }
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, worker));
}

function verdict({ improved, iterations }) {
  const won = iterations.filter((iteration) => iteration.accepted).at(-1);
  const how = improved ? `improved${won?.win_probability ? `, ${percent(won.win_probability)}` : ""}` : "kept";
  return `${how} · ${count(iterations.length, "iteration")}`;
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
