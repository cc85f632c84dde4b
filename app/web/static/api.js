// Requests to the API, with the reader's key, and its errors in words.

const STORED = "pit-key";

export const key = {
  get: () => sessionStorage.getItem(STORED) ?? "",
  set: (value) => (value ? sessionStorage.setItem(STORED, value) : sessionStorage.removeItem(STORED)),
};

/** An answer that is an error. `wait`: seconds after which trying again makes sense, or null. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null, wait = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, wait });
  }
}

/** The answer to a request; throws `ApiError` for an error, TypeError where the server is not reached. */
export async function call(path, { headers = {}, ...options } = {}) {
  const sent = { ...headers };
  if (key.get()) sent.authorization = `Bearer ${key.get()}`;
  const response = await fetch(path, { ...options, headers: sent });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const retry = Number(response.headers.get("retry-after"));
  const error = asError(body?.error, { status: response.status, wait: retry || null });
  if (error.status === 401) document.dispatchEvent(new CustomEvent("key-wanted", { detail: error.message }));
  throw error;
}

export function asError(error, more = {}) {
  const message = error?.message ?? `The server answered with status ${more.status ?? "unknown"}.`;
  return new ApiError(message, { code: error?.code, param: error?.param, ...more });
}

export const getJson = async (path, options) => (await call(path, options)).json();

export const postJson = (path, body, options = {}) =>
  getJson(path, {
    ...options,
    method: "POST",
    headers: { "content-type": "application/json", ...options.headers },
    body: JSON.stringify(body),
  });

/** Any error as a sentence for the reader. */
export function inWords(error) {
  if (!(error instanceof ApiError)) return "The server cannot be reached. Is it running?";
  const tries = error.wait && [429, 503].includes(error.status) ? ` Try again in ${error.wait} s.` : "";
  const field = error.param && !error.message.includes(error.param) ? ` (${error.param})` : "";
  return `${error.message}${field}${tries}`;
}
