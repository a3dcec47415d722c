// One service: what it does now, its curves, who serves it, who calls it, what was ordered.

import { html, useEffect, useMemo, useState } from '../../vendor/htm-preact-standalone.js';
import { ApiError, get, post, session } from '../api.js';
import { Part, Water, successTone } from '../figures.js';
import { ago, clock, count, ms, percent, rate, share } from '../format.js';
import { t, tn } from '../i18n.js';
import { Icon } from '../icons.js';
import { live, now, useData, useLive } from '../live.js';
import { adjust, go, href } from '../route.js';
import { Table, useOpen } from '../table.js';
import { Ask, Badge, Choice, Empty, Head, Menu, Panel, Problem, Ready, Tile, attempt, say } from '../ui.js';
import { CommandCards } from './parts/cards.js';
import { Curves, SPANS } from './parts/curves.js';
import { PoolPanel } from './parts/pool.js';
import { Demo } from './parts/demo.js';

function Tiles({ page, service, group }) {
  useLive();
  const f = live.figures.get(`${group}/${service}`) ?? page.row.figures;
  const { row, pool } = page;
  return html`<dl class="tiles">
    <${Tile} label=${t('Calls/s')} value=${rate(f.rate)} />
    <${Tile} label=${t('Success')} value=${share(f.success)} unit="%" tone=${successTone(f.success)} />
    <${Tile} label=${t('Mean')} value=${ms(f.mean_ms)} unit="ms" />
    <${Tile} label="p99" value=${ms(f.p99_ms)} unit="ms" />
    <${Tile} label="p99.9" value=${ms(f.p999_ms)} unit="ms" />
    <${Tile} label=${t('Slow')} value=${share(f.slow)} unit="%" />
    <${Tile} label=${t('Instances')} value=${count(row.available)} unit=${` / ${count(row.instances)}`} tone=${row.available === 0 ? 'bad' : row.available < row.instances ? 'warn' : ''} />
    <${Tile} label=${t('Water level')} value=${percent(pool?.water_percent ?? row.water_percent)} unit="%" tone=${{ warning: 'warn', fatal: 'bad' }[row.level] ?? ''} />
  </dl>`;
}

/// Curves of one instance, below its row.
function InstanceCurves({ service, group, row }) {
  return html`<${Curves} of=${{ service, group, instance: row.address }} groups=${[group]} group=${group} range=${SPANS[0][0]} small />
    <dl class="pairs"><dt>${t('Agent')}</dt><dd>${row.agent || '–'}</dd><dt>${t('Registered')}</dt><dd>${clock(row.since_ms)}</dd>
    ${Object.entries(row.metadata ?? {}).map(([k, v]) => html`<dt>${k}</dt><dd>${v}</dd>`)}</dl>`;
}

function instanceColumns({ turn, ask, service, group, may }) {
  return [
    { key: 'address', label: t('Address'), sort: (r) => r.address, cell: (r, _, open) => html`<button class="plain open-row num" aria-expanded=${open} onClick=${() => turn(r.address)}><${Icon} name=${open ? 'down' : 'right'} />${r.address}</button>` },
    { key: 'state', label: t('State'), sort: (r) => r.state, cell: (r) => html`<${Badge} state=${r.state} title=${r.reason} />${r.reason && html` <span class="faint clip" title=${r.reason}>${r.reason}</span>`}` },
    { key: 'weight', label: t('Weight'), right: true, sort: (r) => r.weight, cell: (r) => count(r.weight) },
    { key: 'zone', label: t('Zone'), sort: (r) => r.zone, cell: (r) => r.zone || html`<span class="faint">–</span>` },
    { key: 'version', label: t('Version'), sort: (r) => r.version, cell: (r) => r.version || html`<span class="faint">–</span>` },
    { key: 'rate', label: t('Calls/s'), right: true, sort: (r) => r.figures.rate, cell: (r) => rate(r.figures.rate) },
    { key: 'of', label: t('Of its capacity'), sort: (r) => (r.capacity ? r.figures.rate / r.capacity : null), cell: (r) => {
      if (!r.capacity) return html`<span class="faint">–</span>`;
      const full = r.figures.rate / r.capacity;
      return html`<${Part} value=${r.figures.rate} of=${r.capacity} tone=${full > 1 ? 'bad' : full > 0.7 ? 'warn' : ''} /> <span class="num faint">${percent(full * 100)} %</span>`;
    } },
    { key: 'success', label: t('Success %'), right: true, sort: (r) => r.figures.success, cell: (r) => share(r.figures.success), tone: (r) => successTone(r.figures.success) },
    { key: 'p99', label: t('p99 ms'), right: true, sort: (r) => r.figures.p99_ms, cell: (r) => ms(r.figures.p99_ms) },
    { key: 'heard', label: t('Heartbeat'), right: true, sort: (r) => r.heard_ms_ago, cell: (r) => ago(r.heard_ms_ago), tone: (r) => (r.state === 'lost' ? 'bad' : 'faint') },
    { key: 'act', label: html`<span class="unseen">${t('Actions')}</span>`, right: true, cell: (r) => may && html`<${Menu} icon="more" label=${t('Actions for {name}', { name: r.address })} items=${[
      r.state === 'out' || r.state === 'draining' ? { label: t('Bring back'), act: () => ask({ what: 'in', row: r }) } : { label: t('Take out…'), act: () => ask({ what: 'out', row: r }) },
      { label: t('Change weight…'), act: () => ask({ what: 'weight', row: r }) },
      r.state === 'available' && { label: t('Drain…'), act: () => ask({ what: 'drain', row: r }) },
      { label: t('Test whether it answers'), act: () => test(service, group, r.address) },
      { label: t('Canary of its version…'), disabled: !r.version, act: () => go('switch', { kind: 'canary', service, from: group, version: r.version }) },
    ]} />` },
  ];
}

