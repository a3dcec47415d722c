// A command: what it would do is shown beside the form while it is filled in, and nothing is given unseen.

import { html, useEffect, useMemo, useRef, useState } from '../../vendor/htm-preact-standalone.js';
import { all, get, post, session } from '../api.js';
import { parseSpan } from '../format.js';
import { t } from '../i18n.js';
import { Icon } from '../icons.js';
import { useData } from '../live.js';
import { go, href } from '../route.js';
import { Choice, Field, Head, Panel, Problem, say } from '../ui.js';
import { groupOf, sentence } from './parts/cards.js';
import { Preview } from './parts/preview.js';

const KINDS = [['move', 'Move'], ['switch', 'Switch'], ['canary', 'Canary'], ['route', 'Rules'], ['degrade', 'Degrade'], ['switchers', 'Switchers'], ['drain', 'Drain']];
const TEXTS = {
  move: 'A share of the calls that a group gets goes to another one; the rest stays. Relative to what holds now.',
  switch: 'Calls of callers in a group go to these groups: by weight, or mixed by the number of instances without weights.',
  canary: 'A share of the calls, or those that carry a header, go to instances of one version.',
  route: 'Callers whose address fits a rule may call only endpoints that fit it, such as 10.0.* to 10.1.*',
  degrade: 'Every call is answered at once with an error, so that callers fall back and the service rests.',
  switchers: 'Switchers of agents are turned, by name.',
  drain: 'One instance gets no new calls, and its connections end after their replies.',
};

function first(values, groups) {
  const from = values.from ?? groups[0] ?? '';
  return {
    kind: values.kind ?? 'move', service: values.service ?? '', from, to: groups.find((g) => g !== from) ?? '', percent: '20',
    weights: groups.map((g) => `${g} ${g === from ? 80 : 20}`).join('\n'), version: values.version ?? '', header: '', rules: '10.0.* to 10.1.*', values: '',
    instance: values.instance ?? '', reason: '', stepped: values.kind === undefined || values.kind === 'move' || values.kind === 'canary', steps: '5, 20, 50, 100', step: '30 s', guarded: true, p99: '', errors: '1', lasting: '',
  };
}

/// The action that a form means; throws a sentence where it means none.
function action(f) {
  const group = f.from;
  const words = (text) => text.split('\n').map((line) => line.trim()).filter(Boolean);
  const percentage = (text, least) => {
    const n = Number(text);
    if (text === '' || !Number.isInteger(n) || n < least || n > 100) throw new Error(t('A percentage is a whole number from {least} to 100', { least }));
    return n;
  };
  if (f.kind !== 'switchers' && !f.service) throw new Error(t('Name a service'));
  switch (f.kind) {
    case 'move': {
      if (!f.to || f.to === group) throw new Error(t('Name another group that takes the calls'));
      return { kind: 'move', service: f.service, from: group, to: f.to, percent: percentage(f.percent, 1) };
    }
    case 'switch': {
      const to = words(f.weights).map((line) => {
        const [name, weight] = line.split(/\s+/);
        return weight === undefined ? { group: name } : { group: name, weight: percentage(weight, 1) };
      });
      if (to.length === 0) throw new Error(t('Name the groups that take the calls'));
      return { kind: 'switch', service: f.service, group, to };
    }
    case 'canary': {
      if (!f.version) throw new Error(t('Name the version that is tried'));
      return { kind: 'canary', service: f.service, group, version: f.version, percent: percentage(f.percent, 0), ...(f.header && { header: f.header }) };
    }
    case 'route': return { kind: 'route', service: f.service, group, rules: words(f.rules) };
    case 'degrade': return { kind: 'degrade', service: f.service, group };
    case 'switchers': {
      const values = words(f.values).map((line) => line.split(/[\s=:]+/)).map(([name, value]) => [name, /^(on|true|1|开)$/i.test(value ?? '')]);
      if (values.length === 0) throw new Error(t('Name at least one switcher'));
      return { kind: 'switchers', group, values };
    }
    default: {
      if (!f.instance) throw new Error(t('Choose the instance'));
      return { kind: 'drain', service: f.service, group, instance: f.instance };
    }
  }
}

