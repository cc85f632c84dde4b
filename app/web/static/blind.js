// A blind comparison: two texts without names, on sides drawn by chance. What is chosen becomes feedback.

import { inWords, postJson } from "./api.js";
import { el } from "./dom.js";

/** `pair`: two of {which, label, text}. `done` is called once, after the reader has chosen or passed. */
export function blind(run, pair, done) {
  const sides = crypto.getRandomValues(new Uint8Array(1))[0] % 2 ? [pair[1], pair[0]] : pair;
  const said = el("p", { class: "hint", role: "status" });
  const titles = ["A", "B"].map((name) => el("h3", {}, name));
  const texts = sides.map((side, n) => el("article", { class: "side" }, titles[n], el("div", { class: "text" }, side.text)));
  const buttons = [...["A", "B"].map((name, n) => vote(`${name} is better`, n)), vote("I cannot tell", null)];
  const root = el(
    "section",
    { class: "panel blind", "aria-labelledby": "blind-title" },
    el("h2", { id: "blind-title", tabindex: "-1" }, "Which one is better?"),
    el("div", { class: "sides" }, texts),
    el("div", { class: "actions" }, buttons),
    said,
  );

  function vote(label, chosen) {
    return el("button", { type: "button", class: chosen === null ? "quiet" : "primary", onclick: () => choose(chosen) }, label);
  }

  async function choose(chosen) {
    buttons.forEach((button) => (button.disabled = true));
    try {
      if (chosen !== null) await postJson("/v1/feedback", { type: "comparison", run, preferred: sides[chosen].which, other: sides[1 - chosen].which });
      said.textContent = chosen === null ? "Nothing was saved." : "Saved as feedback.";
    } catch (error) {
      said.textContent = inWords(error);
      buttons.forEach((button) => (button.disabled = false));
      return;
    }
    sides.forEach((side, n) => (titles[n].textContent = `${"AB"[n]} was: ${side.label}`));
    buttons.forEach((button) => button.remove());
    done();
  }

  return root;
}
