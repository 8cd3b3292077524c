// Numbers and times for people. Numbers are in English, like the page; times are in the browser's zone.

import { el, setText } from "./dom.js";

const NONE = "–";

function number(value, digits) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function kwh(value) {
  if (value == null) return NONE;
  return number(value, kwhDigits(value));
}

export function kwhDigits(value) {
  const size = Math.abs(value);
  return size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3;
}

export function fixed(value, digits) {
  return value == null ? NONE : number(value, digits);
}

export function percent(ratio, digits = 1) {
  return ratio == null ? NONE : number(100 * ratio, digits);
}

export function count(value) {
  return value == null ? NONE : number(value, 0);
}

export function rate(value) {
  return value == null ? NONE : number(value, value >= 100 ? 0 : 1);
}

const SIZES = ["kB", "MB", "GB", "TB"];

// The largest unit that leaves a whole one, as [bytes, name].
export function sizeUnit(bytes) {
  const power = Math.min(Math.max(Math.floor(Math.log2(bytes || 1) / 10), 1), SIZES.length);
  return [1024 ** power, SIZES[power - 1]];
}

export function size(bytes) {
  const [unit, name] = sizeUnit(bytes);
  return `${number(bytes / unit, name === "kB" ? 0 : 1)} ${name}`;
}

// What a loss costs, behind its energy; nothing where the settings name no price.
export function costing(cost, currency) {
  return cost == null ? "" : `, ${fixed(cost, 2)} ${currency}`;
}

export function duration(seconds) {
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 100 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function ago(instant) {
  if (instant == null) return NONE;
  const seconds = (Date.now() - Date.parse(instant)) / 1000;
  return seconds < 1 ? "now" : `${duration(seconds)} ago`;
}

export function ahead(instant) {
  const seconds = (Date.parse(instant) - Date.now()) / 1000;
  return seconds < 1 ? "due now" : `in ${duration(seconds)}`;
}

// A time whose age stays true: main.js refreshes it each second.
export function age(instant) {
  return time(instant, "ago");
}

// A coming time, which is refreshed as well.
export function until(instant) {
  return time(instant, "ahead");
}

const RELATIVE = { ago, ahead };

function time(instant, direction) {
  const words = RELATIVE[direction](instant);
  return el("time", { datetime: instant, title: moment(instant), "data-relative": direction }, words);
}

export function refreshAges() {
  for (const time of document.querySelectorAll("[data-relative]")) {
    setText(time, RELATIVE[time.dataset.relative](time.dateTime));
  }
}

const CLOCK = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const DAY = { day: "numeric", month: "short" };

export function clock(instant, seconds = false) {
  return new Date(instant).toLocaleTimeString("en-GB", seconds ? { ...CLOCK, second: "2-digit" } : CLOCK);
}

export function moment(instant) {
  if (instant == null) return NONE;
  const date = new Date(instant);
  const today = date.toDateString() === new Date().toDateString();
  const year = date.getFullYear() === new Date().getFullYear() ? {} : { year: "numeric" };
  return today ? clock(date) : `${date.toLocaleDateString("en-GB", { ...DAY, ...year })}, ${clock(date)}`;
}

export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
