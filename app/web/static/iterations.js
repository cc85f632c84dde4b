// The cards of a run's draft and iterations, written while the run is.

import { diffView } from "./diffview.js";
import { fromApi, hunks } from "./diff.js";
import { count, el, percent, seconds } from "./dom.js";

export class Cards {
  constructor() {
    this.list = el("ol", { class: "cards", "aria-label": "Iterations" });
    this.cards = new Map(); // by index; 0 is the draft
  }

  started({ index }) {
    this.card(index);
  }

  delta({ index, candidate, phase, text }) {
    const card = this.card(index);
    const name = `${candidate}/${phase}`;
    if (!card.streams.has(name)) {
      const stream = el("div", { class: `text stream ${phase}` });
      const label = { feedback: "Critique", response: "Candidate", draft: "Draft" }[phase];
      const which = phase === "draft" ? "" : ` ${candidate + 1}`;
      const head = el("p", { class: "hint" }, `${label}${which}`, el("span", { class: "score" }));
      const block = el("div", { class: "candidate", "data-name": name }, head, stream);
      card.streams.set(name, stream.appendChild(new Text("")));
      card.body.append(block);
    }
    card.streams.get(name).appendData(text);
    card.state(index ? "writing" : "drafting");
  }

  scored({ index, candidate, win_probability }) {
    this.mark(index, candidate, percent(win_probability));
    this.card(index).state("scoring");
  }

  violated({ index, candidate, violations }) {
    this.mark(index, candidate, violations.map((violation) => violation.message).join(" "));
  }

  mark(index, candidate, text) {
    const block = [...this.card(index).body.children].find((child) => child.dataset.name === `${candidate}/response`);
    if (block) block.querySelector(".score").textContent = ` · ${text}`;
  }

  /** The draft is written: what comes now starts from it. */
  drafted(text) {
    const card = this.cards.get(0);
    if (card) card.settle("draft", "Draft", [el("div", { class: "text" }, text)]);
  }

  finished(iteration, baseline) {
    const card = this.card(iteration.index);
    const found = iteration.edits ? fromApi(baseline, iteration.edits) : hunks(baseline, iteration.text);
    const blocks = [...card.body.children];
    const others = blocks.filter((block) => block.dataset.name !== `${iteration.candidate}/response`);
    const body = [iteration.text ? diffView(baseline, found) : el("p", { class: "hint" }, "It wrote nothing.")];
    if (iteration.violations.length) body.unshift(el("ul", { class: "violations" }, iteration.violations.map((v) => el("li", {}, v.message))));
    if (others.length) body.push(fold(others));
    const state = verdict(iteration);
    card.settle(state, VERDICTS[state], body, iteration);
  }

  /** The run is over: a card that has not ended never will. */
  stopped() {
    for (const card of this.cards.values()) if (card.open) card.state("cut");
  }

  card(index) {
    if (!this.cards.has(index)) this.cards.set(index, new Card(index, this.list));
    return this.cards.get(index);
  }
}

const fold = (others) => {
  const critique = others.every((block) => block.dataset.name.endsWith("/feedback"));
  const name = critique ? "The critique" : count(others.length, "other text");
  return el("details", { class: "fold" }, el("summary", {}, name), others);
};

const CUT = new Set(["cancelled", "deadline", "token_budget"]);
const VERDICTS = { accepted: "Accepted", rejected: "Rejected", cut: "Cut short" };

function verdict({ accepted, win_probability, finish_reason }) {
  if (accepted) return "accepted";
  return win_probability === null && CUT.has(finish_reason) ? "cut" : "rejected";
}

const STATES = { waiting: "Waiting", writing: "Writing", drafting: "Writing", scoring: "Scoring", cut: "Not finished" };

class Card {
  constructor(index, list) {
    [this.streams, this.open] = [new Map(), true];
    this.chip = el("span", { class: "chip" });
    this.facts = el("span", { class: "facts" });
    this.body = el("div", { class: "body" });
    const title = el("h3", {}, index ? `Iteration ${index}` : "Draft");
    this.root = el("li", { class: "card" }, el("div", { class: "head" }, title, this.chip, this.facts), this.body);
    list.append(this.root);
    this.state("waiting");
  }

  state(name) {
    this.root.dataset.state = name;
    if (this.chip.textContent !== STATES[name]) this.chip.textContent = STATES[name];
  }

  settle(state, label, body, iteration = null) {
    this.open = false;
    this.root.dataset.state = state;
    this.chip.textContent = label;
    this.facts.replaceChildren(...(iteration ? facts(iteration).filter(Boolean) : []));
    this.body.replaceChildren(...body);
  }
}

function facts({ win_probability, usage, ms }) {
  const bar = el("span", { class: "fill" });
  bar.style.width = percent(win_probability);
  const wins = win_probability === null ? "not scored" : `${percent(win_probability)} likely better`;
  return [
    win_probability === null ? null : el("span", { class: "bar", "aria-hidden": "true" }, bar),
    el("span", { class: "wins" }, wins),
    el("span", { class: "cost" }, `${count(usage.completion_tokens, "token")} · ${seconds(ms)}`),
  ];
}
