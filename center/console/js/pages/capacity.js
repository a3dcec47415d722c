// What pools can take, how near to that they are, and what would become of them if a data centre were lost.

import { html, useMemo, useState } from '../../vendor/htm-preact-standalone.js';
import { all, get, post, session } from '../api.js';
import { Water } from '../figures.js';
import { count, percent, rate } from '../format.js';
import { t } from '../i18n.js';
import { Icon } from '../icons.js';
import { useData } from '../live.js';
import { href } from '../route.js';
import { Table } from '../table.js';
import { Badge, Empty, Head, Menu, Panel, Problem, Ready, Tile, word } from '../ui.js';
import { CommandCards } from './parts/cards.js';
import { Policy, Scale } from './parts/pool.js';

const SURE = ['lower_bound', 'low', 'medium', 'high'];
const ORDER = { fatal: 4, warning: 3, normal: 2, idle: 1, unknown: 0 };

const columns = (ask) => [
  { key: 'service', label: t('Service'), sort: (r) => r.service, cell: (r) => html`<a href=${href('service', { service: r.service, group: r.group })}>${r.service}</a>` },
  { key: 'group', label: t('Group'), sort: (r) => r.group, cell: (r) => r.group },
  { key: 'level', label: t('Level'), sort: (r) => ORDER[r.level], cell: (r) => html`<${Badge} state=${r.level} />` },
  { key: 'water', label: t('Water level'), right: true, sort: (r) => r.water_percent, cell: (r) => html`<${Water} value=${r.water_percent} level=${r.level} policy=${r.policy} />` },
  { key: 'redundancy', label: t('Redundancy %'), right: true, title: t('Share of the instances that may be lost before the fatal line'), sort: (r) => r.redundancy_percent, cell: (r) => percent(r.redundancy_percent), tone: (r) => (r.redundancy_percent === null ? 'faint' : r.redundancy_percent < 0 ? 'bad' : r.redundancy_percent < r.policy.redundancy_percent ? 'warn' : '') },
  { key: 'instances', label: t('Instances'), right: true, sort: (r) => r.instances, cell: (r) => html`${count(r.instances)}<span class="faint"> ${t('of {min}–{max}', r.policy)}</span>` },
  { key: 'rate', label: t('Calls/s'), right: true, sort: (r) => r.rate, cell: (r) => rate(r.rate) },
  { key: 'load', label: t('Weighted load'), right: true, title: t('Slow calls count more'), sort: (r) => r.load, cell: (r) => rate(r.load) },
  { key: 'takes', label: t('An instance takes'), right: true, sort: (r) => r.capacity?.per_instance, cell: (r) => html`${r.capacity?.confidence === 'lower_bound' ? '≥ ' : ''}${rate(r.capacity?.per_instance)}` },
  { key: 'sure', label: t('How sure'), sort: (r) => SURE.indexOf(r.capacity?.confidence), cell: (r) => (r.capacity ? html`<${Badge} state=${r.capacity.confidence} title=${r.capacity.basis} />` : html`<span class="faint">–</span>`) },
  { key: 'may', label: t('The centre may'), cell: (r) => html`<span class="faint">${[r.policy.switch && t('switch'), r.policy.scale && t('scale')].filter(Boolean).join(', ') || t('propose')}</span>` },
  { key: 'act', label: html`<span class="unseen">${t('Actions')}</span>`, right: true, cell: (r) => session.may('operator', r.group) && html`<${Menu} icon="more" label=${t('Actions for {name}', { name: `${r.group}/${r.service}` })} items=${[
    { label: t('Scale…'), act: () => ask({ what: 'scale', pool: r }) },
    { label: t('Policy…'), disabled: !session.may('admin', r.group), act: () => ask({ what: 'policy', pool: r }) },
    { label: t('Move traffic…'), act: () => { location.hash = href('switch', { kind: 'move', service: r.service, from: r.group }); } },
  ]} />` },
];

