// Win probability and tokens of each iteration, one above the other over the same places.

import { percent, svg } from "./dom.js";

const [LEFT, RIGHT, TOP, HIGH, GAP, LOW] = [48, 8, 10, 74, 24, 34];
const HEIGHT = TOP + HIGH + GAP + LOW + 18;

/** `iterations` as the API has them; `draft` its tokens or 0; `gate` the probability that lets one pass. */
export function chart(iterations, { draft, gate, width }) {
  const bars = [...(draft ? [{ label: "draft", tokens: draft }] : []), ...iterations.map(asBar)];
  const step = (width - LEFT - RIGHT) / Math.max(bars.length, 1);
  const x = (number) => LEFT + step * (number + 0.5);
  const y = (probability) => TOP + HIGH * (1 - probability);
  const most = Math.max(...bars.map((bar) => bar.tokens), 1);
  return svg(
    "svg",
    { class: "chart", role: "img", "aria-label": inWords(iterations), viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT },
    [0, 0.5, 1].map((mark) => line("grid", width, y(mark))),
    [0, 0.5, 1].map((mark) => text("axis", LEFT - 6, y(mark) + 4, percent(mark), "end")),
    gate === null ? null : line("gate", width, y(gate)),
    svg("polyline", { class: "path", points: best(bars, x, y) }),
    bars.map((bar, n) => dot(bar, x(n), y)),
    bars.map((bar, n) => column(bar, x(n), Math.min(step * 0.5, 36), most)),
    text("axis", LEFT - 6, TOP + HIGH + GAP + LOW, "tokens", "end"),
    bars.map((bar, n) => text("axis", x(n), HEIGHT - 2, bar.label, "middle")),
  );
}

const asBar = (iteration) => ({
  label: String(iteration.index),
  tokens: iteration.usage.completion_tokens,
  probability: iteration.win_probability,
  accepted: iteration.accepted,
});

const line = (name, width, at) => svg("line", { class: name, x1: LEFT, x2: width - RIGHT, y1: at, y2: at });

const text = (name, x, y, content, anchor) => svg("text", { class: name, x, y, "text-anchor": anchor }, content);

const scored = (bar) => bar.probability !== null && bar.probability !== undefined;

const best = (bars, x, y) =>
  bars.map((bar, n) => (scored(bar) ? `${x(n)},${y(bar.probability)}` : "")).filter(Boolean).join(" ");

function dot(bar, x, y) {
  if (!scored(bar)) return null;
  const name = bar.accepted ? "dot accepted" : "dot rejected";
  const title = svg("title", {}, `Iteration ${bar.label}: ${percent(bar.probability)}, ${bar.accepted ? "accepted" : "rejected"}`);
  return svg("circle", { class: name, cx: x, cy: y(bar.probability), r: 5 }, title);
}

function column(bar, x, width, most) {
  const height = Math.max(2, (LOW * bar.tokens) / most);
  const base = TOP + HIGH + GAP + LOW;
  return [
    svg("rect", { class: "tokens", x: x - width / 2, y: base - height, width, height, rx: 2 }, svg("title", {}, `${bar.tokens} tokens`)),
    text("value", x, base - height - 3, String(bar.tokens), "middle"),
  ];
}

function inWords(iterations) {
  const each = iterations.map((i) => `${i.index}: ${percent(i.win_probability)}, ${i.accepted ? "accepted" : "rejected"}, ${i.usage.completion_tokens} tokens`);
  return `Win probability and tokens of each iteration. ${each.join("; ") || "None yet"}.`;
}
