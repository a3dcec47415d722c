// What every page is made of.

import { html, useEffect, useRef, useState } from '../vendor/htm-preact-standalone.js';
import { t } from './i18n.js';
import { Icon } from './icons.js';

/// What went wrong, with the remedy and a way to try again.
export function Problem({ error, again, quiet }) {
  if (!error) return null;
  return html`<div class=${`problem ${quiet ? 'quiet' : ''}`} role="alert">
    <${Icon} name="warn" />
    <div><strong>${error.message}</strong>${error.remedy && html`<p>${error.remedy}</p>`}</div>
    ${again && html`<button onClick=${again}>${t('Try again')}</button>`}
  </div>`;
}

/// What a page shows when there is nothing, and what to do about that.
export const Empty = ({ title, children }) => html`<div class="empty"><h2>${title}</h2><div>${children}</div></div>`;

/// Shown while the first answer is awaited; appears late, so that a fast centre never flickers.
export const Loading = () => html`<div class="loading" role="status"><span></span>${t('Reading…')}</div>`;

/// The three states of something that is read.
export function Ready({ from, children }) {
  if (from.data !== null) {
    return html`${from.error && html`<${Problem} error=${from.error} again=${from.reload} quiet />`}${children(from.data)}`;
  }
  return from.error ? html`<${Problem} error=${from.error} again=${from.reload} />` : html`<${Loading} />`;
}

const WORDS = {
  idle: 'idle', normal: 'normal', warning: 'warning', fatal: 'fatal', unknown: 'unknown',
  available: 'available', unavailable: 'unavailable', out: 'out', draining: 'draining', lost: 'lost',
  proposed: 'proposed', stepping: 'stepping', active: 'in force', undone: 'undone', failed: 'failed', expired: 'expired', done: 'done',
  firing: 'firing', silenced: 'silenced', resolved: 'resolved', page: 'page', ticket: 'ticket',
  lower_bound: 'at least', low: 'low', medium: 'medium', high: 'high',
};
const TONES = {
  warning: 'warn', fatal: 'bad', available: 'quiet', out: 'warn', draining: 'warn', lost: 'bad',
  unavailable: 'warn', stepping: 'info', active: 'info', proposed: 'ask', done: 'ok', failed: 'bad', firing: 'bad', page: 'bad',
  ticket: 'warn', high: 'ok', low: 'warn',
};

/// The word of a state in the person's language.
export const word = (state) => t(WORDS[state] ?? state);

/// A state in a word; color only underlines it.
export const Badge = ({ state, title }) => html`<span class=${`badge ${TONES[state] ?? ''}`} title=${title}>${word(state)}</span>`;

/// A dialog of the browser's own: focus stays in it, Escape closes it.
export function Dialog({ title, onClose, children, wide }) {
  const at = useRef(null);
  useEffect(() => {
    at.current.showModal();
    return () => at.current?.close();
  }, []);
  return html`<dialog ref=${at} class=${wide ? 'wide' : ''} aria-labelledby="dialog-title" onClose=${onClose}
    onClick=${(e) => e.target === at.current && onClose()}>
    <div class="dialog">
      <header><h2 id="dialog-title">${title}</h2>
        <button class="plain" type="button" aria-label=${t('Close')} onClick=${onClose}><${Icon} name="close" /></button></header>
      ${children}
    </div>
  </dialog>`;
}

