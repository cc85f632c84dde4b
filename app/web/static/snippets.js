// The request of the form as a command and as a program.

const KEY = "PIT_API_KEY";

export function curl(body, origin, withKey) {
  const header = withKey ? ` -H "authorization: Bearer $${KEY}"` : "";
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl -s ${origin}/v1/improve -H 'content-type: application/json'${header} -d '${json}'`;
}

export function python(body, origin, withKey) {
  const header = withKey ? `\n    headers={"authorization": f"Bearer {os.environ['${KEY}']}"},` : "";
  return `${withKey ? "import os\n\n" : ""}import httpx

run = httpx.post(
    "${origin}/v1/improve",${header}
    json=${literal(body, 1)},
    timeout=None,
)
print(run.raise_for_status().json()["response"])`;
}

/** A JSON value as Python writes it. */
function literal(value, depth) {
  const [inner, outer] = ["    ".repeat(depth + 1), "    ".repeat(depth)];
  const block = (open, items, close) =>
    items.length ? `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${outer}${close}` : open + close;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return block("[", value.map((item) => literal(item, depth + 1)), "]");
  if (typeof value === "object") {
    const items = Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, depth + 1)}`);
    return block("{", items, "}");
  }
  return JSON.stringify(value);
}
