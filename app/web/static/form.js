// The form and the request that it stands for.

import { $ } from "./dom.js";

const NUMBERS = { max_iterations: 3, candidates: 1, min_win_probability: 0.5, patience: 1, max_tokens: null, temperature: null };
const CHOICES = { strategy: "pit", scoring: "best_effort" };

let earlier = []; // messages before the last one, of a run that was loaded

/** The body of `POST /v1/improve`, without what is the default anyway. */
export function requestBody() {
  const system = $("system").value.trim();
  const before = system ? [{ role: "system", content: system }, ...earlier] : earlier;
  const body = { messages: [...before, { role: "user", content: $("prompt").value }] };
  if ($("draft").value.trim()) body.reference = $("draft").value;
  for (const [name, usual] of Object.entries(NUMBERS)) {
    const value = $(name).value.trim();
    if (value !== "" && Number(value) !== usual) body[name] = Number(value);
  }
  for (const [name, usual] of Object.entries(CHOICES)) if ($(name).value !== usual) body[name] = $(name).value;
  const keep = mustKeep();
  if (keep) body.keep = keep;
  if ($("seed").value.trim()) body.seed = Number($("seed").value);
  if ($("unkept").checked) body.store = false;
  return body;
}

function mustKeep() {
  const quotes = $("quotes").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const keep = {};
  if (quotes.length) keep.quotes = quotes;
  if ($("quoted").checked) keep.quoted = true;
  return Object.keys(keep).length ? keep : null;
}

/** Fill the form from a run's request. */
export function fillForm(request) {
  const messages = request.messages.map(({ role, content }) => ({ role, content: asText(content) }));
  $("prompt").value = messages.pop().content;
  $("system").value = messages[0]?.role === "system" ? messages.shift().content : "";
  earlier = messages;
  $("earlier").hidden = !earlier.length;
  $("earlier").textContent = `After ${earlier.length} earlier messages of the conversation, which are sent too.`;
  $("draft").value = request.reference ?? "";
  for (const [name, usual] of Object.entries({ ...NUMBERS, ...CHOICES })) $(name).value = request[name] ?? usual ?? "";
  $("seed").value = request.seed ?? "";
  $("quotes").value = (request.keep?.quotes ?? []).join("\n");
  $("quoted").checked = request.keep?.quoted ?? false;
}

const asText = (content) => (typeof content === "string" ? content : content.map((part) => part.text).join("\n"));

export function fillExample() {
  $("prompt").value = "The lamp has price 24 euros, color red, origin Oslo, weight 610 grams. What about the price and color and origin?";
  $("draft").value = "It has price 24 euros. My cat sleeps all morning.";
}