/// The whole command; throws a sentence where something is no command.
function command(f, expected) {
  const steps = f.stepped ? f.steps.split(/[,，\s]+/).filter(Boolean).map(Number) : [];
  if (steps.some((s, i) => !Number.isInteger(s) || s < 1 || s > 100 || (i > 0 && s <= steps[i - 1]))) throw new Error(t('Steps are percentages that rise to 100'));
  if (steps.length > 0 && steps.at(-1) !== 100) throw new Error(t('The last step is 100'));
  const span = (text, name) => {
    if (text.trim() === '') return undefined;
    const ms = parseSpan(text);
    if (ms === null) throw new Error(t('{name}: a time such as 30 s, 5 min or 2 h', { name }));
    return ms;
  };
  const bound = (text) => (text.trim() === '' ? null : Number(text));
  const guard = f.guarded && (f.p99 !== '' || f.errors !== '') ? { p99_ms: bound(f.p99), error_percent: bound(f.errors) } : undefined;
  return {
    action: action(f), reason: f.reason.trim() || t('(preview)'), steps, ...(steps.length > 0 && { step_ms: span(f.step, t('Each step')) }),
    ...(guard && { guard }), ...(span(f.lasting, t('Undone after')) && { for_ms: span(f.lasting, t('Undone after')) }), ...(expected !== undefined && { expected }),
  };
}

/// Reads the preview a moment after the form stood still.
function usePreview(form) {
  const [state, set] = useState({ preview: null, error: null, invalid: null, busy: false });
  const [again, repeat] = useState(0);
  const { reason, ...asked } = form;
  const text = JSON.stringify(asked);
  useEffect(() => {
    let wanted;
    try {
      wanted = command({ ...form, reason: '' });
    } catch (e) {
      set({ preview: null, error: null, invalid: e.message, busy: false });
      return undefined;
    }
    set((s) => ({ ...s, invalid: null, busy: true }));
    const stop = new AbortController();
    const timer = setTimeout(() => post('v1/commands/preview', wanted, stop.signal).then(
      (preview) => set({ preview, error: null, invalid: null, busy: false }),
      (error) => stop.signal.aborted || set({ preview: null, error, invalid: null, busy: false })
    ), 250);
    return () => {
      clearTimeout(timer);
      stop.abort();
    };
  }, [text, again]);
  return [state, () => repeat((n) => n + 1)];
}

function Fields({ form, set, groups, services, page }) {
  const f = (name, label, more = {}) => html`<${Field} key=${name} label=${label} value=${form[name]} set=${(v) => set({ [name]: v })} ...${more} />`;
  const group = (name, label) => f(name, label, groups.length > 0 ? { kind: 'select', options: [...new Set([...groups, form[name]])].filter(Boolean) } : { required: true });
  const service = f('service', t('Service'), { list: services, required: true, hint: form.kind === 'drain' || form.kind === 'canary' ? undefined : t('A name, or a pattern such as com.shop.*') });
  switch (form.kind) {
    case 'move': return html`${service}<div class="row">${group('from', t('From'))}<span class="arrow"><${Icon} name="move" /></span>${group('to', t('To'))}</div>
      <div class="row percent">${f('percent', t('Share, %'), { kind: 'number', min: 1, max: 100, required: true })}
        <input class="slide" type="range" min="1" max="100" value=${form.percent} aria-label=${t('Share, %')} onInput=${(e) => set({ percent: e.target.value })} />
        <${Choice} label=${t('Share')} value=${form.percent} options=${['5', '20', '50', '100'].map((n) => [n, `${n} %`])} set=${(v) => set({ percent: v })} /></div>`;
    case 'switch': return html`${service}${group('from', t('Callers in'))}${f('weights', t('Groups that take the calls'), { kind: 'area', hint: t('A group on each line, with its weight of 1 to 100 or without') })}`;
    case 'canary': return html`${service}<div class="row">${group('from', t('Group'))}${f('version', t('Version'), { list: [...new Set((page?.instances ?? []).map((i) => i.version).filter(Boolean))], required: true })}${f('percent', t('Share, %'), { kind: 'number', min: 0, max: 100 })}</div>
      ${f('header', t('Header'), { placeholder: 'x-canary=1', hint: t('Calls that carry it go there; with 0 % only those') })}`;
    case 'route': return html`${service}${group('from', t('Callers in'))}${f('rules', t('Rules'), { kind: 'area', hint: t('One on each line, in their order') })}`;
    case 'degrade': return html`${service}${group('from', t('Callers in'))}`;
    case 'switchers': return html`${group('from', t('Group'))}${f('values', t('Switchers'), { kind: 'area', placeholder: 'feature.x=on', hint: t('name=on or name=off, one on each line') })}`;
    default: return html`${service}${group('from', t('Group'))}${f('instance', t('Instance'), { kind: 'select', options: [['', '–'], ...(page?.instances ?? []).map((i) => i.address)] })}`;
  }
}

