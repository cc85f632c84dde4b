// The request of the form as a command and as a program.

const KEY = "PIT_API_KEY";

export function curl(body, origin, withKey) {
  const header = withKey ? ` -H "authorization: Bearer $${KEY}"` : "";
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl -s ${origin}/v1/improve -H 'content-type: application/json'${header} -d '${json}'`;
}

export function python(body, origin, withKey) {
  const fields = Object.entries(body).map(([name, value]) => `        ${name}=${literal(value, 2)},\n`);
  return `${withKey ? "import os\n\n" : ""}from app.client import Client

with Client("${origin}"${withKey ? `, os.environ["${KEY}"]` : ""}) as client:
    answer = client.improve(
${fields.join("")}    )
print(answer.response)`;
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
