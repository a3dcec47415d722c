// Every service in every group, as it is now.

import { html, useMemo, useState } from '../../vendor/htm-preact-standalone.js';
import { all } from '../api.js';
import { Spark, Water, successTone } from '../figures.js';
import { count, ms, rate, share } from '../format.js';
import { t, tn } from '../i18n.js';
import { live, useData, useLive } from '../live.js';
import { adjust, href, useRoute } from '../route.js';
import { Table } from '../table.js';
import { Badge, Choice, Empty, Head, Ready, Tile } from '../ui.js';

export const keyOf = (key) => `${key.group ?? ''}/${key.service}`;
const figuresOf = (row) => live.figures.get(keyOf(row.key)) ?? row.figures;

const columns = () => [
  { key: 'service', label: t('Service'), sort: (r) => r.key.service, cell: (r) => html`<a href=${href('service', { service: r.key.service, group: r.key.group, version: r.key.version })}>${r.key.service}</a>${r.key.version && html` <span class="faint">${r.key.version}</span>`}` },
  { key: 'group', label: t('Group'), sort: (r) => r.key.group ?? '', cell: (r) => r.key.group || html`<span class="faint">–</span>` },
  { key: 'protocol', label: t('Protocol'), sort: (r) => r.protocols.join(), cell: (r) => html`<span class="faint">${r.protocols.join(', ')}</span>` },
  { key: 'instances', label: t('Instances'), right: true, title: t('Those that callers may use, of those known'), sort: (r) => r.available, cell: (r) => html`${r.available}<span class="faint"> / ${r.instances}</span>`, tone: (r) => (r.available === 0 ? 'bad' : r.available < r.instances ? 'warn' : '') },
  { key: 'spark', label: t('Last minute'), cell: (r) => html`<${Spark} values=${live.rates.get(keyOf(r.key))} />` },
  { key: 'rate', label: t('Calls/s'), right: true, sort: (r, f) => f.rate, cell: (r, f) => rate(f.rate) },
  { key: 'success', label: t('Success %'), right: true, sort: (r, f) => f.success, cell: (r, f) => share(f.success), tone: (r, f) => successTone(f.success) },
  { key: 'mean', label: t('Mean ms'), right: true, sort: (r, f) => f.mean_ms, cell: (r, f) => ms(f.mean_ms) },
  { key: 'p99', label: t('p99 ms'), right: true, sort: (r, f) => f.p99_ms, cell: (r, f) => ms(f.p99_ms) },
  { key: 'p999', label: t('p99.9 ms'), right: true, sort: (r, f) => f.p999_ms, cell: (r, f) => ms(f.p999_ms) },
  { key: 'slow', label: t('Slow %'), right: true, title: t('Share of calls slower than the threshold'), sort: (r, f) => f.slow, cell: (r, f) => share(f.slow) },
  { key: 'water', label: t('Water level'), title: t('Load in percent of what the pool can take'), right: true, sort: (r) => r.water_percent, cell: (r) => html`<${Water} value=${r.water_percent} level=${r.level} />` },
  { key: 'signs', label: t('Signs'), right: true, sort: (r) => r.alerts * 1000 + r.commands, cell: (r) => html`${r.alerts > 0 && html`<a class="badge bad" href=${href('alerts', { filter: r.key.service })}>${tn(r.alerts, '{n} alert', '{n} alerts')}</a>`}${r.commands > 0 && html`<a class="badge info" href=${href('commands', { filter: r.key.service })}>${tn(r.commands, '{n} command', '{n} commands')}</a>`}` },
];