/// Pools as they would be without some groups.
function WhatIf({ groups }) {
  const [lost, set] = useState([]);
  const [answer, take] = useState(null);
  const [error, fail] = useState(null);
  const ask = async (next) => {
    set(next);
    fail(null);
    if (next.length === 0) {
      take(null);
      return;
    }
    try {
      take(await post('v1/capacity/what-if', { lost: next, service: '' }));
    } catch (e) {
      fail(e);
      take(null);
    }
  };
  const shown = useMemo(() => [
    { key: 'service', label: t('Service'), sort: (r) => r.service, cell: (r) => html`<a href=${href('service', { service: r.service, group: r.group })}>${r.service}</a>` },
    { key: 'group', label: t('Group'), sort: (r) => r.group, cell: (r) => r.group },
    { key: 'level', label: t('Level'), sort: (r) => ORDER[r.level], cell: (r) => html`<${Badge} state=${r.level} />` },
    { key: 'water', label: t('Water level then'), right: true, sort: (r) => r.water_percent, cell: (r) => html`<${Water} value=${r.water_percent} level=${r.level} policy=${r.policy} />` },
    { key: 'needed', label: t('Instances to add'), right: true, title: t('To stay below the safety line'), sort: (r) => r.needed, cell: (r) => (r.needed > 0 ? `+${count(r.needed)}` : '') },
  ], []);
  const needed = new Map(answer?.needed ?? []);
  const rows = useMemo(() => (answer?.pools ?? []).map((p) => ({ ...p, needed: needed.get(`${p.group}/${p.service}`) ?? 0 })), [answer]);
  return html`<${Panel} id="what-if" title=${t('What if a group is lost?')} note=${t('its load spread over what remains, by capacity')}>
    <div class="body"><div class="choice" role="group" aria-label=${t('Groups that are lost')}>${groups.map((g) => html`<button type="button" aria-pressed=${lost.includes(g)} onClick=${() => ask(lost.includes(g) ? lost.filter((x) => x !== g) : [...lost, g])}>${g}</button>`)}</div>
      <${Problem} error=${error} />
      ${answer && html`<p class="verdict">${answer.fails.length === 0
        ? html`<span class="badge ok"><${Icon} name="ok" />${t('holds')}</span> ${t('Without {groups} every service stays below its fatal line.', { groups: lost.join(', ') })}`
        : html`<span class="badge bad">${t('{n} would fail', { n: answer.fails.length })}</span> ${answer.fails.join(', ')}`}</p>`}</div>
    ${answer && html`<${Table} name="what-if" caption=${t('Pools that remain')} columns=${shown} rows=${rows} rowKey=${(r) => `${r.group}/${r.service}`} first=${{ key: 'water', down: true }} tone=${(r) => (r.level === 'fatal' ? 'row-bad' : '')} />`}</${Panel}>`;
}

/// Switches and sizes that the centre proposes and that wait for somebody.
function Proposals() {
  const list = useData((signal) => get('v1/commands', { state: 'proposed', limit: 50 }, signal), [], { every: 5000, on: ['commands'] });
  const waiting = list.data?.items ?? [];
  if (waiting.length === 0) return null;
  return html`<${Panel} id="proposals" title=${t('Proposals')} note=${t('they wait for an operator, and expire')}><div class="body"><${CommandCards} commands=${waiting} reload=${list.reload} named /></div></${Panel}>
    <div class="gap"></div>`;
}

export function Capacity() {
  const list = useData((signal) => all('v1/capacity', {}, undefined, signal), [], { every: 3000, on: ['commands', 'registry'] });
  const [asked, ask] = useState(null);
  const shown = useMemo(() => columns(ask), []);
  return html`<${Head} title=${t('Capacity')} />
    <${Ready} from=${list}>${(pools) => {
      if (pools.length === 0) return html`<${Empty} title=${t('No pool yet')}><p>${t('A pool is the instances of one service in one group. It appears with its first calls.')}</p></${Empty}>`;
      const groups = [...new Set(pools.map((p) => p.group))].sort();
      const advised = pools.filter((p) => p.advice);
      const n = (level) => pools.filter((p) => p.level === level).length;
      return html`<dl class="tiles"><${Tile} label=${t('Pools')} value=${count(pools.length)} />${['fatal', 'warning', 'normal', 'idle', 'unknown'].map((level) => html`<${Tile} label=${word(level)} value=${count(n(level))} tone=${n(level) > 0 ? { fatal: 'bad', warning: 'warn' }[level] : ''} />`)}</dl>
        <${Proposals} />
        ${advised.map((p) => html`<div class="notice info"><${Icon} name="capacity" /><p><a href=${href('service', { service: p.service, group: p.group })}><strong>${p.group}/${p.service}</strong></a> ${p.advice}</p></div>`)}
        <${Table} name="capacity" caption=${t('Pools')} columns=${shown} rows=${pools} rowKey=${(r) => `${r.group}/${r.service}`} first=${{ key: 'water', down: true }} tone=${(r) => ({ fatal: 'row-bad', warning: 'row-warn' }[r.level] ?? '')} />
        <div class="gap"></div>${groups.length > 1 && html`<${WhatIf} groups=${groups} />`}
        ${asked?.what === 'scale' && html`<${Scale} pool=${asked.pool} reload=${list.reload} onClose=${() => ask(null)} />`}
        ${asked?.what === 'policy' && html`<${Policy} pool=${asked.pool} reload=${list.reload} onClose=${() => ask(null)} />`}`;
    }}</${Ready}>`;
}
