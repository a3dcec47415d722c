// The curves of a service: calls of every group, times, success, calls against capacity.

import { html, useEffect, useState } from '../../../vendor/htm-preact-standalone.js';
import { get } from '../../api.js';
import { ms, percent, rate } from '../../format.js';
import { t } from '../../i18n.js';
import { now, useData } from '../../live.js';
import { Plot } from '../../plot.js';
import { Problem } from '../../ui.js';

/// A little less than five minutes: so far back the centre keeps windows of two seconds.
export const SPANS = [['5m', '5 min', 290_000], ['15m', '15 min', 900_000], ['1h', '1 h', 3_600_000], ['6h', '6 h', 21_600_000], ['24h', '24 h', 86_400_000]];
/// Groups that are drawn; more would be a ball of wool.
const GROUPS = 6;

export const spanOf = (name) => (SPANS.find(([key]) => key === name) ?? SPANS[0])[2];

/// How often curves of this span are read: so that a second of it shows within two.
const every = (length) => (length <= 300_000 ? 1000 : length <= 900_000 ? 2000 : length <= 3_600_000 ? 10_000 : 30_000);

/// Length of a point: agents tell every two seconds; the centre chooses for what is long.
const step = (length) => (length <= 300_000 ? 2000 : length <= 900_000 ? 5000 : undefined);

/// The series of every group of a service, on one axis of time.
export function useSeries(of, groups, length) {
  return useData(async (signal) => {
    const to = Math.floor(now());
    const from = to - length;
    const all = await Promise.all(groups.slice(0, GROUPS).map((group) => get('v1/series', { ...of, group, from_ms: from, to_ms: to, step_ms: step(length) }, signal)));
    return { from, to, series: all };
  }, [of.service, of.instance, of.caller, groups.join(), length], { every: every(length) });
}

/// Values of one series at the times of another.
function at(times, series, column, factor = 1) {
  const values = series[column] ?? [];
  const places = new Map(series.at_ms.map((time, i) => [time, i]));
  const half = (series.step_ms || 1000) / 2;
  return times.map((time, i) => {
    let place = series.at_ms[i] === time ? i : places.get(time);
    if (place === undefined) place = series.at_ms.findIndex((other) => Math.abs(other - time) < half);
    const value = place >= 0 ? values[place] : null;
    return value === null || value === undefined ? null : value * factor;
  });
}

export function Curves({ of, groups, group, range, commands = [], pool, small }) {
  const shown = groups.includes(group) ? groups : [group, ...groups];
  const read = useSeries(of, shown, spanOf(range));
  const [failed, fail] = useState(0);
  useEffect(() => fail((n) => (read.error ? n + 1 : 0)), [read.error]);
  const mine = read.data?.series[Math.max(0, shown.slice(0, GROUPS).indexOf(group))];
  const times = mine?.at_ms ?? [];
  const shared = { times, from: read.data?.from, to: read.data?.to, sync: small ? `${of.instance}` : 'service', height: small ? 120 : 172 };
  const marks = commands.filter((c) => c.steps.length > 0 || c.state === 'active').flatMap((c) => [
    ...c.steps.map((s) => ({ at: s.at_ms, label: `#${c.id} ${s.percent} %` })),
    ...(c.ended ? [{ at: c.ended[0], label: `#${c.id} ${t('ended')}` }] : []),
  ]);
  const column = (name, factor) => (mine ? at(times, mine, name, factor) : []);
  const per = pool?.capacity?.per_instance;
  const most = per ? per * pool.instances : null;
  const bound = pool?.capacity?.confidence === 'lower_bound';
  const lines = !most ? [] : bound ? [{ value: most, label: t('takes at least {rate}/s', { rate: rate(most) }), tone: '--faint' }] : [
    { value: (most * pool.policy.warning_percent) / 100, label: t('warning {n} %', { n: pool.policy.warning_percent }), tone: '--warn-fill' },
    { value: (most * pool.policy.fatal_percent) / 100, label: t('capacity {rate}/s', { rate: rate(most) }), tone: '--bad-fill' },
  ];
  const calls = (read.data?.series ?? []).map((series, i) => ({ label: shown[i] || t('calls'), color: i % 6, values: at(times, series, 'rate') }));
  const plots = [
    html`<${Plot} ...${shared} title=${shown.length > 1 ? t('Calls by group') : t('Calls')} unit=${t('calls/s')} format=${rate} marks=${marks} series=${calls} />`,
    html`<${Plot} ...${shared} title=${t('Time')} unit="ms" format=${ms} marks=${marks} series=${[
      { label: 'p50', color: 2, values: column('p50_ms') },
      { label: 'p99', color: 0, values: column('p99_ms') },
      { label: 'p99.9', color: 3, values: column('p999_ms') },
    ]} />`,
    html`<${Plot} ...${shared} title=${t('Failed and slow')} unit=${t('% of calls')} format=${(v) => percent(v, 2)} marks=${marks} series=${[
      { label: t('failed'), color: 5, fill: true, values: column('success').map((v) => (v === null ? null : (1 - v) * 100)) },
      { label: t('slow'), color: 4, values: column('slow', 100) },
    ]} />`,
    small ? null : html`<${Plot} ...${shared} title=${t('Against capacity')} unit=${t('calls/s')} format=${rate} marks=${marks} lines=${lines} series=${[{ label: group || t('calls'), color: Math.max(0, shown.indexOf(group)) % 6, fill: true, values: column('rate') }]} />`,
  ];
  const source = mine?.source && mine.source !== 'agents' ? html`<p class="hint">${t('Figures from {source}', { source: mine.source })}</p>` : null;
  if (read.data === null && read.error) return html`<${Problem} error=${read.error} again=${read.reload} />`;
  return html`${failed > 2 && html`<${Problem} error=${read.error} quiet />`}
    <div class=${`plots ${small ? 'small' : ''}`}>${plots.filter(Boolean).map((plot) => html`<div class="panel">${plot}</div>`)}</div>${source}`;
}
