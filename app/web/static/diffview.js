// A text with its changes. Where `accepted` is given (a set of their places) each one can be undone.

import { el } from "./dom.js";

export function diffView(old, found, { accepted = null, onchange = () => {} } = {}) {
  const view = el("div", { class: "text diff" });
  let place = 0;
  found.forEach((hunk, number) => {
    if (hunk.start > place) view.append(old.slice(place, hunk.start));
    view.append(accepted ? toggle(hunk, number, accepted, onchange) : change(hunk));
    place = hunk.end;
  });
  view.append(old.slice(place));
  return view;
}

function parts({ before, after }) {
  return [before ? el("del", {}, before) : null, after ? el("ins", {}, after) : null];
}

const change = (hunk) => el("span", { class: "hunk" }, parts(hunk));

function toggle(hunk, number, accepted, onchange) {
  const flip = () => {
    if (!accepted.delete(number)) accepted.add(number);
    show();
    onchange();
  };
  const span = el(
    "span",
    {
      class: "hunk choice",
      role: "button",
      tabindex: "0",
      onclick: flip,
      onkeydown: (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        if (event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        flip();
      },
    },
    parts(hunk),
  );
  const show = () => {
    span.setAttribute("aria-pressed", accepted.has(number));
    span.title = accepted.has(number) ? "Taken. Click to undo this change" : "Undone. Click to take this change";
  };
  show();
  return span;
}
