// The frame around every page: menu, state of the centre, keys.

import { html, render, useEffect, useState } from '../vendor/htm-preact-standalone.js';
import { ApiError, get, post, session } from './api.js';
import { clock, count } from './format.js';
import { choose, current, onLanguage, t } from './i18n.js';
import { Icon } from './icons.js';
import { close, live, open, useLive, useSession } from './live.js';
import { go, href, useRoute } from './route.js';
import { step } from './table.js';
import { Dialog, Loading, Menu, Problem, Sayings, attempt } from './ui.js';
import { Services } from './pages/services.js';

const MENU = [
  ['services', 'Services', 's'],
  ['graph', 'Graph', 'g'],
  ['capacity', 'Capacity', 'c'],
  ['commands', 'Commands', 'h'],
  ['alerts', 'Alerts', 'a'],
  ['agents', 'Agents', 'n'],
  ['registry', 'Registry', 'r'],
  ['audit', 'Audit', 'u'],
  ['access', 'Access', 'p'],
];

/// Pages besides the first are read when they are opened.
const PAGES = {
  services: () => Promise.resolve(Services),
  service: () => import('./pages/service.js').then((m) => m.Service),
  switch: () => import('./pages/switch.js').then((m) => m.Switch),
  commands: () => import('./pages/commands.js').then((m) => m.Commands),
  command: () => import('./pages/commands.js').then((m) => m.Command),
  graph: () => import('./pages/graph.js').then((m) => m.Graph),
  agents: () => import('./pages/agents.js').then((m) => m.Agents),
  alerts: () => import('./pages/alerts.js').then((m) => m.Alerts),
  capacity: () => import('./pages/capacity.js').then((m) => m.Capacity),
  registry: () => import('./pages/registry.js').then((m) => m.Registry),
  audit: () => import('./pages/audit.js').then((m) => m.Audit),
  access: () => import('./pages/access.js').then((m) => m.Access),
};
/// Entry of the menu that a page belongs to.
const UNDER = { service: 'services', switch: 'commands', command: 'commands' };

const loaded = new Map([['services', Services]]);

function Page() {
  const { path, values } = useRoute();
  const [, again] = useState(0);
  const [error, fail] = useState(null);
  useEffect(() => {
    fail(null);
    if (loaded.has(path)) return;
    (PAGES[path] ?? PAGES.services)().then(
      (page) => { loaded.set(path, page); again((n) => n + 1); },
      () => fail(new ApiError(0, { code: 'unreachable', message: t('This page could not be read from the centre'), remedy: t('Read it again when the centre is back.') }))
    );
  }, [path]);
  if (error) return html`<${Problem} error=${error} again=${() => location.reload()} />`;
  const Shown = loaded.get(path);
  // A page about another thing is another page: nothing of the old one stays.
  return Shown ? html`<${Shown} key=${path + (values.service ?? '') + (values.id ?? '')} ...${values} />` : html`<${Loading} />`;
}

function Pulse() {
  useLive();
  const told = { waiting: t('Connecting'), on: t('Live'), off: t('Disconnected') }[live.state];
  return html`<span class=${`pulse ${live.state}`} title=${live.heardAt ? t('Last heard at {time}', { time: clock(live.heardAt) }) : ''}><i></i>${told}</span>`;
}

/// The centre is gone: says so, says what that means, says when it is tried again.
function Gone() {
  useLive();
  if (live.state !== 'off') return null;
  const wait = Math.max(0, Math.ceil((live.retryAt - Date.now()) / 1000));
  return html`<div class="gone" role="alert"><${Icon} name="warn" />
    <p><strong>${t('The centre has not answered since {time}.', { time: clock(live.lostAt) })}</strong>
      ${' '}${live.heardAt ? t('What you see is from {time}.', { time: clock(live.heardAt) }) : ''} ${t('Calls do not pass through it and go on; commands cannot be given.')}</p>
    <span class="num" aria-hidden="true">${wait > 0 ? t('Trying again in {n} s', { n: wait }) : t('Trying…')}</span>
    <button onClick=${open}>${t('Try now')}</button></div>`;
}

function AlertCount() {
  useLive();
  return live.alerts ? html`<span class="count" aria-label=${t('{n} firing', { n: live.alerts })}>${count(live.alerts)}</span>` : null;
}

const KEYS = [
  ['/', 'Filter'],
  ['j  k', 'Next and previous row'],
  ['Enter', 'Open the row'],
  ['g s', 'Services'], ['g g', 'Graph'], ['g c', 'Capacity'], ['g h', 'Commands'], ['g a', 'Alerts'],
  ['g n', 'Agents'], ['g r', 'Registry'], ['g u', 'Audit'], ['g p', 'Access'],
  ['m', 'Move traffic'],
  ['t', 'Light or dark'],
  ['?', 'This list'],
  ['Esc', 'Close'],
];

