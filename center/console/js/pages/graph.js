// Who calls whom, from real calls of the last minute.

import { html, useMemo, useState } from '../../vendor/htm-preact-standalone.js';
import { get } from '../api.js';
import { successTone } from '../figures.js';
import { ms, rate, share } from '../format.js';
import { t } from '../i18n.js';
import { useData } from '../live.js';
import { href } from '../route.js';
import { Table } from '../table.js';
import { Choice, Empty, Head, Panel, Ready } from '../ui.js';
import { HEIGHT, WIDTH, layout } from './parts/layout.js';
import { Way } from './service.js';

/// Nodes that are drawn; the busiest of more.
const MOST = 160;

const width = (r) => 1 + Math.log10(1 + Math.max(0, r)) * 1.15;
const cut = (text, n) => (text.length > n ? `…${text.slice(1 - n)}` : text);

/// The part of the graph that is looked at: what fits the words and its neighbours, the busiest first.
function part(graph, words) {
  const flow = new Map();
  for (const e of graph.edges) {
    flow.set(e.from, (flow.get(e.from) ?? 0) + e.rate);
    flow.set(e.to, (flow.get(e.to) ?? 0) + e.rate);
  }
  let nodes = graph.nodes;
  if (words.length > 0) {
    const hit = new Set(nodes.filter((n) => words.every((w) => `${n.name} ${n.group}`.toLowerCase().includes(w))).map((n) => n.id));
    const near = new Set(hit);
    for (const e of graph.edges) {
      if (hit.has(e.from)) near.add(e.to);
      if (hit.has(e.to)) near.add(e.from);
    }
    nodes = nodes.filter((n) => near.has(n.id));
  }
  const left = Math.max(0, nodes.length - MOST);
  if (left > 0) nodes = [...nodes].sort((a, b) => (flow.get(b.id) ?? 0) - (flow.get(a.id) ?? 0)).slice(0, MOST);
  const ids = new Set(nodes.map((n) => n.id));
  return { nodes, edges: graph.edges.filter((e) => ids.has(e.from) && ids.has(e.to)), left };
}

