// Questions to the service. What it refuses is an error with the sentence of its problem document.

export class Problem extends Error {
  constructor(status, document) {
    super(document.detail ?? document.title ?? `The service answered ${status}.`);
    this.status = status;
    this.code = document.code;
  }
}

export async function ask(path, parameters = {}, signal = undefined) {
  const given = Object.entries(parameters).filter(([, value]) => value != null);
  const query = new URLSearchParams(given).toString();
  const response = await fetch(`/v1/${path}${query && "?"}${query}`, { signal }).catch((error) => {
    // What browsers say of it differs, and is for programmers.
    throw error.name === "AbortError" ? error : new Problem(0, { detail: "The service does not answer." });
  });
  if (!response.ok) throw new Problem(response.status, await response.json().catch(() => ({})));
  return response.json();
}

export function device(kind, id) {
  return `analytics/${kind}s/${encodeURIComponent(id)}`;
}
