// Commands in short: what, by whom, where it stands, and what can be done about it now.

import { html, useState } from '../../../vendor/htm-preact-standalone.js';
import { post, session } from '../../api.js';
import { clock, percent, span } from '../../format.js';
import { t } from '../../i18n.js';
import { now, useLive } from '../../live.js';
import { href } from '../../route.js';
import { Ask, Badge, attempt } from '../../ui.js';

const weights = (to) => to.map((g) => (g.weight ? `${g.group} ${g.weight}` : g.group)).join(', ');

/// What a command does, in a sentence.
export function sentence(action) {
  const a = action;
  switch (a.kind) {
    case 'move': return t('{percent} % of {from} to {to}', a);
    case 'switch': return t('Calls of {group} go to {to}', { group: a.group, to: weights(a.to) });
    case 'route': return t('{n} rules by address in {group}', { n: a.rules.length, group: a.group });
    case 'canary': return a.header
      ? t('Calls with {header} and {percent} % of the others to version {version}', a)
      : t('{percent} % of the calls to version {version}', a);
    case 'degrade': return t('Degrade in {group}: every call is answered with an error', a);
    case 'switchers': return t('Switchers of {group}: {values}', { group: a.group, values: a.values.map(([n, v]) => `${n}=${v ? t('on') : t('off')}`).join(', ') });
    case 'drain': return t('Drain {instance}', a);
    case 'scale': return t('Scale {group} from {from} to {to} instances', a);
    default: return a.kind;
  }
}

/// Group whose rights a command needs.
export const groupOf = (action) => action.group ?? action.from ?? '*';
export const serviceOf = (action) => action.service ?? '';

/// What holds while it does, in words.
export function guardText(guard) {
  if (!guard) return '';
  const parts = [];
  if (guard.p99_ms !== null && guard.p99_ms !== undefined) parts.push(t('p99 < {n} ms', { n: guard.p99_ms }));
  if (guard.error_percent !== null && guard.error_percent !== undefined) parts.push(t('errors < {n} %', { n: guard.error_percent }));
  return parts.join(t(' and '));
}

/// Steps as a row of marks: taken, the present one, to come.
export function Steps({ command }) {
  const planned = command.asked.steps.length > 0 ? command.asked.steps : [100];
  const taken = command.steps.length;
  const over = ['undone', 'failed', 'expired'].includes(command.state);
  const all = command.state === 'active' || command.state === 'done';
  return html`<ol class=${`steps ${over ? 'over' : ''}`} aria-label=${t('Steps')}>${planned.map((step, i) => {
    const state = i < taken - 1 || (i === taken - 1 && all) ? 'done' : i === taken - 1 ? 'here' : '';
    return html`<li class=${state} aria-current=${state === 'here' ? 'step' : undefined} title=${command.steps[i] ? clock(command.steps[i].at_ms) : ''}>${percent(step)} %</li>`;
  })}</ol>`;
}

const VERBS = ({ state, asked }) => ({
  undo: state === 'proposed'
    ? [t('Turn proposal {id} down?'), t('Nothing like it is proposed again within the hour.'), t('Discard')]
    : [t('Undo command {id}?'), t('What others changed since then stays.'), t('Undo')],
  next: [t('Take the next step of command {id}?'), t('The guard goes on watching.'), t('Next step')],
  confirm: [t('Put proposal {id} into force?'), asked.action.kind === 'scale'
    ? t('The driver of the pool starts or stops instances at once. Another size later is another change.')
    : t('It was worked out from the figures of the time it was made. Look at its preview if that was long ago.'), t('Put into force')],
});

/// What can be done about a command now.
export function Deeds({ command, reload }) {
  const [deed, ask] = useState(null);
  if (!session.may('operator', groupOf(command.asked.action))) return null;
  const { state } = command;
  const act = async (values) => {
    await post(`v1/commands/${command.id}/${deed}`, deed === 'undo' ? { reason: values.why } : {});
    await reload?.();
  };
  const texts = deed && VERBS(command)[deed];
  return html`<span class="deeds">
    ${state === 'proposed' && html`<button class="primary" onClick=${() => ask('confirm')}>${t('Put into force…')}</button>`}
    ${state === 'stepping' && html`<button onClick=${() => ask('next')}>${t('Next step…')}</button>`}
    ${['active', 'stepping', 'proposed'].includes(state) && html`<button onClick=${() => ask('undo')}>${state === 'proposed' ? t('Discard…') : t('Undo…')}</button>`}
    ${deed && html`<${Ask} title=${texts[0].replace('{id}', command.id)} text=${html`<strong>${sentence(command.asked.action)}</strong><br />${texts[1]}`} verb=${texts[2]} danger=${deed === 'undo'}
      fields=${deed === 'undo' ? [{ name: 'why', label: t('Why'), autofocus: true }] : []} act=${act} onClose=${() => ask(null)} />`}</span>`;
}

function Until({ command }) {
  useLive();
  if (!command.until_ms) return null;
  const time = span(Math.max(0, command.until_ms - now()));
  return html`<span>${command.state === 'proposed' ? t('expires in {time}', { time }) : t('undone in {time}', { time })}</span>`;
}

/// `named`: with their services, where several are shown.
export function CommandCards({ commands, reload, named }) {
  return html`<div class="cards">${commands.map((c) => html`<article key=${c.id} class=${`card ${c.state}`}>
    <div class="card-main"><p><a href=${href('command', { id: c.id })}>#${c.id}</a> ${named && html`<a href=${href('service', { service: serviceOf(c.asked.action), group: groupOf(c.asked.action) })}>${serviceOf(c.asked.action)}</a> `}<strong>${sentence(c.asked.action)}</strong> <${Badge} state=${c.state} /></p>
      <p class="faint">${c.author} · ${clock(c.at_ms)} · ${c.asked.reason}${c.asked.guard && html` · ${t('guard {text}', { text: guardText(c.asked.guard) })}`}${c.until_ms && html` · `}<${Until} command=${c} /></p></div>
    ${c.asked.steps.length > 0 && html`<${Steps} command=${c} />`}
    <${Deeds} command=${c} reload=${reload} /></article>`)}</div>`;
}