/// Asks before something is done. `fields`: `[{name, label, kind, value, required, hint, min, max, options}]`;
/// `act(values)` may fail, then the dialog stays and says why.
export function Ask({ title, text, fields = [], verb, danger, act, onClose, children }) {
  const [values, set] = useState(Object.fromEntries(fields.map((f) => [f.name, f.value ?? ''])));
  const [error, fail] = useState(null);
  const [busy, work] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    work(true);
    fail(null);
    try {
      await act(values);
      onClose();
    } catch (e) {
      fail(e);
      work(false);
    }
  };
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <form onSubmit=${submit}>
      ${text && html`<p>${text}</p>`}
      ${children?.(values)}
      ${fields.map((f) => html`<${Field} key=${f.name} ...${f} value=${values[f.name]} set=${(v) => set((s) => ({ ...s, [f.name]: v }))} />`)}
      <${Problem} error=${error} />
      <footer><button type="button" onClick=${onClose}>${t('Cancel')}</button>
        <button class=${danger ? 'danger' : 'primary'} disabled=${busy}>${verb}</button></footer>
    </form>
  </${Dialog}>`;
}

let ids = 0;
/// One labelled input.
export function Field({ label, kind = 'text', value, set, hint, options, required, min, max, step, placeholder, list, autofocus, autocomplete, disabled }) {
  const [id] = useState(() => `field${(ids += 1)}`);
  const shared = { id, value, required, placeholder, disabled, 'aria-describedby': hint ? `${id}h` : undefined };
  const change = (event) => set(event.target.value);
  if (kind === 'check') {
    return html`<div class="field check"><input id=${id} type="checkbox" checked=${Boolean(value)} disabled=${disabled}
      onChange=${(e) => set(e.target.checked)} /><label for=${id}>${label}</label>${hint && html`<p class="hint" id=${`${id}h`}>${hint}</p>`}</div>`;
  }
  const input =
    kind === 'select' ? html`<select ...${shared} onChange=${change}>${options.map((o) => {
      const [key, name] = Array.isArray(o) ? o : [o, o];
      return html`<option value=${key} selected=${key === value}>${name}</option>`;
    })}</select>`
    : kind === 'area' ? html`<textarea ...${shared} rows="3" onInput=${change} />`
    : html`<input ...${shared} type=${kind} min=${min} max=${max} step=${step} list=${list ? `${id}l` : undefined}
        autocomplete=${autocomplete ?? 'off'} spellcheck="false" autofocus=${autofocus} onInput=${change} />`;
  return html`<div class="field"><label for=${id}>${label}${required && html` <span class="must" title=${t('required')}>*</span>`}</label>${input}
    ${list && html`<datalist id=${`${id}l`}>${list.map((v) => html`<option value=${v} />`)}</datalist>`}
    ${hint && html`<p class="hint" id=${`${id}h`}>${hint}</p>`}</div>`;
}

/// A button that opens a list of actions: `[{label, act, danger, disabled, title}]`.
export function Menu({ label, icon, items }) {
  const [open, set] = useState(false);
  const at = useRef(null);
  useEffect(() => {
    if (!open) return undefined;
    const outside = (event) => at.current?.contains(event.target) || set(false);
    addEventListener('pointerdown', outside);
    at.current.querySelector('[role=menuitem]:not([disabled])')?.focus();
    return () => removeEventListener('pointerdown', outside);
  }, [open]);
  const keys = (event) => {
    const all = [...at.current.querySelectorAll('[role=menuitem]:not([disabled])')];
    const here = all.indexOf(document.activeElement);
    if (event.key === 'Escape') {
      set(false);
      at.current.querySelector('button').focus();
    } else if (event.key === 'ArrowDown') all[(here + 1) % all.length]?.focus();
    else if (event.key === 'ArrowUp') all[(here - 1 + all.length) % all.length]?.focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  return html`<span class="menu" ref=${at} onKeyDown=${open ? keys : undefined}>
    <button type="button" class=${icon ? 'plain' : ''} aria-haspopup="menu" aria-expanded=${open} aria-label=${icon ? label : undefined}
      title=${icon ? label : undefined} onClick=${() => set(!open)}>${icon ? html`<${Icon} name=${icon} />` : html`${label} <${Icon} name="down" />`}</button>
    ${open && html`<ul role="menu">${items.filter(Boolean).map((item) => html`<li role="none"><button type="button" role="menuitem"
      class=${item.danger ? 'dangerous' : ''} disabled=${item.disabled} title=${item.title}
      onClick=${() => { set(false); item.act(); }}>${item.label}</button></li>`)}</ul>`}
  </span>`;
}

/// One of several, as a row of buttons.
export const Choice = ({ label, value, options, set }) => html`<div class="choice" role="group" aria-label=${label}>
  ${options.map(([key, name]) => html`<button type="button" key=${key} aria-pressed=${key === value} onClick=${() => set(key)}>${name}</button>`)}</div>`;

const said = { listeners: new Set() };
/// Says something for a few seconds, to eyes and to screen readers.
export function say(text, tone = '') {
  for (const listener of said.listeners) listener({ text, tone, id: Math.random() });
}

export function Sayings() {
  const [all, set] = useState([]);
  useEffect(() => {
    const add = (saying) => {
      set((s) => [...s.slice(-3), saying]);
      setTimeout(() => set((s) => s.filter((x) => x !== saying)), 6000);
    };
    said.listeners.add(add);
    return () => said.listeners.delete(add);
  }, []);
  return html`<div class="sayings" role="status" aria-live="polite">${all.map((s) => html`<div key=${s.id} class=${s.tone}>${s.text}</div>`)}</div>`;
}

/// Does something and says how it went.
export async function attempt(doing, done) {
  try {
    const value = await doing();
    if (done) say(done);
    return value;
  } catch (error) {
    say([error.message, error.remedy].filter(Boolean).join('. '), 'bad');
    return null;
  }
}

/// Head of a page. Takes the focus when the page opens, so that a screen reader begins there.
export function Head({ title, sub, children, crumbs }) {
  const at = useRef(null);
  useEffect(() => {
    document.title = `${title} · Sockmesh`;
    if (document.activeElement === document.body || document.activeElement?.closest?.('nav')) at.current?.focus({ preventScroll: true });
  }, [title]);
  return html`<header class="head">
    <div>${crumbs && html`<p class="crumbs">${crumbs}</p>`}<h1 tabindex="-1" ref=${at}>${title}</h1>${sub && html`<p class="sub">${sub}</p>`}</div>
    <div class="actions">${children}</div></header>`;
}

/// A figure with its name.
export const Tile = ({ label, value, unit, tone, note, title }) => html`<div class=${`tile ${tone ?? ''}`} title=${title}>
  <dt>${label}</dt><dd>${value}${unit && value !== '–' && html`<small>${unit}</small>`}</dd>${note && html`<p>${note}</p>`}</div>`;

export const Panel = ({ title, tools, children, id, note }) => html`<section class="panel" aria-labelledby=${id ? `${id}-title` : undefined}>
  <header><h2 id=${id ? `${id}-title` : undefined}>${title}</h2>${note && html`<span class="note">${note}</span>`}<div class="tools">${tools}</div></header>${children}</section>`;
