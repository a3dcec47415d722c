// What is registered, as it is kept: groups, services, instances, command texts; and how the registry is.

import { html, useMemo, useState } from '../../vendor/htm-preact-standalone.js';
import { all, get } from '../api.js';
import { ago, clock, count } from '../format.js';
import { t } from '../i18n.js';
import { Icon } from '../icons.js';
import { useData } from '../live.js';
import { adjust, href } from '../route.js';
import { Table } from '../table.js';
import { Badge, Empty, Head, Panel, Ready, Tile } from '../ui.js';
import { Difference } from './parts/preview.js';

const scopeOf = (scope) => (scope.group !== undefined ? t('group {name}', { name: scope.group }) : t('application {name}', { name: scope.agent }));

function Instances({ service, group, version }) {
  const page = useData((signal) => get('v1/service', { service, group, version }, signal), [service, group, version], { every: 5000, on: ['registry'] });
  const shown = useMemo(() => [
    { key: 'address', label: t('Address'), sort: (r) => r.address, cell: (r) => html`<span class="num">${r.address}</span>` },
    { key: 'state', label: t('State'), sort: (r) => r.state, cell: (r) => html`<${Badge} state=${r.state} title=${r.reason} /> ${r.reason && html`<span class="faint">${r.reason}</span>`}` },
    { key: 'weight', label: t('Weight'), right: true, sort: (r) => r.weight, cell: (r) => count(r.weight) },
    { key: 'zone', label: t('Zone'), sort: (r) => r.zone, cell: (r) => r.zone },
    { key: 'version', label: t('Version'), sort: (r) => r.version, cell: (r) => r.version },
    { key: 'agent', label: t('Agent'), sort: (r) => r.agent, cell: (r) => html`<a href=${href('agents', { filter: r.agent })}>${r.agent}</a>` },
    { key: 'since', label: t('Registered'), right: true, sort: (r) => r.since_ms, cell: (r) => clock(r.since_ms) },
    { key: 'heard', label: t('Heartbeat'), right: true, sort: (r) => r.heard_ms_ago, cell: (r) => ago(r.heard_ms_ago) },
    { key: 'metadata', wrap: true, label: t('Metadata'), cell: (r) => Object.entries(r.metadata ?? {}).map(([k, v]) => html`<span class="badge" title=${`${k}=${v}`}>${k}=${String(v).slice(0, 40)}</span> `) },
  ], []);
  return html`<${Panel} id="kept" title=${`${group}/${service}`} tools=${html`<a class="button" href=${href('service', { service, group, version })}>${t('Its page')}</a>`}>
    <${Ready} from=${page}>${(data) => html`<${Table} name="kept" caption=${t('Instances of {name}', { name: service })} columns=${shown} rows=${data.instances} rowKey=${(r) => r.address} first=${{ key: 'address' }} empty=${html`<p class="none-here">${t('No instance is registered in this group.')}</p>`} />`}</${Ready}></${Panel}>`;
}

/// Groups, then services of one, then instances of one: three lists beside each other.
function Browser({ rows, values }) {
  const [text, setText] = useState('');
  const groups = useMemo(() => {
    const found = new Map();
    for (const row of rows) {
      const group = row.key.group ?? '';
      found.set(group, (found.get(group) ?? 0) + 1);
    }
    return [...found].sort();
  }, [rows]);
  const group = values.group ?? groups[0]?.[0] ?? '';
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const services = rows.filter((r) => (r.key.group ?? '') === group && words.every((w) => r.key.service.toLowerCase().includes(w)));
  return html`<div class="browser"><section class="panel" aria-label=${t('Groups')}><header><h2>${t('Groups')}</h2></header><ul class="pick">${groups.map(([g, n]) => html`<li><a href=${href('registry', { group: g })} aria-current=${g === group ? 'true' : undefined}>${g || t('(no group)')}<span class="num">${count(n)}</span></a></li>`)}</ul></section>
    <section class="panel" aria-label=${t('Services')}><header><h2>${t('Services')}</h2><input type="search" data-filter aria-label=${t('Filter services')} placeholder="/" value=${text} onInput=${(e) => setText(e.target.value)} /></header>
      <ul class="pick">${services.slice(0, 500).map((r) => html`<li><a href=${href('registry', { group, service: r.key.service, version: r.key.version })} aria-current=${r.key.service === values.service ? 'true' : undefined}>${r.key.service}${r.key.version ? ` ${r.key.version}` : ''}<span class=${`num ${r.available < r.instances ? 'warn' : ''}`}>${r.available}/${r.instances}</span></a></li>`)}
      ${services.length > 500 && html`<li class="faint">${t('{n} more', { n: services.length - 500 })}</li>`}</ul></section>
    ${values.service ? html`<${Instances} service=${values.service} group=${group} version=${values.version} />` : html`<section class="panel"><p class="none-here">${t('Choose a service to see its instances.')}</p></section>`}</div>`;
}

export function Registry(values) {
  const state = useData((signal) => get('v1/registry', {}, signal), [], { every: 5000, on: ['registry', 'commands'] });
  const rows = useData((signal, part) => all('v1/services', {}, part, signal), [], { every: 15_000, on: ['registry'] });
  return html`<${Head} title=${t('Registry')} />
    <${Ready} from=${state}>${(s) => html`
      ${s.ahead && html`<div class="notice"><${Icon} name="warn" /><p>${t('{agent} took revision {revision} of epoch {epoch}, which this centre never had: it has lost data or was restored from a backup. Agents keep what they have until it catches up; sockmesh-center restore --force makes them follow.', { agent: s.ahead[0], ...s.ahead[1] })}</p></div>`}
      <dl class="tiles"><${Tile} label=${t('Epoch')} value=${count(s.stamp.epoch)} /><${Tile} label=${t('Revision')} value=${count(s.stamp.revision)} /><${Tile} label=${t('Services')} value=${count(s.services)} />
        <${Tile} label=${t('Instances')} value=${count(s.instances)} />${Object.entries(s.states).filter(([k, n]) => k !== 'available' && n > 0).map(([k, n]) => html`<${Tile} label=${html`<${Badge} state=${k} />`} value=${count(n)} />`)}
        <${Tile} label=${t('Agents')} value=${count(s.agents)} /><${Tile} label=${t('Watchers')} value=${count(s.watchers)} />
        <${Tile} label=${t('This centre')} value=${s.leads ? t('leads') : t('follows')} note=${s.leads ? s.center : t('{name} leads', { name: s.leader || '?' })} /></dl>`}</${Ready}>
    <${Ready} from=${rows}>${(list) => (list.length === 0 ? html`<${Empty} title=${t('Nothing is registered')}><p>${t('Services appear here as soon as an agent registers one with this centre.')}</p></${Empty}>` : html`<${Browser} rows=${list} values=${values} />`)}</${Ready}>
    ${state.data?.texts?.length > 0 && html`<${Panel} id="texts" title=${t('Command texts')} note=${t('as agents read them')}><div class="body">${state.data.texts.map((text) => html`<details><summary>${scopeOf(text.scope)} <span class="faint num">${t('revision {n}', { n: text.revision })}</span></summary><${Difference} change=${{ scope: '', before: text.text, after: text.text }} /></details>`)}</div></${Panel}>`}`;
}
