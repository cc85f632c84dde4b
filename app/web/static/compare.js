// The result: any text of the run against any earlier one, change by change, to take, mend and copy.

import { inWords, postJson } from "./api.js";
import { apply, fromApi, hunks } from "./diff.js";
import { diffView } from "./diffview.js";
import { copy, count, el } from "./dom.js";

/** `texts` are {which, label, text} in the order in which they came; `result` is the API's improvement. */
export class Compare {
  constructor(result, texts, { stored, reuse }) {
    Object.assign(this, { result, texts, stored });
    this.from = el("select", { "aria-label": "From", onchange: () => this.compare() });
    this.to = el("select", { "aria-label": "To", onchange: () => this.compare() });
    this.view = el("div", { class: "view" });
    this.said = el("p", { class: "hint", role: "status" });
    this.tally = el("span", { class: "hint" });
    this.mend = button("Edit text", () => this.edit());
    const copyText = el("button", { type: "button", class: "primary", onclick: () => copy(this.text(), copyText) }, "Copy text");
    this.all = [link("Take all", () => this.take(true)), link("Undo all", () => this.take(false))];
    this.save = stored ? button("Save as feedback", () => this.send()) : null;
    const pair = el("div", { class: "pair" }, this.from, el("span", { "aria-hidden": "true" }, "→"), this.to);
    this.root = el(
      "section",
      { class: "panel compare", "aria-labelledby": "compare-title" },
      el("div", { class: "head" }, el("h2", { id: "compare-title" }, "Changes"), pair),
      el("div", { class: "tally" }, this.tally, this.all),
      this.view,
      el("div", { class: "actions" }, copyText, this.mend, button("Improve further", () => reuse(this.text())), this.save),
      this.said,
    );
    this.choices();
  }

  /** What can be compared: each text with those before it. */
  choices() {
    const names = this.texts.map(({ label }, n) => el("option", { value: n }, label));
    this.from.append(...names.slice(0, -1));
    this.to.append(...names.slice(1).map((name) => name.cloneNode(true)));
    if (names.length > 1) this.to.value = String(names.length - 1);
    this.compare();
    if (!this.result.improved) this.take(false); // the draft stays unless the reader takes something
  }

  compare() {
    const to = this.texts[Number(this.to.value)] ?? this.texts[0];
    for (const option of this.from.options) option.disabled = Number(option.value) >= Number(this.to.value);
    if (this.from.selectedOptions[0]?.disabled) this.from.value = "0";
    const from = this.texts[Number(this.from.value)] ?? this.texts[0];
    [this.old, this.target] = [from, to];
    const edits = this.apiEdits();
    this.hunks = edits ? fromApi(from.text, edits) : hunks(from.text, to.text);
    this.accepted = new Set(this.hunks.keys());
    this.said.textContent = "";
    this.show();
  }

  /** The API's own edits, where this is the pair that they are of: then feedback can name them. */
  apiEdits() {
    const { old, target, result } = this;
    if (target.which === "response") return old.which === "reference" ? result.edits : null;
    const iteration = result.iterations[target.which - 1];
    return iteration && old.text === iteration.baseline ? iteration.edits : null;
  }

  show() {
    this.area = null;
    this.mend.textContent = "Edit text";
    const view = diffView(this.old.text, this.hunks, { accepted: this.accepted, onchange: () => this.counted() });
    this.view.replaceChildren(view);
    this.counted();
  }

  counted() {
    const all = this.hunks.length;
    this.tally.textContent = all ? `${this.accepted.size} of ${count(all, "change")} taken` : "The texts are the same.";
    for (const link of this.all) link.hidden = !all || Boolean(this.area);
  }

  take(all) {
    this.accepted = new Set(all ? this.hunks.keys() : []);
    this.show();
  }

  /** Between the changes and the text that they give, to be written in. */
  edit() {
    if (this.area) return this.show();
    this.area = el("textarea", { rows: 8, "aria-label": "The result" });
    this.area.value = apply(this.old.text, this.hunks, this.accepted);
    this.mend.textContent = "Back to changes";
    this.view.replaceChildren(this.area);
    this.counted();
    this.area.focus();
  }

  text() {
    return this.area?.value ?? apply(this.old.text, this.hunks, this.accepted);
  }

  async send() {
    this.save.disabled = true;
    try {
      const { pairs } = await postJson("/v1/feedback", this.feedback());
      this.said.textContent = `Saved: ${count(pairs, "preference pair")} for the next training.`;
    } catch (error) {
      this.said.textContent = inWords(error);
    }
    this.save.disabled = false;
  }

  feedback() {
    const run = this.result.id;
    const response = this.target.which;
    if (!this.area && this.apiEdits()) return { type: "edits", run, accepted: [...this.accepted].sort((a, b) => a - b), response };
    if (!this.area && this.accepted.size === this.hunks.length) return { type: "comparison", run, preferred: response, other: this.old.which };
    return { type: "correction", run, text: this.text(), response };
  }
}

const button = (label, onclick) => el("button", { type: "button", class: "quiet", onclick }, label);

const link = (label, onclick) => el("button", { type: "button", class: "link", onclick }, label);
