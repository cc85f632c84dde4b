// One run on the page: takes its events, and shows how it goes and what it gives.

import { blind } from "./blind.js";
import { chart } from "./chart.js";
import { Compare } from "./compare.js";
import { copy, count, el, percent, seconds } from "./dom.js";
import { Cards } from "./iterations.js";

const WHY = {
  gap: "The gap reward found no further improvement.",
  patience: "Several candidates in a row did not pass.",
  max_iterations: "All iterations were used.",
  token_budget: "The token budget was used up.",
  deadline: "The time was up.",
  cancelled: "Stopped by you.",
  error: "Scoring failed on the way; the best so far is kept.",
};
const LEGEND =
  "How likely each iteration beats the best before it: filled passed, hollow did not; the dashed line is what it takes.";
const NARROW = 260;

export class Outcome {
  /** `gate`: the probability that lets a candidate pass; `hidden`: judge blind; `reuse` takes a text on. */
  constructor({ gate, hidden, reuse }) {
    Object.assign(this, { gate, hidden, reuse });
    this.cards = new Cards();
    this.iterations = [];
    this.reference = null; // until it is drafted
    this.best = null;
    this.title = el("h2", { id: "run-title", tabindex: "-1" }, "Starting…");
    this.facts = el("p", { class: "hint" });
    this.status = el("p", { class: "unseen", role: "status" });
    this.warning = el("p", { class: "notice", role: "status", hidden: true });
    this.links = el("div", { class: "actions" });
    this.graph = el("div", { class: "graph" });
    this.result = el("div", { class: "result" });
    const summary = el("section", { class: "panel summary", "aria-labelledby": "run-title" }, this.title, this.facts, this.graph, this.links);
    this.root = el("div", { class: "run" }, this.status, this.warning, summary, this.result, this.cards.list);
    this.cards.list.hidden = hidden;
    this.sizes = new ResizeObserver(() => this.draw());
    this.sizes.observe(this.graph);
  }

  /** Take one event; true when it was the last. */
  take(event) {
    HANDLERS[event.type]?.call(this, event);
    return event.type === "run.completed" || event.type === "run.failed";
  }

  say(text) {
    if (this.title.textContent !== text) this.title.textContent = this.status.textContent = text;
  }

  warn(text) {
    this.warning.hidden = !text;
    this.warning.textContent = text;
  }

  draw() {
    const width = Math.max(this.graph.clientWidth, NARROW);
    if (!this.iterations.length || (this.drawn === this.iterations.length && this.width === width)) return;
    [this.drawn, this.width] = [this.iterations.length, width];
    const draft = this.improvement?.usage.draft.completion_tokens ?? 0;
    const legend = el("p", { class: "hint" }, LEGEND);
    const drawing = chart(this.iterations, { draft, gate: this.scored ? this.gate : null, width });
    this.graph.replaceChildren(drawing, ...(this.scored ? [legend] : []));
  }

  iterated(iteration) {
    iteration.baseline = this.best;
    this.cards.finished(iteration, this.best);
    this.iterations.push(iteration);
    if (iteration.accepted) this.best = iteration.text;
    this.say(`Iteration ${iteration.index}: ${iteration.accepted ? "accepted" : "rejected"}, ${percent(iteration.win_probability)}`);
    this.draw();
  }

  completed(improvement) {
    this.improvement = improvement;
    improvement.iterations.forEach((iteration, n) => (iteration.baseline = this.iterations[n]?.baseline ?? null));
    if (this.reference === null) this.drafted(improvement.reference);
    this.cards.stopped();
    const passed = improvement.iterations.filter((iteration) => iteration.accepted).length;
    const judged = improvement.iterations.some((iteration) => iteration.win_probability !== null);
    this.say(improvement.improved ? "Improved" : judged ? "Kept as it was: nothing scored better" : "Kept as it was");
    const facts = [
      `${passed} of ${count(improvement.iterations.length, "iteration")} accepted`,
      count(improvement.usage.total_tokens, "token"),
      seconds(improvement.ms),
      `seed ${improvement.seed}`,
    ];
    this.facts.textContent = `${WHY[improvement.stop_reason]} ${facts.join(" · ")}`;
    this.drawn = 0; // the draft's tokens are known now
    this.draw();
    if (improvement.stored) this.links.append(linkButton(improvement.id));
    this.reveal();
  }

