// Turns columns of buckets into lines: power instead of energy, gaps as gaps.

export const SECONDS = { "1m": 60, "1h": 3600, "1d": 86400 };
export const PER = { "1m": "minute", "1h": "hour", "1d": "day" };
// A device that reports every two minutes has no gap; README: gaps of up to five minutes are covered.
const COVERED_SECONDS = 300;
const AROUND_SECONDS = 300;
const CADENCE_SECONDS = 3600;
// A device's range is extended backwards by this much, for the power at its start.
export const MARGIN_SECONDS = 600;

// Average power in kW of each bucket. An hour or a day in which the data begin would be a dip, so it is left out.
export function power(columns, name, bucket, counts) {
  const begin = columns[name].findIndex((energy) => energy != null);
  const isPart = bucket !== "1m" && counts[begin] < 0.8 * counts[begin + 1];
  return columns[name].map((energy, i) => (energy == null || (isPart && i === begin) ? null : (energy * 3600) / SECONDS[bucket]));
}

// The power of one device. A reading holds the energy since the reading before, at any second of its minute: single
// minutes would show the beat of two clocks. So a minute shows the energy of the readings within five minutes, over the
// time that as many take in the two hours around. The first reading after a gap has the time since the one before.
export function devicePower(columns, name, bucket) {
  if (bucket !== "1m") return power(columns, name, bucket, columns.readings);
  const { t, readings } = columns;
  const energies = before(columns[name]);
  const counts = before(readings);
  const near = (at, seconds, start, end) => [first(t, at - seconds, start, end), first(t, at + seconds + 1, start, end)];
  return runs(t).flatMap(({ start, end }) => {
    const since = start > 0 ? t[start] - t[start - 1] : null;
    const lone = since && (columns[name][start] * 3600) / since;
    if (end - start === 1) return [lone];
    return t.slice(start, end).map((at) => {
      const [from, to] = near(at, CADENCE_SECONDS, start + 1, end);
      const seconds = (t[to - 1] - t[from - 1]) / (counts[to] - counts[from]);
      const [low, high] = near(at, AROUND_SECONDS, start + 1, end);
      return ((energies[high] - energies[low]) * 3600) / (seconds * (counts[high] - counts[low]));
    });
  });
}

// The runs of places without a gap, as [start, end).
function runs(t) {
  const starts = t.flatMap((at, i) => (i === 0 || at - t[i - 1] > COVERED_SECONDS ? [i] : []));
  return starts.map((start, i) => ({ start, end: starts[i + 1] ?? t.length }));
}

// The sum of the values before each place.
function before(values) {
  let total = 0;
  return [0, ...values.map((value) => (total += value ?? 0))];
}

// The first place in [start, end) whose time is no less.
function first(t, least, start, end) {
  let [low, high] = [start, end];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (t[middle] < least) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The energy of the hour that ends with a minute, in minutes at the greatest power of that hour.
export function energyMinutes({ t, dcKwh }, power, last) {
  let energy = 0;
  let greatest = 0;
  for (let i = last; i >= 0 && t[last] - t[i] < 3600; i--) {
    energy += dcKwh[i];
    greatest = Math.max(greatest, power[i]);
  }
  return greatest && (60 * energy) / greatest;
}

// Points of finished buckets in [from, to], with a null wherever buckets are missing.
export function line(t, values, bucket, { from, to, ofDevice }) {
  const step = SECONDS[bucket];
  const longest = ofDevice && bucket === "1m" ? COVERED_SECONDS : step;
  const finished = Math.min(Date.now() / 1000 - step, to);
  const x = [];
  const y = [];
  let last = null;
  for (let i = 0; i < t.length; i++) {
    if (values[i] == null || t[i] <= from - step || t[i] > finished) continue;
    if (last !== null && t[i] - last > longest) {
      x.push(last + step);
      y.push(null);
    }
    x.push(t[i]);
    y.push(values[i]);
    last = t[i];
  }
  return { x, y, alone: alone(y) };
}

// The points without a neighbour, which a line would not show; null when there are none.
export function alone(y) {
  const points = y.map((value, i) => (value != null && y[i - 1] == null && y[i + 1] == null ? value : null));
  return points.some((value) => value != null) ? points : null;
}

export function sum(values) {
  return values.reduce((total, value) => total + (value ?? 0), 0);
}

// Merges newer buckets into older columns, by their start.
export function merge(columns, newer) {
  const at = new Map(columns.t.map((t, i) => [t, i]));
  for (let j = 0; j < newer.t.length; j++) {
    let i = at.get(newer.t[j]);
    if (i === undefined) {
      i = columns.t.findIndex((t) => t > newer.t[j]);
      if (i === -1) i = columns.t.length;
      for (const name of Object.keys(columns)) columns[name].splice(i, 0, newer[name][j]);
    } else for (const name of Object.keys(columns)) columns[name][i] = newer[name][j];
  }
}

// Removes buckets that have left the range.
export function trim(columns, from) {
  const first = columns.t.findIndex((t) => t >= from);
  if (first > 0) for (const name of Object.keys(columns)) columns[name].splice(0, first);
}
