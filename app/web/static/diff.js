// What changed between two texts, word by word, as hunks {start, end, before, after}: `before`, which is
// old.slice(start, end), becomes `after`. Two hunks never touch or overlap.

const WORDS = /\S+|\s+/g;
const MOST_EDITS = 1000; // beyond that two texts have little in common: one hunk replaces the middle

export function hunks(old, fresh) {
  const a = old.match(WORDS) ?? [];
  const b = fresh.match(WORDS) ?? [];
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  let [endA, endB] = [a.length, b.length];
  while (endA > head && endB > head && a[endA - 1] === b[endB - 1]) (endA -= 1), (endB -= 1);
  const kept = common(a.slice(head, endA), b.slice(head, endB)).map(([i, j]) => [i + head, j + head]);
  return assemble(a, b, runs([...kept, [endA, endB]], a), head);
}

/** Runs of kept words that are worth keeping: white space alone between two changes aligns nothing. */
function runs(pairs, a) {
  const found = [];
  for (const [i, j] of pairs) {
    const last = found.at(-1);
    if (last && last.a + last.length === i && last.b + last.length === j) last.length += 1;
    else found.push({ a: i, b: j, length: 1 });
  }
  return found.filter((run, n) => n === found.length - 1 || a.slice(run.a, run.a + run.length).some((w) => w.trim()));
}

/** The changes between the runs; the last run only marks the end. */
function assemble(a, b, kept, head) {
  const found = [];
  let [i, j] = [head, head];
  let offset = a.slice(0, head).join("").length;
  for (const run of kept) {
    const before = a.slice(i, run.a).join("");
    const after = b.slice(j, run.b).join("");
    if (before || after) found.push({ start: offset, end: offset + before.length, before, after });
    offset += before.length + a.slice(run.a, run.a + run.length).join("").length;
    [i, j] = [run.a + run.length, run.b + run.length];
  }
  return found;
}

/** Pairs of places of a longest common subsequence: Myers, "An O(ND) Difference Algorithm" (1986). */
function common(a, b) {
  const trace = [];
  let reach = new Map([[1, 0]]);
  for (let d = 0; d <= Math.min(a.length + b.length, MOST_EDITS); d += 1) {
    trace.push(new Map(reach));
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && reach.get(k - 1) < reach.get(k + 1));
      let x = down ? reach.get(k + 1) : reach.get(k - 1) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      reach.set(k, x);
      if (x >= a.length && x - k >= b.length) return walkBack(trace, a.length, b.length);
    }
  }
  return [];
}

function walkBack(trace, x, y) {
  const pairs = [];
  for (let d = trace.length - 1; d >= 0; d -= 1) {
    const reach = trace[d];
    const k = x - y;
    const from = k === -d || (k !== d && reach.get(k - 1) < reach.get(k + 1)) ? k + 1 : k - 1;
    const fromX = d === 0 ? 0 : reach.get(from);
    const fromY = d === 0 ? 0 : fromX - from;
    while (x > fromX && y > fromY) pairs.push([(x -= 1), (y -= 1)]);
    [x, y] = [fromX, fromY];
  }
  return pairs.reverse();
}

/** `old` with some of its hunks: all of them give the new text. `accepted` is a set of their places. */
export function apply(old, found, accepted) {
  let [text, place] = ["", 0];
  found.forEach((hunk, number) => {
    text += old.slice(place, hunk.start) + (accepted.has(number) ? hunk.after : hunk.before);
    place = hunk.end;
  });
  return text + old.slice(place);
}

/** The API's edits, whose places count characters; those of a string here count UTF-16 units. */
export function fromApi(old, edits) {
  const units = [0];
  for (const character of old) units.push(units.at(-1) + character.length);
  return edits.map(({ start, end, before, after }) => ({ start: units[start], end: units[end], before, after }));
}