  /** What the run gave, or first the question which text is better. */
  reveal() {
    const { improvement } = this;
    const [reference, response] = [this.texts()[0], this.texts().at(-1)];
    const compare = () => {
      this.cards.list.hidden = false;
      this.result.append(new Compare(improvement, this.texts(), { stored: improvement.stored, reuse: this.reuse }).root);
    };
    const judged = improvement.improved && improvement.stored;
    const ask = (done) => blind(improvement.id, [reference, response], done);
    if (this.hidden && judged) this.result.append(ask(compare));
    else {
      compare();
      const judge = (event) => (event.target.remove(), this.ask(ask));
      if (judged) this.links.append(el("button", { type: "button", class: "quiet", onclick: judge }, "Judge blind"));
    }
  }

  ask(ask) {
    const shown = [...this.result.children];
    const hide = (hidden) => [...shown, this.cards.list].forEach((element) => (element.hidden = hidden));
    hide(true);
    const question = ask(() => hide(false));
    this.result.prepend(question);
    question.querySelector("h2").focus();
  }

  /** The run's texts in their order: the reference, what each iteration wrote, the response. */
  texts() {
    const { reference, response, iterations, improved } = this.improvement;
    const written = iterations.filter((iteration) => iteration.text.trim());
    const texts = [{ which: "reference", label: "Draft", text: reference }];
    for (const { index, text, accepted } of written) texts.push({ which: index, label: `Iteration ${index}, ${accepted ? "accepted" : "rejected"}`, text });
    if (improved) texts.push({ which: "response", label: "Response", text: response });
    return texts;
  }

  drafted(text) {
    this.reference = this.best = text;
    this.cards.drafted(text);
  }

  failed(message) {
    this.cards.stopped();
    this.cards.list.hidden = false;
    this.say("This run failed");
    this.facts.textContent = message;
  }
}

const linkButton = (id) => {
  const button = el("button", { type: "button", class: "quiet", onclick: () => copy(`${location.origin}/runs/${id}`, button) }, "Copy link");
  return button;
};

const HANDLERS = {
  "connection.lost"() {
    this.warn("The connection was lost. Trying again…");
  },
  "connection.back"() {
    this.warn("");
  },
  "run.created"(event) {
    this.scored = event.scoring === "gap";
    this.say(event.reference === null ? "Drafting" : "Writing");
    this.facts.textContent = `${event.strategy} · seed ${event.seed}${this.hidden ? " · texts are hidden until you have judged" : ""}`;
    if (event.reference !== null) this.reference = this.best = event.reference;
  },
  "scoring.skipped"(event) {
    this.scored = false;
    this.warn(`Without a gate: ${event.message}`);
  },
  "iteration.started"(event) {
    if (this.reference === null) this.drafted(event.baseline);
    this.best ??= event.baseline;
    this.cards.started(event);
    this.say(`Writing iteration ${event.index}`);
  },
  "output.delta"(event) {
    this.cards.delta(event);
  },
  "candidate.scored"(event) {
    this.cards.scored(event);
  },
  "candidate.rejected"(event) {
    this.cards.violated(event);
  },
  "iteration.accepted"(event) {
    this.iterated(event.iteration);
  },
  "iteration.rejected"(event) {
    this.iterated(event.iteration);
  },
  "run.completed"(event) {
    this.completed(event.improvement);
  },
  "run.failed"(event) {
    this.failed(event.error.message);
  },
};