/// Whether the centre itself can connect to it.
const test = (service, group, instance) => attempt(async () => {
  const told = await post('v1/test', { service, group, instance });
  say(told.reachable ? t('{name} took a connection in {time} ms', { name: instance, time: ms(told.connect_ms) }) : `${instance}: ${told.error ?? t('no answer')}`, told.reachable ? '' : 'bad');
});

/// Asks before an operator's word about one instance.
function InstanceOrder({ order, service, group, version, onClose, reload }) {
  const { what, row } = order;
  const key = { service, group, version };
  const give = async (values) => {
    await post(`v1/instance/${what}`, { key, address: row.address, reason: values.reason ?? '', weight: what === 'weight' && values.weight !== '' ? Number(values.weight) : null });
    say({ in: t('{name} is back', { name: row.address }), out: t('{name} is taken out', { name: row.address }), drain: t('{name} drains', { name: row.address }), weight: t('The weight of {name} is changed', { name: row.address }) }[what]);
    reload();
  };
  const reason = { name: 'reason', label: t('Reason'), required: what === 'out' || what === 'drain', hint: t('For those who come later') };
  const texts = {
    in: [t('Bring {name} back?', { name: row.address }), t('Callers may use it again within a second.'), t('Bring back'), []],
    out: [t('Take {name} out?', { name: row.address }), t('Callers stop using it at once. It holds over restarts of its agent and of the centre until someone brings it back.'), t('Take out'), [reason]],
    drain: [t('Drain {name}?', { name: row.address }), t('It gets no new calls, and its connections end after their replies.'), t('Drain'), [reason]],
    weight: [t('Weight of {name}', { name: row.address }), t('Its share of the calls follows its weight among its siblings. Empty gives it back its own.'), t('Change weight'), [{ name: 'weight', label: t('Weight'), kind: 'number', min: 0, max: 100_000, value: row.weight, autofocus: true }, reason]],
  }[what];
  return html`<${Ask} title=${texts[0]} text=${texts[1]} verb=${texts[2]} fields=${texts[3]} danger=${what === 'out'} act=${give} onClose=${onClose} />`;
}

function Instances({ page, service, group, version, reload }) {
  const [open, turn] = useOpen();
  const [order, ask] = useState(null);
  const may = session.may('operator', group);
  const columns = useMemo(() => instanceColumns({ turn, ask, service, group, may }), [service, group, may]);
  return html`<${Panel} id="instances" title=${t('Instances')} note=${t('{n} of {all} may be used', { n: page.row.available, all: page.row.instances })}>
    <${Table} name="instances" caption=${t('Instances of {name}', { name: service })} columns=${columns} rows=${page.instances} rowKey=${(r) => r.address} open=${open}
      first=${{ key: 'address', down: false }} tone=${(r) => ({ lost: 'row-bad', out: 'row-warn' }[r.state] ?? '')}
      detail=${(r) => html`<${InstanceCurves} service=${service} group=${group} row=${r} />`}
      empty=${html`<p class="none-here">${t('No instance is registered in this group.')}</p>`} />
    ${order && html`<${InstanceOrder} order=${order} service=${service} group=${group} version=${version} reload=${reload} onClose=${() => ask(null)} />`}</${Panel}>`;
}

const WAYS = { redirect: 'socket to socket', joined: 'joined', kernel: 'kernel', tcp: 'TCP' };
export const Way = ({ way }) => html`<span class=${`badge ${way === 'redirect' || way === 'kernel' ? 'ok' : ''}`}>${way === 'redirect' && html`<${Icon} name="bolt" />`}${t(WAYS[way] ?? (way || '–'))}</span>`;