const Help = ({ onClose }) => html`<${Dialog} title=${t('Keys')} onClose=${onClose}><dl class="keys">
  ${KEYS.map(([key, what]) => html`<div><dt>${key.split(/\s+/).map((k) => html`<kbd>${k}</kbd>`)}</dt><dd>${t(what)}</dd></div>`)}</dl></${Dialog}>`;

function turnTheme() {
  const next = document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark';
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem('sockmesh.theme', next);
  } catch { /* it holds until the page is closed */ }
  dispatchEvent(new Event('themechange'));
}

let led = -Infinity;
function keys(event, help) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]')) return;
  if (event.target.matches?.('input, textarea, select, [contenteditable]')) {
    if (event.key === 'Escape') event.target.blur();
    return;
  }
  const second = performance.now() - led < 1200;
  led = -Infinity;
  if (second) {
    const entry = MENU.find(([, , key]) => key === event.key);
    if (entry) go(entry[0]);
  } else if (event.key === 'g') led = performance.now();
  else if (event.key === '/') document.querySelector('[data-filter]')?.focus();
  else if (event.key === 'j' || event.key === 'k') step(event.key === 'j' ? 1 : -1);
  else if (event.key === '?') help(true);
  else if (event.key === 't') turnTheme();
  else if (event.key === 'm') document.querySelector('[data-move]')?.click();
  else return;
  event.preventDefault();
}

function Frame() {
  const { path } = useRoute();
  const me = useSession();
  const [help, setHelp] = useState(false);
  useEffect(() => {
    const listener = (event) => keys(event, setHelp);
    addEventListener('keydown', listener);
    return () => removeEventListener('keydown', listener);
  }, []);
  const here = UNDER[path] ?? path;
  const logOut = () => attempt(async () => {
    await post('v1/logout');
    close();
    session.set(false);
  });
  return html`<a class="skip" href="#main" onClick=${(e) => { e.preventDefault(); document.getElementById('main').focus(); }}>${t('To the content')}</a>
    <header class="top">
      <a class="brand" href="#/services"><img src="console/icon.svg" alt="" width="22" height="22" />Sockmesh</a>
      <${Pulse} />
      <span class="stretch"></span>
      ${me.open && html`<span class="open" title=${t('No accounts are configured: whoever reaches this address may do anything. The centre listens on loopback only.')}>${t('no accounts')}</span>`}
      <button class="plain" aria-label=${t('Keys')} title=${t('Keys')} onClick=${() => setHelp(true)}><${Icon} name="help" /></button>
      <button class="plain" aria-label=${t('Light or dark')} title=${t('Light or dark')} onClick=${turnTheme}><span class="if-dark"><${Icon} name="sun" /></span><span class="if-light"><${Icon} name="moon" /></span></button>
      <button class="plain language" lang=${current() === 'zh' ? 'en' : 'zh-CN'} onClick=${() => choose(current() === 'zh' ? 'en' : 'zh')}>${current() === 'zh' ? 'English' : '中文'}</button>
      <${Menu} label=${me.name} items=${[
        { label: t('Version {version}', { version: me.version || '?' }), disabled: true, act() {} },
        { label: t('API description'), act: () => open_('openapi.json') },
        !me.open && { label: t('Log out'), act: logOut },
      ]} />
    </header>
    <nav class="rail" aria-label=${t('Pages')}><ul>${MENU.map(([to, name, key]) => html`<li><a href=${href(to)} aria-current=${here === to ? 'page' : undefined} title=${`g ${key}`}>
      <${Icon} name=${to} /><span>${t(name)}</span>${to === 'alerts' && html`<${AlertCount} />`}</a></li>`)}</ul></nav>
    <main id="main" tabindex="-1"><${Gone} /><${Page} /></main>
    <${Sayings} />
    ${help && html`<${Help} onClose=${() => setHelp(false)} />`}`;
}

const open_ = (path) => globalThis.open(path, '_blank', 'noopener');

/// Whoever asks first of all: nothing else is shown before that is known.
function App() {
  const me = useSession();
  const [error, fail] = useState(null);
  const [, turn] = useState(0);
  const [Login, setLogin] = useState(null);
  useEffect(() => onLanguage(() => turn((n) => n + 1)), []);
  const who = async () => {
    try {
      session.set(await get('v1/me'));
      fail(null);
    } catch (e) {
      if (e.status === 401) session.set(false);
      else fail(e);
    }
  };
  useEffect(() => { who(); }, []);
  useEffect(() => {
    if (me) open();
    else if (me === false) import('./pages/login.js').then((m) => setLogin(() => m.Login));
  }, [me]);
  // Asked again until it answers.
  useEffect(() => {
    if (!error || me) return undefined;
    const timer = setTimeout(who, 2000);
    return () => clearTimeout(timer);
  }, [error, me]);
  if (me) return html`<${Frame} key=${current()} />`;
  if (me === false) return Login ? html`<${Login} onDone=${who} />` : null;
  return error ? html`<div class="alone"><${Problem} error=${error} again=${who} /></div>` : html`<div class="alone"><${Loading} /></div>`;
}

const root = document.getElementById('app');
root.textContent = '';
render(html`<${App} />`, root);
