// The service's push messages. Events: "fleet", "states", "alerts" as they come; "connection" when the state below
// changes; "again" when a lost connection is back, since missed messages are not sent again.

export const live = new EventTarget();
export const connection = { state: "connecting", since: Date.now(), fleet: null, problem: null };

const SILENCE_MS = 10_000;
const RETRY_MS = 1_000;
const LONGEST_RETRY_MS = 4_000;
let source;
let watchdog;
let retryMs = RETRY_MS;
let wasLost = false;

export function connect() {
  source?.close();
  source = new EventSource("/v1/analytics/fleet/live");
  watch();
  for (const name of ["fleet", "states", "alerts", "problem"]) {
    source.addEventListener(name, (event) => receive(name, JSON.parse(event.data)));
  }
  source.onerror = lose;
}

function receive(name, data) {
  watch();
  retryMs = RETRY_MS;
  if (name === "problem") {
    connection.problem = data;
    set("problem");
    return;
  }
  if (name === "fleet") {
    connection.fleet = data;
    const back = wasLost || connection.state === "problem";
    wasLost = false;
    set("live");
    if (back) live.dispatchEvent(new Event("again"));
  }
  live.dispatchEvent(new CustomEvent(name, { detail: data }));
}

// A connection can be dead without an error, after a proxy failed or the machine slept.
function watch() {
  clearTimeout(watchdog);
  watchdog = setTimeout(lose, SILENCE_MS);
}

function lose() {
  source.close();
  wasLost = true;
  set("lost");
  clearTimeout(watchdog);
  watchdog = setTimeout(connect, retryMs);
  retryMs = Math.min(2 * retryMs, LONGEST_RETRY_MS);
}

function set(state) {
  if (connection.state !== state) {
    connection.state = state;
    connection.since = Date.now();
  }
  live.dispatchEvent(new Event("connection"));
}

addEventListener("online", () => connection.state === "lost" && connect());
addEventListener("pagehide", () => source?.close());
// The browser restores the page from memory as it was when it was left.
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  wasLost = true;
  connect();
});
