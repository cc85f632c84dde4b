// A run's events from its start to its end, whatever becomes of the connection.

import { ApiError, asError, call } from "./api.js";
import { events } from "./sse.js";

const TRIES = 8;
const LAST = new Set(["run.completed", "run.failed"]);

/**
 * Start a run and yield its events. `kept`: the server keeps it, so a connection that breaks costs nothing:
 * with an Idempotency-Key the run goes on meanwhile, and its events are asked for from the last one seen.
 * Yields {type: "connection.lost"} and {type: "connection.back"} too.
 */
export function start(body, { kept, signal }) {
  const headers = { "content-type": "application/json" };
  if (kept) headers["idempotency-key"] = randomKey();
  const sent = JSON.stringify({ ...body, stream: true });
  const open = () => call("/v1/improve", { method: "POST", headers, body: sent, signal });
  return resumed({ open, id: null, tries: kept ? TRIES : 0, signal });
}

/** The events of a run that has begun, from the first, and those to come. */
export function follow(id, { signal }) {
  return resumed({ open: null, id, tries: TRIES, signal });
}

async function* resumed({ open, id, tries, signal }) {
  let last = 0;
  let failures = 0;
  for (;;) {
    try {
      const response = id ? await again(id, last, signal) : await open();
      if (response.status === 204) return;
      if (failures) yield { type: "connection.back" };
      for await (const { id: number, data } of events(response.body)) {
        if (data === "[DONE]") continue;
        const event = JSON.parse(data);
        if (!event.type) throw asError(event.error, { status: 500 }); // a stream that the server broke off
        failures = 0;
        if (number && Number(number) <= last) continue;
        if (number) last = Number(number);
        if (event.type === "run.created") id = event.id;
        yield event;
        if (LAST.has(event.type)) return;
      }
      throw new TypeError("the connection ended before the run");
    } catch (error) {
      if (signal.aborted || !passes(error, id) || failures >= tries) throw error;
      failures += 1;
      yield { type: "connection.lost" };
      await pause(Math.min(250 * 2 ** failures, 5000), signal);
    }
  }
}

/** From the last event seen, that one once more: an answer begins with its first event, however long that takes. */
function again(id, last, signal) {
  const headers = { "last-event-id": String(Math.max(0, last - 1)) };
  return call(`/v1/improve/${encodeURIComponent(id)}/events`, { headers, signal });
}

/** Whether it may be over by itself. A refusal before the run began is for the reader to see. */
const passes = (error, id) => (error instanceof ApiError ? id && error.status === 503 : true);

const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

/** Not crypto.randomUUID: that is missing where the page comes over plain http. */
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