function Edge({ edge, from, to, dim, label }) {
  const [x1, y1, x2, y2] = [from.x + WIDTH, from.y + HEIGHT / 2, to.x, to.y + HEIGHT / 2];
  const back = x2 < x1;
  // Who serves what it calls itself: the table tells.
  if (back && edge.protocol === 'serves') return null;
  const bend = back ? 90 : Math.max(30, (x2 - x1) / 2);
  const path = `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
  const tone = successTone(edge.success);
  const kind = edge.protocol === 'serves' ? 'serves' : tone === 'bad' || tone === 'warn' ? tone : edge.way === 'tcp' || edge.way === '' ? 'tcp' : 'direct';
  return html`<g class=${`edge ${kind} ${dim ? 'dim' : ''}`}><path d=${path} style=${{ strokeWidth: kind === 'serves' ? 1.2 : width(edge.rate) }} />
    ${label && kind !== 'serves' && html`<text x=${(x1 + x2) / 2} y=${(y1 + y2) / 2 - 4} text-anchor="middle">${rate(edge.rate)}</text>`}</g>`;
}

function Node({ node, at, picked, dim, pick, calls }) {
  const f = node.figures ?? {};
  const service = node.kind === 'service';
  const tone = service ? successTone(f.success) : '';
  const said = service ? t('Service {name} of group {group}, {rate} calls/s, {share} % success', { name: node.name, group: node.group || '–', rate: rate(f.rate), share: share(f.success) }) : t('Application {name}', { name: node.name });
  const press = (event) => {
    if (event.key !== 'Enter' && event.key !== ' ') return;
    event.preventDefault();
    pick();
  };
  return html`<g class=${`node ${node.kind} ${tone} ${picked ? 'picked' : ''} ${dim ? 'dim' : ''}`} transform=${`translate(${at.x} ${at.y})`} role="button" tabindex="0" aria-pressed=${picked} aria-label=${said} onClick=${pick} onKeyDown=${press}>
    <rect width=${WIDTH} height=${HEIGHT} rx=${service ? 6 : 21} /><title>${node.name}</title>
    <text class="name" x="14" y="18">${cut(node.name, 25)}</text>
    <text class="sub-text" x="14" y="33">${service ? `${node.group || '–'} · ${rate(f.rate)}/s · ${share(f.success)} %` : calls > 0 ? t('calls {rate}/s', { rate: rate(calls) }) : t('application')}</text></g>`;
}

function Picture({ graph, picked, pick, scale }) {
  const shape = graph.nodes.map((n) => n.id).sort().join() + graph.edges.map((e) => `${e.from}>${e.to}`).sort().join();
  // Figures move every second, the picture only when something new calls.
  const at = useMemo(() => layout(graph.nodes, graph.edges), [shape]);
  const near = new Set([picked]);
  for (const e of graph.edges) {
    if (e.from === picked) near.add(e.to);
    if (e.to === picked) near.add(e.from);
  }
  const out = new Map();
  for (const e of graph.edges) if (e.protocol !== 'serves') out.set(e.from, (out.get(e.from) ?? 0) + e.rate);
  const order = [...graph.nodes].sort((a, b) => at.places.get(a.id).x - at.places.get(b.id).x || at.places.get(a.id).y - at.places.get(b.id).y);
  return html`<div class="graph"><svg viewBox=${`0 0 ${at.width} ${at.height}`} style=${scale === 0 ? { width: '100%', maxWidth: `${at.width}px` } : { width: `${at.width * scale}px` }} role="group" aria-label=${t('Graph of calls')}>
    ${graph.edges.map((e) => html`<${Edge} key=${`${e.from}>${e.to}>${e.protocol}`} edge=${e} from=${at.places.get(e.from)} to=${at.places.get(e.to)} dim=${picked && e.from !== picked && e.to !== picked} label=${picked ? e.from === picked || e.to === picked : graph.edges.length <= 30} />`)}
    ${order.map((n) => html`<${Node} key=${n.id} node=${n} at=${at.places.get(n.id)} calls=${out.get(n.id) ?? 0} picked=${n.id === picked} dim=${picked && !near.has(n.id)} pick=${() => pick(n.id === picked ? null : n.id)} />`)}</svg></div>`;
}

const columns = (names) => [
  { key: 'from', label: t('Caller'), sort: (r) => names.get(r.from), cell: (r) => names.get(r.from) },
  { key: 'to', label: t('Called'), sort: (r) => names.get(r.to), cell: (r) => names.get(r.to) },
  { key: 'protocol', label: t('Protocol'), sort: (r) => r.protocol, cell: (r) => (r.protocol === 'serves' ? t('serves') : r.protocol) },
  { key: 'rate', label: t('Calls/s'), right: true, sort: (r) => r.rate, cell: (r) => rate(r.rate) },
  { key: 'success', label: t('Success %'), right: true, sort: (r) => r.success, cell: (r) => share(r.success), tone: (r) => successTone(r.success) },
  { key: 'way', label: t('Bytes travel'), sort: (r) => r.way, cell: (r) => (r.way ? html`<${Way} way=${r.way} />` : '') },
];

function Whole({ graph, focus }) {
  const [text, setText] = useState(focus ?? '');
  const [picked, pick] = useState(null);
  const [scale, zoom] = useState(0);
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = part(graph, words);
  const here = shown.nodes.some((n) => n.id === picked) ? picked : null;
  const names = new Map(graph.nodes.map((n) => [n.id, n.group ? `${n.group}/${n.name}` : n.name]));
  const list = useMemo(() => columns(names), [graph.nodes.map((n) => n.id).join()]);
  const node = graph.nodes.find((n) => n.id === here);
  const edges = here ? shown.edges.filter((e) => e.from === here || e.to === here) : shown.edges;
  return html`<div class="filters"><input type="search" data-filter aria-label=${t('Filter the graph')} placeholder=${t('Filter the graph  /')} value=${text} onInput=${(e) => setText(e.target.value)} />
      <${Choice} label=${t('Size')} value=${scale} options=${[[0, t('fit')], [0.75, '75 %'], [1, '100 %']]} set=${zoom} />
      <ul class="legend"><li><i class="direct"></i>${t('socket to socket or kernel')}</li><li><i class="tcp"></i>${t('TCP')}</li><li><i class="warn"></i>${t('below 99.9 %')}</li><li><i class="bad"></i>${t('below 99 %')}</li><li><i class="serves"></i>${t('serves')}</li></ul>
      ${shown.left > 0 && html`<span class="faint">${t('{n} quieter ones are left out: filter for them', { n: shown.left })}</span>`}</div>
    ${shown.nodes.length === 0 ? html`<${Empty} title=${t('Nothing fits')} />` : html`<${Picture} graph=${shown} picked=${here} pick=${pick} scale=${scale} />`}
    <${Panel} id="edges" title=${node ? names.get(here) : t('Calls')} note=${node?.kind === 'service' ? `${rate(node.figures.rate)}/s · p99 ${ms(node.figures.p99_ms)} ms` : ''} tools=${node && html`${node.kind === 'service' && html`<a class="button" href=${href('service', { service: node.name, group: node.group })}>${t('Its page')}</a>`}<button onClick=${() => pick(null)}>${t('Show all')}</button>`}>
      <${Table} name="edges" caption=${t('Calls')} columns=${list} rows=${edges} rowKey=${(r) => `${r.from}>${r.to}>${r.protocol}`} first=${{ key: 'rate', down: true }} empty=${html`<p class="none-here">${t('No calls')}</p>`} /></${Panel}>`;
}

export function Graph({ focus }) {
  const read = useData((signal) => get('v1/graph', {}, signal), [], { every: 3000 });
  return html`<${Head} title=${t('Graph')} sub=${t('Who called whom in the last minute')} />
    <${Ready} from=${read}>${(graph) => (graph.nodes.length === 0
      ? html`<${Empty} title=${t('No calls were seen in the last minute')}><p>${t('The graph is drawn from calls that agents report, not from configuration.')}</p></${Empty}>`
      : html`<${Whole} graph=${graph} focus=${focus} />`)}</${Ready}>`;
}
