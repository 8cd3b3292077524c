// Questions to the service. A refusal becomes an error with the sentence of its problem document.

export class Problem extends Error {
  constructor(status, document) {
    super(document.detail ?? document.title ?? `The service answered ${status}.`);
    this.status = status;
    this.code = document.code;
  }
}

export async function ask(path, parameters, signal) {
  return (await answer(path, parameters, signal)).json();
}

// Answers with an array for NDJSON.
export async function lines(path, parameters, signal) {
  const text = await (await answer(path, parameters, signal, "application/x-ndjson")).text();
  return text.split("\n").filter(Boolean).map(JSON.parse);
}

async function answer(path, parameters, signal, accept = "application/json") {
  const given = Object.entries(parameters).filter(([, value]) => value != null);
  const query = new URLSearchParams(given).toString();
  const response = await fetch(`/v1/${path}${query && "?"}${query}`, { signal, headers: { Accept: accept } }).catch((error) => {
    // Browsers have different messages for this, which are for programmers.
    throw error.name === "AbortError" ? error : new Problem(0, { detail: "The service does not answer." });
  });
  if (!response.ok) throw new Problem(response.status, await response.json().catch(() => ({})));
  return response;
}

export function device(kind, id) {
  return `analytics/${kind}s/${encodeURIComponent(id)}`;
}
