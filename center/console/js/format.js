// Figures as people read them. A dash where nothing is known; the same number of places within a column.

import { current, t } from './i18n.js';

export const NONE = '–';
const formats = new Map();

function number(value, places) {
  const key = `${current()}${places}`;
  if (!formats.has(key)) {
    const locale = current() === 'zh' ? 'zh-CN' : 'en-US';
    formats.set(key, new Intl.NumberFormat(locale, { minimumFractionDigits: places, maximumFractionDigits: places }));
  }
  return formats.get(key).format(value);
}

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export const count = (value) => (known(value) ? number(value, 0) : NONE);
/// Calls a second.
export const rate = (value) => (known(value) ? number(value, value >= 100_000 ? 0 : 1) : NONE);
/// Milliseconds.
export const ms = (value) => (known(value) ? number(value, value >= 100_000 ? 0 : 2) : NONE);
/// A share of 0 to 1 in percent. Never rounded up to 100: one failed call shows.
export function share(value, places = 2) {
  if (!known(value)) return NONE;
  const step = 10 ** places;
  const percent = value * 100;
  return number(value < 1 ? Math.floor(percent * step + 1e-6) / step : percent, places);
}
/// A percentage.
export const percent = (value, places = 0) => (known(value) ? number(value, places) : NONE);

export function bytes(value) {
  if (!known(value)) return NONE;
  if (value >= 1 << 30) return `${number(value / (1 << 30), 1)} GiB`;
  if (value >= 1 << 20) return `${number(value / (1 << 20), 1)} MiB`;
  return `${number(value / 1024, 0)} KiB`;
}

/// A length of time, in its two largest units.
export function span(milliseconds) {
  if (!known(milliseconds)) return NONE;
  const s = milliseconds / 1000;
  if (s < 1) return t('{n} ms', { n: Math.round(milliseconds) });
  if (s < 90) return t('{n} s', { n: s < 10 ? number(s, 1).replace(/\.0$/, '') : Math.round(s) });
  if (s < 5400) return t('{n} min', { n: Math.round(s / 60) });
  if (s < 129_600) return t('{n} h', { n: number(s / 3600, s < 36_000 ? 1 : 0).replace(/\.0$/, '') });
  return t('{n} days', { n: Math.round(s / 86_400) });
}

export const ago = (milliseconds) => t('{time} ago', { time: span(Math.max(0, milliseconds)) });

const two = (n) => String(n).padStart(2, '0');
/// Time of day; with the date when that is another one.
export function clock(at) {
  if (!known(at) || at === 0) return NONE;
  const d = new Date(at);
  const time = `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
  const today = new Date();
  return d.toDateString() === today.toDateString() ? time : `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${time}`;
}

/// "5s", "2 min", "1h" to milliseconds; `null` for what is none.
export function parseSpan(text) {
  const found = /^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d|秒|分钟|小时|天)?\s*$/.exec(text ?? '');
  if (!found) return null;
  const unit = { ms: 1, s: 1e3, 秒: 1e3, m: 6e4, min: 6e4, 分钟: 6e4, h: 36e5, 小时: 36e5, d: 864e5, 天: 864e5 };
  return Math.round(Number(found[1]) * unit[found[2] ?? 's']);
}