function Summary({ rows }) {
  useLive();
  let calls = 0;
  let well = 0;
  let judged = 0;
  let available = 0;
  let known = 0;
  let above = 0;
  let commands = 0;
  const names = new Set();
  for (const row of rows) {
    const f = figuresOf(row);
    names.add(row.key.service);
    calls += f.rate;
    if (f.success !== null && f.success !== undefined) {
      well += f.rate * f.success;
      judged += f.rate;
    }
    available += row.available;
    known += row.instances;
    if (row.level === 'warning' || row.level === 'fatal') above += 1;
    commands += row.commands;
  }
  const success = judged > 0 ? well / judged : null;
  return html`<dl class="tiles">
    <${Tile} label=${t('Calls/s')} value=${rate(calls)} />
    <${Tile} label=${t('Success')} value=${share(success)} unit="%" tone=${successTone(success)} />
    <${Tile} label=${t('Services')} value=${count(names.size)} />
    <${Tile} label=${t('Instances')} value=${count(available)} unit=${` / ${count(known)}`} tone=${available < known ? 'warn' : ''} />
    <${Tile} label=${t('Above a line')} value=${count(above)} unit=${t(' pools')} tone=${above > 0 ? 'warn' : ''} />
    <${Tile} label=${t('Alerts')} value=${count(live.alerts ?? 0)} tone=${live.alerts ? 'bad' : ''} />
    <${Tile} label=${t('Commands in force')} value=${count(commands)} />
  </dl>`;
}

const LEVELS = [['', 'All'], ['trouble', 'In trouble'], ['commanded', 'Commanded']];

function inTrouble(row) {
  const f = figuresOf(row);
  return row.alerts > 0 || row.level === 'warning' || row.level === 'fatal' || row.available < row.instances
    || (f.success !== null && f.success !== undefined && f.success < 0.99);
}

function List({ rows }) {
  useLive();
  const { values } = useRoute();
  const shown = useMemo(columns, []);
  const [text, setText] = useState(values.filter ?? '');
  const level = values.level ?? '';
  const group = values.group ?? '';
  const groups = useMemo(() => [...new Set(rows.map((r) => r.key.group ?? ''))].sort(), [rows]);
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const fitting = useMemo(() => rows.filter((r) => {
    const name = `${r.key.service} ${r.key.group} ${r.key.version} ${r.protocols}`.toLowerCase();
    return words.every((w) => name.includes(w)) && (!group || r.key.group === group)
      && (level === '' || (level === 'trouble' ? inTrouble(r) : r.commands > 0));
  }), [rows, text, group, level]);
  return html`<div class="filters">
      <input type="search" data-filter aria-label=${t('Filter services')} placeholder=${t('Filter services  /')} value=${text}
        onInput=${(e) => { setText(e.target.value); adjust({ filter: e.target.value }); }} />
      ${groups.length > 1 && html`<select aria-label=${t('Group')} value=${group} onChange=${(e) => adjust({ group: e.target.value })}>
        <option value="">${t('All groups')}</option>${groups.map((g) => html`<option value=${g} selected=${g === group}>${g || t('(no group)')}</option>`)}</select>`}
      <${Choice} label=${t('Which')} value=${level} options=${LEVELS.map(([k, n]) => [k, t(n)])} set=${(v) => adjust({ level: v })} />
      <span class="faint num" role="status">${fitting.length === rows.length ? t('{n} rows', { n: count(rows.length) }) : t('{n} of {all} rows', { n: count(fitting.length), all: count(rows.length) })}</span>
    </div>
    <${Table} name="services" caption=${t('Services')} columns=${shown} rows=${fitting} rowKey=${(r) => `${keyOf(r.key)}:${r.key.version ?? ''}`} extra=${figuresOf}
      first=${{ key: 'rate', down: true }} tone=${(r) => (r.level === 'fatal' ? 'row-bad' : '')}
      empty=${html`<${Empty} title=${t('Nothing fits')}><p>${t('No service fits the filter.')}</p><button onClick=${() => { setText(''); adjust({ filter: '', group: '', level: '' }); }}>${t('Show all')}</button></${Empty}>`} />`;
}

const NOTHING = `center:
  address: [127.0.0.1:7480]
registries:
  center: { kind: center }`;

export function Services() {
  const list = useData((signal, part) => all('v1/services', {}, part, signal), [], { every: 10_000, on: ['registry', 'commands', 'alerts'] });
  return html`<${Head} title=${t('Services')} />
    <${Ready} from=${list}>${(rows) => (rows.length === 0
      ? html`<${Empty} title=${t('No service is registered yet')}><p>${t('Services appear here as soon as an agent registers one with this centre. In the agent’s file:')}</p>
          <pre>${NOTHING}</pre><p>${t('Or see a mesh with two data centres on this machine:')} <code>cargo xtask run</code></p></${Empty}>`
      : html`<${Summary} rows=${rows} /><${List} rows=${rows} />`)}</${Ready}>`;
}
