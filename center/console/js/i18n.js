// Two languages. Keys are the English sentences; `zh.js` has the Chinese ones.

import { zh } from './zh.js';

const LANGUAGES = ['en', 'zh'];
let language = first();
const listeners = new Set();

function first() {
  let kept = null;
  try {
    kept = localStorage.getItem('sockmesh.language');
  } catch { /* a browser that keeps nothing */ }
  if (LANGUAGES.includes(kept)) return kept;
  return (navigator.language || 'en').startsWith('zh') ? 'zh' : 'en';
}

export const current = () => language;

export function choose(next) {
  language = next;
  try {
    localStorage.setItem('sockmesh.language', next);
  } catch { /* it holds until the page is closed */ }
  document.documentElement.lang = next === 'zh' ? 'zh-CN' : 'en';
  for (const listener of listeners) listener(next);
}

export const onLanguage = (listener) => {
  listeners.add(listener);
  return () => listeners.delete(listener);
};

/// Sentences that were asked for and are not there; a test looks here.
export const missing = new Set();

function untranslated(key) {
  if (/[A-Za-z]{2}/.test(key) && !missing.has(key)) {
    missing.add(key);
    document.documentElement.dataset.untranslated = [...missing].join('|');
  }
  return key;
}

/// The sentence in the person's language, `{name}` replaced.
export function t(key, values) {
  const text = language === 'zh' ? zh[key] ?? untranslated(key) : key;
  return values ? text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole) : text;
}

/// Like `t`, for a count: `one` is used for exactly one.
export const tn = (count, one, many) => t(count === 1 ? one : many, { n: count });

document.documentElement.lang = language === 'zh' ? 'zh-CN' : 'en';