const callerColumns = () => [
  { key: 'caller', label: t('Application'), sort: (r) => r.caller, cell: (r) => r.caller || t('(unknown)') },
  { key: 'rate', label: t('Calls/s'), right: true, sort: (r) => r.figures.rate, cell: (r) => rate(r.figures.rate) },
  { key: 'success', label: t('Success %'), right: true, sort: (r) => r.figures.success, cell: (r) => share(r.figures.success), tone: (r) => successTone(r.figures.success) },
  { key: 'p99', label: t('p99 ms'), right: true, sort: (r) => r.figures.p99_ms, cell: (r) => ms(r.figures.p99_ms) },
  { key: 'way', label: t('Bytes travel'), sort: (r) => r.way, cell: (r) => html`<${Way} way=${r.way} />` },
];

function Callers({ rows, service }) {
  const columns = useMemo(callerColumns, []);
  return html`<${Panel} id="callers" title=${t('Callers')} note=${t('of the last ten seconds')}><${Table} name="callers" caption=${t('Callers of {name}', { name: service })} columns=${columns} rows=${rows}
    rowKey=${(r) => r.caller} first=${{ key: 'rate', down: true }} empty=${html`<p class="none-here">${t('Nobody called it lately.')}</p>`} /></${Panel}>`;
}

function Groups({ page, service, group }) {
  useLive();
  if (page.groups.length < 2) return null;
  return html`<nav class="tabs" aria-label=${t('Groups')}>${page.groups.map((g) => html`<a key=${g} href=${href('service', { service, group: g })} aria-current=${g === group ? 'page' : undefined}>
    ${g || t('(no group)')} <span class="num">${rate(live.figures.get(`${g}/${service}`)?.rate)}</span></a>`)}</nav>`;
}

export function Service({ service, group = '', version = '', range = SPANS[0][0] }) {
  const [to, setTo] = useState(group);
  // The group is followed without a new page, so that curves stay.
  if (to !== group) setTo(group);
  const page = useData((signal) => get('v1/service', { service, group, version }, signal), [service, group, version], { every: 2000, on: ['registry', 'commands', 'alerts'] });
  const may = session.may('operator', group);
  if (page.data === null && page.error instanceof ApiError && page.error.status === 404) {
    return html`<${Head} title=${service} crumbs=${html`<a href="#/services">${t('Services')}</a>`} />
      <${Empty} title=${t('There is no such service')}><p>${page.error.message}</p><p><a href="#/services">${t('All services')}</a></p></${Empty}>`;
  }
  const kinds = [['switch', t('Switch to groups…')], ['canary', t('Canary…')], ['route', t('Rules by address…')], ['degrade', t('Degrade…')], ['switchers', t('Switchers…')]];
  return html`<${Head} title=${service} crumbs=${html`<a href="#/services">${t('Services')}</a>`} sub=${page.data && html`${page.data.row.protocols.join(', ')}${group && html` · ${t('group {group}', { group })}`}${version && html` · ${version}`} · <${Badge} state=${page.data.row.level || 'unknown'} />
        ${page.data.row.alerts > 0 && html` <a class="badge bad" href=${href('alerts', { filter: service })}>${tn(page.data.row.alerts, '{n} alert', '{n} alerts')}</a>`}`}>
      <${Choice} label=${t('Time')} value=${range} options=${SPANS.map(([k, n]) => [k, t(n)])} set=${(v) => adjust({ range: v })} />
      ${may && html`<a class="button primary" data-move href=${href('switch', { kind: 'move', service, from: group })} title="m"><${Icon} name="move" />${t('Move traffic…')}</a>
      <${Menu} label=${t('More')} items=${kinds.map(([kind, label]) => ({ label, act: () => go('switch', { kind, service, from: group }) }))} />`}
    </${Head}>
    <${Ready} from=${page}>${(data) => html`
      <${Groups} page=${data} service=${service} group=${group} />
      <${Tiles} page=${data} service=${service} group=${group} />
      <${Demo} />
      ${data.commands.length > 0 && html`<${CommandCards} commands=${data.commands} reload=${page.reload} />`}
      <${Curves} of=${{ service, group }} groups=${data.groups} group=${group} range=${range} commands=${data.commands} pool=${data.pool} />
      <${Instances} page=${data} service=${service} group=${group} version=${version} reload=${page.reload} />
      <div class="split"><${Callers} rows=${data.callers} service=${service} /><${PoolPanel} pool=${data.pool} reload=${page.reload} /></div>`}</${Ready}>`;
}