function Form({ values, groups, services, page }) {
  const [form, change] = useState(() => first(values, groups));
  const [error, fail] = useState(null);
  const [busy, work] = useState(false);
  const [state, again] = usePreview(form);
  const set = (part) => change((s) => ({ ...s, ...part }));
  const f = (name, label, more = {}) => html`<${Field} label=${label} value=${form[name]} set=${(v) => set({ [name]: v })} ...${more} />`;
  const may = session.may('operator', form.from || '*');
  const steps = form.kind !== 'drain' && form.kind !== 'switchers';
  const give = async (event) => {
    event.preventDefault();
    work(true);
    fail(null);
    try {
      const record = await post('v1/commands', command(form, state.preview?.revision));
      say(t('Command {id} is in force', { id: record.id }));
      go('command', { id: record.id });
    } catch (e) {
      fail(e);
      work(false);
      if (e.code === 'conflict') again();
    }
  };
  let said = '';
  try {
    said = sentence(action(form));
  } catch { /* it is told beside the form */ }
  return html`<div class="compose"><form class="panel" onSubmit=${give}>
      <div class="body"><${Choice} label=${t('Kind')} value=${form.kind} options=${KINDS.map(([k, n]) => [k, t(n)])} set=${(kind) => set({ kind, stepped: kind === 'move' || kind === 'canary' || kind === 'switch' })} />
        <p class="hint kind-text">${t(TEXTS[form.kind])}</p>
        <${Fields} form=${form} set=${set} groups=${groups} services=${services} page=${page} />
        ${steps && html`<fieldset><legend><label><input type="checkbox" checked=${form.stepped} onChange=${(e) => set({ stepped: e.target.checked })} /> ${t('In steps')}</label></legend>
          ${form.stepped && html`<div class="row">${f('steps', t('Percent of the whole change'))}${f('step', t('Each step'))}</div>`}</fieldset>`}
        <fieldset><legend><label><input type="checkbox" checked=${form.guarded} onChange=${(e) => set({ guarded: e.target.checked })} /> ${t('With a guard: undone by itself unless')}</label></legend>
          ${form.guarded && html`<div class="row">${f('p99', t('p99 below, ms'), { kind: 'number', step: 'any', min: 0 })}${f('errors', t('Errors below, %'), { kind: 'number', step: 'any', min: 0, max: 100 })}</div>`}</fieldset>
        <div class="row">${f('lasting', t('Undone after'), { placeholder: t('until it is undone by hand'), list: ['10 min', '1 h', '8 h'] })}${f('reason', t('Reason'), { required: true, placeholder: t('For those who come later') })}</div>
        <${Problem} error=${error} />
        ${!may && html`<${Problem} error=${{ message: t('You may look, and not give commands for {group}', { group: form.from }), remedy: t('Ask an admin of the centre for the role of an operator.') }} />`}
        <footer class="give"><span class="faint">${state.invalid ?? said}</span><button class=${form.kind === 'degrade' ? 'danger' : 'primary'} disabled=${busy || !may || !state.preview}>
          ${form.kind === 'move' ? t('Move {percent} %', form) : form.kind === 'degrade' ? t('Degrade') : t('Put into force')}${form.stepped && steps ? t(', first {n} % of it', { n: form.steps.split(/[,，\s]+/)[0] }) : ''}</button></footer></div></form>
    <div aria-live="polite">${state.error ? html`<${Problem} error=${state.error} again=${again} />` : null}<${Preview} preview=${state.preview} busy=${state.busy} invalid=${state.invalid} /></div></div>`;
}

export function Switch(values) {
  const read = useData(async (signal) => {
    const rows = await all('v1/services', {}, undefined, signal);
    const groups = [...new Set(rows.map((r) => r.key.group ?? ''))].filter(Boolean).sort();
    const services = [...new Set(rows.map((r) => r.key.service))];
    const page = values.service ? await get('v1/service', { service: values.service, group: values.from ?? '' }, signal).catch(() => null) : null;
    return { groups: page?.groups?.filter(Boolean) ?? groups, services, page };
  }, [values.service, values.from]);
  return html`<${Head} title=${t('New command')} crumbs=${values.service ? html`<a href="#/services">${t('Services')}</a> / <a href=${href('service', { service: values.service, group: values.from })}>${values.service}</a>` : html`<a href="#/commands">${t('Commands')}</a>`} />
    ${read.data ? html`<${Form} values=${values} ...${read.data} />` : read.error && html`<${Form} values=${values} groups=${[]} services=${[]} />`}`;
}
