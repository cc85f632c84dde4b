"use strict";
// Texts reach the page as textContent only: markup in a response is shown, never run.
const at = (id) => document.getElementById(id);
const keys = { ArrowLeft: "left", ArrowRight: "right", t: "tie", s: "skip", u: "undo" };
let annotator = "", task = null, busy = false;

async function call(route, body) {
  const options = body === undefined ? {} :
    { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(route, options);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(typeof answer.detail === "string" ? answer.detail : "This was not accepted.");
  return answer;
}

function turn(message) {
  const element = document.createElement("div"), role = document.createElement("b");
  element.className = "turn";
  role.textContent = message.role;
  element.append(role, message.content);
  return element;
}

function show(state) {
  task = state.task;
  at("enter").hidden = true;
  at("contest").hidden = task === null;
  at("end").hidden = task !== null;
  at("bar").hidden = false;
  at("bar").max = state.total || 1;
  at("bar").value = state.done;
  at("count").textContent = `${state.done} of ${state.total}`;
  at("who").textContent = annotator;
  if (task === null) return;
  at("prompt").replaceChildren(...task.prompt.map(turn));
  at("left").textContent = task.left;
  at("right").textContent = task.right;
  for (const id of ["prompt", "left", "right"]) at(id).scrollTop = 0;
}

async function act(work) {
  if (busy) return;
  busy = true;
  at("trouble").hidden = true;
  try {
    show(await work());
  } catch (error) {
    at("trouble").textContent = error instanceof TypeError ?
      "The server does not answer. Your last verdict is not kept; try again." : error.message;
    at("trouble").hidden = false;
  } finally {
    busy = false;
  }
}

function choose(choice) {
  if (choice === "undo") act(() => call("api/undo", { annotator }));
  else if (task !== null) act(() => call("api/verdict", { annotator, key: task.key, choice }));
}

function begin(name) {
  act(async () => {
    const state = await call("api/task?annotator=" + encodeURIComponent(name));
    annotator = name;
    sessionStorage.setItem("annotator", name);
    return state;
  });
}

document.addEventListener("keydown", (event) => {
  if (!annotator || event.target.closest("input") || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const choice = keys[event.key];
  if (choice === undefined) return;
  event.preventDefault();
  choose(choice);
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-choice]");
  if (button) choose(button.dataset.choice);
});
at("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  begin(at("name").value.trim());
});
const before = sessionStorage.getItem("annotator");
if (before) begin(before);
else {
  at("enter").hidden = false;
  at("name").focus();
}
